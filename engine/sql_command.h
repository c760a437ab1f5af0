/* Statements of ours that are no SQL for SQLite: CREATE INDEX … USING, SET, TUNE, … */
#ifndef L2C_SQL_COMMAND_H
#define L2C_SQL_COMMAND_H

#include "engine/sql_rewrite.h"
#include "engine/sql_token.h"

/* Sets r->verb and its arguments if the tokens are such a statement, else leaves r alone. E_SQL
 * with the offset where one of ours is malformed; E_NOMEM. */
l2cdb_status l2c_command_parse(l2c_rewrite *r, const l2c_tokens *t, l2cdb_error *err);

#endif
