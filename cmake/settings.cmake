# What every target of the tree shares: language level, warnings, sanitizers, and two helpers.
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})

add_library(l2c_settings INTERFACE)
target_include_directories(l2c_settings INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_definitions(l2c_settings INTERFACE _POSIX_C_SOURCE=200809L)
target_compile_options(l2c_settings INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion
  $<$<COMPILE_LANGUAGE:C>:-Wstrict-prototypes -Wmissing-prototypes>
  $<$<BOOL:${L2CDB_WERROR}>:-Werror>
  -fno-math-errno -ffp-contract=fast)
if(L2CDB_SANITIZE)
  target_compile_options(l2c_settings INTERFACE -fsanitize=address,undefined
    -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  target_link_options(l2c_settings INTERFACE -fsanitize=address,undefined)
endif()
if(L2CDB_TSAN)
  target_compile_options(l2c_settings INTERFACE -fsanitize=thread)
  target_link_options(l2c_settings INTERFACE -fsanitize=thread)
endif()

find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)

# l2c_room(NAME SOURCES ... [LIBS ...]): one folder of the house as an object library. LIBS are the
# foreign libraries that it alone may include; they are linked into whatever the objects end up in.
function(l2c_room name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_library(${name} OBJECT ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC l2c_settings Threads::Threads m ${ARG_LIBS})
endfunction()

# l2c_test(NAME SOURCES ... [LIBS ...] [LABELS ...] [ARGS ...] [TIMEOUT s]): one test program under
# ctest. Exit status 77 is a skip with its reason printed; with L2CDB_REQUIRE_SHARED=1 (CI) the
# helpers of tests/test.h turn such a skip into a failure.
function(l2c_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LIBS;LABELS;ARGS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 900)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE l2c_settings PkgConfig::CMOCKA ${ARG_LIBS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name} ${ARG_ARGS} WORKING_DIRECTORY ${CMAKE_BINARY_DIR})
  set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT ${ARG_TIMEOUT}
    LABELS "${ARG_LABELS}" ENVIRONMENT "L2CDB_SOURCE_DIR=${CMAKE_SOURCE_DIR}")
endfunction()
