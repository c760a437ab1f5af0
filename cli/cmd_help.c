/* `l2cdb help`, `l2cdb help COMMAND`. */
#include "cli/commands.h"

static int run(const char *const *args, size_t args_count) {
    if (args_count == 0) {
        l2c_commands_list(stdout);
        return L2C_EXIT_DONE;
    }
    const l2c_command *command = l2c_commands_find(args[0]);
    if (command != NULL) {
        l2c_options_help(command, stdout);
        return L2C_EXIT_DONE;
    }
    const l2c_command *near = l2c_commands_nearest(args[0]);
    return near != NULL ? l2c_options_wrong(&l2c_cmd_help,
                                            "there is no command \"%s\"; did you mean \"%s\"?",
                                            args[0], near->name)
                        : l2c_options_wrong(&l2c_cmd_help, "there is no command \"%s\"", args[0]);
}

const l2c_command l2c_cmd_help = {
    .name = "help",
    .usage = "[COMMAND]",
    .summary = "what the commands do",
    .args_max = 1,
    .run = run,
};
