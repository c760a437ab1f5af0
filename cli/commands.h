/* Every command of l2cdb, one a cmd_*.c (shell.c and serve/ hold theirs). To add one: declare it
 * here, list it in commands.c, name its file in CMakeLists.txt. */
#ifndef L2C_COMMANDS_H
#define L2C_COMMANDS_H

#include "cli/options.h"

extern const l2c_command l2c_cmd_ingest;
extern const l2c_command l2c_cmd_caption;
extern const l2c_command l2c_cmd_search;
extern const l2c_command l2c_cmd_query;
extern const l2c_command l2c_cmd_shell;
extern const l2c_command l2c_cmd_serve;
extern const l2c_command l2c_cmd_encode;
extern const l2c_command l2c_cmd_tokenize;
extern const l2c_command l2c_cmd_eval;
extern const l2c_command l2c_cmd_tune;
extern const l2c_command l2c_cmd_reindex;
extern const l2c_command l2c_cmd_rollback;
extern const l2c_command l2c_cmd_generations;
extern const l2c_command l2c_cmd_reencode;
extern const l2c_command l2c_cmd_index;
extern const l2c_command l2c_cmd_recall;
extern const l2c_command l2c_cmd_import;
extern const l2c_command l2c_cmd_export;
extern const l2c_command l2c_cmd_import_model;
extern const l2c_command l2c_cmd_backup;
extern const l2c_command l2c_cmd_vacuum;
extern const l2c_command l2c_cmd_check;
extern const l2c_command l2c_cmd_stats;
extern const l2c_command l2c_cmd_bench;
extern const l2c_command l2c_cmd_version;
extern const l2c_command l2c_cmd_help;

/* By name; NULL if there is none. */
const l2c_command *l2c_commands_find(const char *name);
/* The command whose name is nearest to a mistyped one; NULL if none is near. */
const l2c_command *l2c_commands_nearest(const char *name);
/* The list of all commands, in groups. */
void l2c_commands_list(FILE *out);

#endif
