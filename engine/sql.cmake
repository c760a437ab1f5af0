# The SQL side of the engine. l2c_sqltext rewrites text and needs no database, so that its tests and
# its fuzz target build alone.
l2c_room(l2c_sqltext SOURCES sql_command.c sql_rewrite.c sql_token.c)
