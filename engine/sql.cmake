# The SQL side of the engine. l2c_sqltext rewrites text and needs no database, so that its tests and
# its fuzz target build alone.
l2c_room(l2c_sqltext SOURCES sql_command.c sql_rewrite.c sql_token.c)

pkg_check_modules(SQLITE3 REQUIRED IMPORTED_TARGET sqlite3>=3.40)
l2c_room(l2c_sql
  SOURCES sql_answer.c sql_context.c sql_filter.c sql_functions.c sql_images.c sql_stmt.c
    sql_tables.c
  LIBS PkgConfig::SQLITE3)
