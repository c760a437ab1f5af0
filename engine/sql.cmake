# The SQL side of the engine. l2c_sqltext rewrites text and needs no database, so that its tests and
# its fuzz target build alone.
l2c_room(l2c_sqltext SOURCES sql_command.c sql_edit.c sql_operand.c sql_rewrite.c
  sql_select.c sql_token.c)

pkg_check_modules(SQLITE3 REQUIRED IMPORTED_TARGET sqlite3>=3.40)
l2c_room(l2c_sql
  SOURCES sql_answer.c sql_context.c sql_filter.c sql_functions.c sql_images.c
    sql_images_cursor.c sql_images_pass.c sql_images_plan.c sql_images_write.c sql_stmt.c
    sql_tables.c
  LIBS PkgConfig::SQLITE3)

# l2cdb.so, for other programs' SQLite. Storage and the SQL side are compiled a second time, against
# the interface that SQLite hands to extensions (sql_host/sqlite3.h).
function(l2c_sql_extension)
  l2c_room(l2c_sql_host
    SOURCES sql_answer.c sql_context.c sql_extension.c sql_filter.c sql_functions.c sql_hook.c
      sql_images.c sql_images_cursor.c sql_images_pass.c sql_images_plan.c sql_images_write.c
      sql_stmt.c sql_tables.c)
  get_target_property(storage_sources l2c_storage SOURCES)
  list(TRANSFORM storage_sources PREPEND ${CMAKE_SOURCE_DIR}/storage/)
  l2c_room(l2c_storage_host SOURCES ${storage_sources})
  foreach(room l2c_sql_host l2c_storage_host)
    target_include_directories(${room} BEFORE PRIVATE
      ${CMAKE_CURRENT_SOURCE_DIR}/sql_host ${SQLITE3_INCLUDE_DIRS})
  endforeach()
  add_library(l2cdb_extension MODULE)
  target_link_libraries(l2cdb_extension PRIVATE l2c_base l2c_encoders l2c_index l2c_sqltext
    l2c_engine l2c_storage_host l2c_sql_host ${CMAKE_DL_LIBS})
  set_target_properties(l2cdb_extension PROPERTIES OUTPUT_NAME l2cdb PREFIX "" LINKER_LANGUAGE CXX
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
  # The host may have a faiss or a BLAS of its own: ours stay ours. And once its calls lead to us
  # (sql_hook.c), we stay until it ends.
  target_link_options(l2cdb_extension PRIVATE
    -Wl,--exclude-libs,ALL -Wl,-Bsymbolic -Wl,-z,nodelete)
endfunction()
