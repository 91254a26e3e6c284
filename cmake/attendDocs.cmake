# SPDX-License-Identifier: MIT
#
# The target `docs`: the guides and the API reference, as one folder of HTML. It needs no LibTorch. On Debian and Ubuntu
# it needs the packages doxygen and doxygen-awesome-css.

find_program(ATTEND_DOXYGEN doxygen)
find_path(ATTEND_DOCS_THEME doxygen-awesome.css PATH_SUFFIXES share/doxygen-awesome-css)
mark_as_advanced(ATTEND_DOXYGEN ATTEND_DOCS_THEME)
if(NOT ATTEND_DOXYGEN)
  message(FATAL_ERROR
    "attend: the documentation needs doxygen. Install the package doxygen, or pass the path of the program with "
    "-DATTEND_DOXYGEN=<path>.")
endif()
if(NOT ATTEND_DOCS_THEME)
  message(FATAL_ERROR
    "attend: the documentation needs the theme Doxygen Awesome. Install the package doxygen-awesome-css, or pass the "
    "folder of doxygen-awesome.css with -DATTEND_DOCS_THEME=<folder>.")
endif()

set(ATTEND_DOCS_FOLDER "${PROJECT_BINARY_DIR}")

# The public headers: all but the folders detail/, simd/, cpu/ and convolution/.
file(GLOB_RECURSE inputs RELATIVE "${PROJECT_SOURCE_DIR}" CONFIGURE_DEPENDS include/*.h)
list(FILTER inputs EXCLUDE REGEX "/(detail|cpu|convolution|simd)/")
file(GLOB pages RELATIVE "${PROJECT_SOURCE_DIR}" CONFIGURE_DEPENDS docs/*.md docs/doxygen/*.dox)
list(APPEND inputs ${pages})
set(ATTEND_DOCS_INPUT "${inputs}")
list(JOIN ATTEND_DOCS_INPUT " " ATTEND_DOCS_INPUT)

# Doxygen's default page header, with the two scripts of the theme.
file(MAKE_DIRECTORY "${PROJECT_BINARY_DIR}/template") # a folder without a Doxyfile, which doxygen would read
set(ATTEND_DOCS_HEADER "${PROJECT_BINARY_DIR}/template/header.html")
execute_process(
  COMMAND "${ATTEND_DOXYGEN}" -w html header.html footer.html style.css
  WORKING_DIRECTORY "${PROJECT_BINARY_DIR}/template"
  OUTPUT_QUIET
  COMMAND_ERROR_IS_FATAL ANY)
file(READ "${ATTEND_DOCS_HEADER}" header)
file(READ docs/doxygen/scripts.html scripts)
string(REPLACE "</head>" "${scripts}</head>" header "${header}")
file(WRITE "${ATTEND_DOCS_HEADER}" "${header}")

configure_file(docs/doxygen/Doxyfile.in Doxyfile @ONLY)
add_custom_target(docs
  COMMAND "${CMAKE_COMMAND}" -E rm -rf "${ATTEND_DOCS_FOLDER}/html" # removes old pages
  COMMAND "${ATTEND_DOXYGEN}" "${PROJECT_BINARY_DIR}/Doxyfile"
  COMMAND "${CMAKE_COMMAND}" "-DFOLDER=${ATTEND_DOCS_FOLDER}" -P docs/doxygen/check.cmake
  COMMAND "${CMAKE_COMMAND}" -E echo "The documentation is ${ATTEND_DOCS_FOLDER}/html/index.html"
  WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
  VERBATIM)
