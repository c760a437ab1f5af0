/* Stands in for <sqlite3.h> when storage and the SQL side are compiled into the extension: every
 * call goes to the SQLite that loads it. A second SQLite in the process would be fatal, because the
 * locks of a file belong to the process and the one that closes it first drops the other's. */
#ifndef L2C_SQL_HOST_SQLITE3_H
#define L2C_SQL_HOST_SQLITE3_H

#include <sqlite3ext.h>

extern const sqlite3_api_routines *sqlite3_api;

#endif
