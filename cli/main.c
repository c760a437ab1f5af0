/* l2cdb, the program: finds the command and hands over. */
#include <errno.h>
#include <locale.h>
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"

static int unknown_command(const char *name) {
    const l2c_command *near = l2c_commands_nearest(name);
    fprintf(stderr, "l2cdb: there is no command \"%s\"", name);
    if (near != NULL) {
        fprintf(stderr, "; did you mean \"%s\"?", near->name);
    }
    fputs("\n`l2cdb help` lists them\n", stderr);
    return L2C_EXIT_USAGE;
}

int main(int argc, char **argv) {
    setlocale(LC_CTYPE, ""); // what the line editor reads; numbers stay "C"
    if (argc < 2) {
        l2c_commands_list(stderr);
        return L2C_EXIT_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        name = "help";
    } else if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        name = "version";
    }
    const l2c_command *command = l2c_commands_find(name);
    if (command == NULL) {
        return unknown_command(name);
    }
    int rc = l2c_options_run(command, argc - 2, argv + 2);
    if (fflush(stdout) != 0 || ferror(stdout) != 0) {
        fprintf(stderr, "l2cdb: could not write the output: %s\n", strerror(errno));
        return rc == L2C_EXIT_DONE ? L2C_EXIT_FAILED : rc;
    }
    return rc;
}
