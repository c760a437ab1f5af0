/* The server as users start it, over the fake engine: `serve_fake DB [options of l2cdb serve]`. */
#include "cli/commands.h"

extern const l2c_command l2c_cmd_serve;

int main(int argc, char **argv) {
    return l2c_options_run(&l2c_cmd_serve, argc - 1, argv + 1);
}
