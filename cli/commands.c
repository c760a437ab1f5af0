#include "cli/commands.h"

#include <string.h>

// In the order in which a newcomer meets them; a group's name stands at its first command.
static const struct {
    const char *group;
    const l2c_command *command;
} commands[] = {
    { "photos and questions", &l2c_cmd_ingest },
    { NULL, &l2c_cmd_search },
    { NULL, &l2c_cmd_query },
    { NULL, &l2c_cmd_shell },
    { NULL, &l2c_cmd_serve },
    { NULL, &l2c_cmd_caption },
    { NULL, &l2c_cmd_stats },
    { "teaching", &l2c_cmd_tune },
    { NULL, &l2c_cmd_eval },
    { NULL, &l2c_cmd_reindex },
    { NULL, &l2c_cmd_rollback },
    { NULL, &l2c_cmd_generations },
    { "models", &l2c_cmd_import_model },
    { NULL, &l2c_cmd_reencode },
    { NULL, &l2c_cmd_encode },
    { NULL, &l2c_cmd_tokenize },
    { "vectors and indexes", &l2c_cmd_import },
    { NULL, &l2c_cmd_export },
    { NULL, &l2c_cmd_index },
    { NULL, &l2c_cmd_recall },
    { "care", &l2c_cmd_check },
    { NULL, &l2c_cmd_backup },
    { NULL, &l2c_cmd_vacuum },
    { NULL, &l2c_cmd_bench },
    { NULL, &l2c_cmd_version },
    { NULL, &l2c_cmd_help },
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

const l2c_command *l2c_commands_find(const char *name) {
    for (size_t i = 0; i < COMMANDS; i++) {
        if (strcmp(commands[i].command->name, name) == 0) {
            return commands[i].command;
        }
    }
    return NULL;
}

const l2c_command *l2c_commands_nearest(const char *name) {
    const char *names[COMMANDS];
    for (size_t i = 0; i < COMMANDS; i++) {
        names[i] = commands[i].command->name;
    }
    const char *nearest = l2c_options_nearest(name, names, COMMANDS);
    return nearest != NULL ? l2c_commands_find(nearest) : NULL;
}

void l2c_commands_list(FILE *out) {
    fputs("l2cdb: find photos by what they show, in your own words\n\n"
          "  l2cdb ingest ~/Pictures\n"
          "  l2cdb search \"the dog asleep on the red sofa\"\n",
          out);
    for (size_t i = 0; i < COMMANDS; i++) {
        if (commands[i].group != NULL) {
            fprintf(out, "\n%s\n", commands[i].group);
        }
        fprintf(out, "  %-14s%s\n", commands[i].command->name, commands[i].command->summary);
    }
    fputs("\n`l2cdb help COMMAND` tells more about one of them\n", out);
}
