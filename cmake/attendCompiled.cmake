# SPDX-License-Identifier: MIT
#
# Creates the target attend::compiled: a static library with attention() and its kernels, so that the files of a program
# need not compile them. It is built in the user's build, and only if a target links it. Included by attend's own build
# and by find_package(attend), after attend::attend exists.

get_property(attend_LANGUAGES GLOBAL PROPERTY ENABLED_LANGUAGES)
if(NOT TARGET attend::compiled AND "CXX" IN_LIST attend_LANGUAGES)
  set(attend_COMPILED_SOURCE "${CMAKE_CURRENT_LIST_DIR}/compiled.cpp")
  if(NOT EXISTS "${attend_COMPILED_SOURCE}") # this is attend's own tree
    cmake_path(SET attend_COMPILED_SOURCE NORMALIZE "${CMAKE_CURRENT_LIST_DIR}/../src/compiled.cpp")
  endif()
  add_library(attend_compiled STATIC EXCLUDE_FROM_ALL "${attend_COMPILED_SOURCE}")
  add_library(attend::compiled ALIAS attend_compiled)
  target_link_libraries(attend_compiled PUBLIC attend::attend)
  target_compile_definitions(attend_compiled PUBLIC ATTEND_COMPILED)
  # A debug build gets fast kernels.
  target_compile_options(attend_compiled PRIVATE $<$<OR:$<CONFIG:Debug>,$<CONFIG:>>:-O2>)
  set_target_properties(attend_compiled PROPERTIES POSITION_INDEPENDENT_CODE ON) # for shared libraries
  unset(attend_COMPILED_SOURCE)
endif()
unset(attend_LANGUAGES)
