/* Lets a program that calls SQLite as a shared library hand our SQL to it as it is written: see the
 * opening of sql_hook.c. Only the extension uses this. */
#ifndef L2C_SQL_HOOK_H
#define L2C_SQL_HOOK_H

#include "engine/sql_engine.h"

/* The connection has the extension from now on: what is prepared on it is rewritten. `c` stays the
 * caller's and must be forgotten before it is freed. */
void l2c_sql_hook_watch(l2c_sql_conn *c);
/* The opposite; nothing happens if the connection is not watched. */
void l2c_sql_hook_forget(l2c_sql_conn *c);
/* True if the extension is on this connection. Any thread. */
bool l2c_sql_hook_watches(sqlite3 *sqlite);

/* Redirects the imports of sqlite3_prepare… of every object that is in the process now. Returns how
 * many are redirected in all, 0 where none can be or L2CDB_SQL_HOOK is "off". Any thread; again at
 * no harm. */
size_t l2c_sql_hook_install(void);

#endif
