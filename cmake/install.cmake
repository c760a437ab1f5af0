# `cmake --install`: the program, its manual, both libraries, the headers and l2cdb.pc. Headers keep
# their place under the root, so that #include "engine/l2cdb.h" reads the same outside.
include(GNUInstallDirs)

find_program(AWK NAMES mawk gawk awk REQUIRED)
set(manual ${CMAKE_BINARY_DIR}/l2cdb.1)
add_custom_command(OUTPUT ${manual}
  COMMAND ${AWK} -f ${CMAKE_SOURCE_DIR}/docs/man.awk ${CMAKE_SOURCE_DIR}/docs/cli.md > ${manual}
  DEPENDS docs/man.awk docs/cli.md VERBATIM)
add_custom_target(manual ALL DEPENDS ${manual})

configure_file(cmake/l2cdb.pc.in ${CMAKE_BINARY_DIR}/l2cdb.pc @ONLY)

install(TARGETS l2cdb RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS l2cdb_static l2cdb_shared DESTINATION ${CMAKE_INSTALL_LIBDIR})
# The SQLite extension, beside the libraries' versions: .load /usr/local/lib/l2cdb/l2cdb
install(TARGETS l2cdb_extension LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/l2cdb)
install(FILES engine/l2cdb.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/l2cdb/engine)
install(FILES engine/base/log.h engine/base/status.h
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/l2cdb/engine/base)
install(FILES ${CMAKE_BINARY_DIR}/l2cdb.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES ${manual} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES README.md LICENSE LICENSE-MODEL DESTINATION ${CMAKE_INSTALL_DOCDIR})
