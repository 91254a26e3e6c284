# SPDX-License-Identifier: MIT
#
# Fails if a file in WITHOUT defines the kernel Product, or if a file in WITH does not.

foreach(list IN ITEMS WITHOUT WITH)
  foreach(file IN LISTS ${list})
    execute_process(COMMAND "${NM}" -C --defined-only "${file}" OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
    string(FIND "${symbols}" "Product<float>" place)
    if(list STREQUAL "WITHOUT" AND NOT place EQUAL -1)
      message(FATAL_ERROR "${file} contains kernels")
    elseif(list STREQUAL "WITH" AND place EQUAL -1)
      message(FATAL_ERROR "${file} contains no kernels")
    endif()
  endforeach()
endforeach()
