# SPDX-License-Identifier: MIT
#
# Downloads missing dependencies of attend's own build into a cache folder of the user. It is included only if
# ATTEND_PROVISION is ON, which the presets set. Users of the library do not include it. Nothing is written elsewhere, and
# no administrator rights are needed. To undo everything, delete the cache folder.
#
# The build needs a Python with torch, numpy and matplotlib. Python3_EXECUTABLE or the Python on the PATH is used if it has
# all three. Otherwise a virtual environment is created. It becomes Python3_EXECUTABLE, in which attendTorch.cmake finds
# LibTorch, unless Torch_DIR or CMAKE_PREFIX_PATH names another one.
#
# The variable ATTEND_PROVISION_TORCH selects the version of torch:
#   2.11.0   exactly this version. A Python on the machine is used if it has this version. Otherwise an environment is
#            created
#   (empty)  a Python on the machine is used if attend is tested with its version. A new environment gets 2.15.0, or
#            2.14.1 with Python 3.10, the last version for that Python
#
include("${CMAKE_CURRENT_LIST_DIR}/attendCache.cmake")

set(ATTEND_PROVISION_TORCH "" CACHE STRING "Version of torch, for example 2.11.0; if empty, attend chooses one")
# The default fits the wheels for Linux on x86-64, which include CUDA's libraries: 8.9 GB during the installation.
set(ATTEND_PROVISION_GIGABYTES 10 CACHE STRING "Least free disk space in gigabytes for a download")
set(ATTEND_PROVISION_REQUIREMENTS "${CMAKE_CURRENT_LIST_DIR}/requirements.txt" CACHE FILEPATH "The list of Python packages")
mark_as_advanced(ATTEND_PROVISION_GIGABYTES ATTEND_PROVISION_REQUIREMENTS)

# Reads attend_TORCH_MINIMUM and attend_TORCH_NEWEST_TESTED. Including the file would search for LibTorch too early.
file(STRINGS "${CMAKE_CURRENT_LIST_DIR}/attendTorch.cmake" attend_versions
     REGEX "^set\\(attend_TORCH_(MINIMUM|NEWEST_TESTED) [0-9.]+\\)")
list(JOIN attend_versions "\n" attend_versions)
cmake_language(EVAL CODE "${attend_versions}")

if(ATTEND_PROVISION_TORCH AND (NOT ATTEND_PROVISION_TORCH MATCHES "^[0-9]+\\.[0-9]+(\\.[0-9]+)?$"
                               OR ATTEND_PROVISION_TORCH VERSION_LESS attend_TORCH_MINIMUM))
  message(FATAL_ERROR
    "attend: ATTEND_PROVISION_TORCH is ${ATTEND_PROVISION_TORCH}. It must be a version of torch, "
    "${attend_TORCH_MINIMUM} or newer, for example 2.15.0. Leave it empty to let attend choose.")
endif()

# ---- Python and LibTorch --------------------------------------------------------------------------------------------

# Sets python_VERSION and, if that is 3.10 or newer, also
#   python_EXECUTABLE  the interpreter itself, not the shim of a version manager
#   python_HOME        the installation, also of a virtual environment
#   python_MISSING     the missing packages
#   python_TORCH       the version of torch
macro(attend_probe_python command)
  execute_process(
    COMMAND "${command}" -c [[
import sys
print('%d.%d.%d' % sys.version_info[:3])
if sys.version_info >= (3, 10):
    import importlib.metadata, importlib.util
    missing = [name for name in ('torch', 'numpy', 'matplotlib') if not importlib.util.find_spec(name)]
    torch = '0' if 'torch' in missing else importlib.metadata.version('torch')
    print(sys.executable, sys.base_prefix, ' '.join(missing), torch, sep='\n')
]]
    OUTPUT_VARIABLE probe ERROR_QUIET)
  string(REPLACE "\n" ";" probe "${probe}")
  set(lines VERSION EXECUTABLE HOME MISSING TORCH)
  foreach(line value IN ZIP_LISTS lines probe)
    set(python_${line} "${value}")
  endforeach()
endmacro()

# Creates the virtual environment `folder` with `python_EXECUTABLE`, and installs the packages in `requirements`.
function(attend_make_environment folder requirements)
  execute_process(COMMAND "${python_EXECUTABLE}" -c "import venv, ensurepip" RESULT_VARIABLE failed ERROR_QUIET)
  if(failed)
    message(FATAL_ERROR
      "attend: Python ${python_VERSION} (${python_EXECUTABLE}) cannot create a virtual environment: its module venv or "
      "ensurepip is missing. Install it (on Debian and Ubuntu: the package python3-venv), or pass another Python, 3.10 or "
      "newer, with -DPython3_EXECUTABLE=<path>.")
  endif()

  file(MAKE_DIRECTORY "${folder}")
  execute_process(
    COMMAND "${python_EXECUTABLE}" -c "import shutil; print(shutil.disk_usage(r'${folder}').free // 10**9)"
    OUTPUT_VARIABLE free OUTPUT_STRIP_TRAILING_WHITESPACE)
  set(disk_full
    "Free some space, or set the environment variable ATTEND_CACHE_DIR to a folder on another disk.")
  if(free LESS ATTEND_PROVISION_GIGABYTES)
    file(REMOVE_RECURSE "${folder}")
    message(FATAL_ERROR
      "attend: ${attend_CACHE} has ${free} GB of free space, and LibTorch and Python's packages need "
      "${ATTEND_PROVISION_GIGABYTES} GB while they are installed. ${disk_full} If pip is configured for smaller packages, "
      "for example torch without CUDA, lower the limit with -DATTEND_PROVISION_GIGABYTES=<number>.")
  endif()

  set(instead "")
  if(fits) # this Python lacks only other packages
    string(REPLACE " " " and " missing "${python_MISSING}")
    string(CONCAT instead
      "\n     or     use ${python_EXECUTABLE}, which has torch ${found} and lacks only ${missing}: interrupt this,\n"
      "            install them there with pip, and start again")
  endif()
  message(STATUS
    "attend: found no Python with torch ${wanted}, numpy and matplotlib, so a virtual environment is made now, once "
    "for all build trees.\n"
    "     what   torch ${torch} and the packages in ${ATTEND_PROVISION_REQUIREMENTS}\n"
    "     size   Linux on x86-64, with CUDA's libraries: 3.0 GB to download, 5.9 GB on the disk (8.9 GB during the\n"
    "            installation); otherwise less than 1 GB. pip uses a CPU-only torch if it is configured for such an index\n"
    "     time   2 minutes at 50 MB/s, 6 minutes at 10 MB/s, half an hour at 2 MB/s\n"
    "     where  ${folder}\n"
    "     undo   delete ${attend_CACHE}\n"
    "            It also has lock files, and CLI11 and doctest if this machine lacks them. Nothing is written elsewhere,\n"
    "            except in the build folder${instead}")

  # pip writes its progress bars to the terminal. Its temporary files are in this folder, because the system's folder may
  # be small; they are removed afterwards. pip's cache is not used.
  file(MAKE_DIRECTORY "${folder}/temporary")
  file(WRITE "${folder}/requirements.txt" "${requirements}")
  set(python "${folder}/bin/python")
  if(CMAKE_HOST_WIN32)
    set(python "${folder}/Scripts/python.exe")
  endif()
  execute_process(
    COMMAND "${python_EXECUTABLE}" -m venv "${folder}"
    RESULT_VARIABLE failed ERROR_VARIABLE errors OUTPUT_VARIABLE errors)
  if(NOT failed)
    execute_process(
      COMMAND "${CMAKE_COMMAND}" -E env "TMPDIR=${folder}/temporary"
              "${python}" -m pip install --no-cache-dir --no-input --disable-pip-version-check
              --requirement "${folder}/requirements.txt"
      RESULT_VARIABLE failed ERROR_VARIABLE errors ECHO_ERROR_VARIABLE)
  endif()
  if(NOT failed)
    file(REMOVE_RECURSE "${folder}/temporary")
    file(WRITE "${folder}/complete" "")
    return()
  endif()

  file(REMOVE_RECURSE "${folder}")
  set(removed "The incomplete folder was removed.")
  if(errors MATCHES "No space left|Errno 28|Disk quota exceeded")
    message(FATAL_ERROR "attend: the disk became full during the installation in ${folder}. ${removed} ${disk_full}")
  elseif(errors MATCHES "ConnectionError|ConnectTimeout|NameResolutionError|ProxyError|SSLError|timed out")
    message(FATAL_ERROR
      "attend: pip could not reach its package index. ${removed} Connect to the network, or configure pip for an index or "
      "proxy that can be reached (pip config, PIP_INDEX_URL), and run this again. Without a network, use a LibTorch on "
      "this machine: -DCMAKE_PREFIX_PATH=<folder of LibTorch> and -DATTEND_PROVISION=OFF.")
  else()
    string(REGEX MATCH "[^\n]*\n?[^\n]*\n?[^\n]*$" errors "${errors}")
    message(FATAL_ERROR
      "attend: Python ${python_VERSION} (${python_EXECUTABLE}) could not install torch ${torch} and the packages of "
      "${ATTEND_PROVISION_REQUIREMENTS}. ${removed} The last lines of pip:\n${errors}\n"
      "If they give no cause, try another Python with -DPython3_EXECUTABLE=<path>: torch 2.15 needs Python 3.11 to 3.14, "
      "older versions of torch need 3.10 to 3.13.")
  endif()
endfunction()

# Sets `result` to a Python with the packages.
function(attend_provision_python result)
  set(python "${Python3_EXECUTABLE}")
  if(NOT python)
    if(NOT EXISTS "${ATTEND_PYTHON}")
      unset(ATTEND_PYTHON CACHE) # the cache was deleted since the last run
    endif()
    find_program(ATTEND_PYTHON NAMES python3 python)
    set(python "${ATTEND_PYTHON}")
  endif()
  attend_probe_python("${python}")
  if(python_VERSION VERSION_LESS 3.10)
    if(python_VERSION)
      set(found "${python} is version ${python_VERSION}")
    elseif(python)
      set(found "${python} cannot be run")
    else()
      set(found "none is on the PATH")
    endif()
    message(FATAL_ERROR
      "attend: Python 3.10 or newer is needed to download LibTorch, but ${found}. Install one (on Debian and Ubuntu: the "
      "package python3-venv), or pass one with -DPython3_EXECUTABLE=<path>.")
  endif()

  # The version of torch with which a Python is used unchanged, and the version for a new environment.
  string(REGEX REPLACE "[+].*" "" found "${python_TORCH}") # removes the build, as in 2.15.0+cpu
  string(REGEX MATCH "^[0-9]+[.][0-9]+" minor "${found}")
  set(fits OFF)
  if(ATTEND_PROVISION_TORCH)
    set(torch "${ATTEND_PROVISION_TORCH}")
    set(wanted "${torch}")
    if(found VERSION_EQUAL torch)
      set(fits ON)
    endif()
  else()
    set(torch 2.15.0)
    if(python_VERSION VERSION_LESS 3.11)
      set(torch 2.14.1)
    endif()
    set(wanted "${attend_TORCH_MINIMUM} to ${attend_TORCH_NEWEST_TESTED}")
    if(minor VERSION_GREATER_EQUAL attend_TORCH_MINIMUM AND minor VERSION_LESS_EQUAL attend_TORCH_NEWEST_TESTED)
      set(fits ON)
    endif()
  endif()
  # An environment of an older attend, which this build tree remembers, is not used again.
  cmake_path(GET python_EXECUTABLE PARENT_PATH bin)
  if(NOT Python3_EXECUTABLE AND EXISTS "${bin}/../complete")
    set(fits OFF)
  endif()
  if(fits AND NOT python_MISSING)
    set(${result} "${python_EXECUTABLE}" PARENT_SCOPE)
    return()
  endif()

  file(READ "${ATTEND_PROVISION_REQUIREMENTS}" requirements)
  string(REPLACE "@ATTEND_PROVISION_TORCH@" "${torch}" requirements "${requirements}")
  set(cuda "")
  if(torch VERSION_GREATER_EQUAL 2.11)
    set(cuda "cuda-toolkit[crt]") # headers that the package of CUDA's runtime includes, and torch does not ask for
  endif()
  string(REPLACE "@ATTEND_PROVISION_CUDA@" "${cuda}" requirements "${requirements}")
  string(SHA256 hash "${requirements}${python_VERSION}${python_HOME}")
  string(SUBSTRING "${hash}" 0 8 hash)
  set(folder "${attend_CACHE}/python-${python_VERSION}-${hash}")
  attend_lock_folder("${folder}")
  if(NOT ready)
    attend_make_environment("${folder}" "${requirements}")
  endif()
  set(${result} "${folder}/bin/python" PARENT_SCOPE)
  if(CMAKE_HOST_WIN32)
    set(${result} "${folder}/Scripts/python.exe" PARENT_SCOPE)
  endif()
endfunction()

attend_provision_python(Python3_EXECUTABLE)
set(ATTEND_PYTHON "${Python3_EXECUTABLE}" CACHE FILEPATH "Python with torch, numpy and matplotlib" FORCE)
message(STATUS "attend: Python with torch, numpy and matplotlib: ${ATTEND_PYTHON}")

# ---- Header-only libraries of the tests and examples ----------------------------------------------------------------

# Creates the INTERFACE target `target` of a header-only library that is missing on this machine. On Debian and similar
# systems the library comes from the system's package, which is downloaded and unpacked without administrator rights.
# Otherwise it comes from the archive of its authors.
function(attend_provision_headers target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "FOLDER;INCLUDE;DEBIAN_PACKAGE;URL;SHA256" "")
  set(folder "${attend_CACHE}/${arg_FOLDER}")
  attend_lock_folder("${folder}")
  if(NOT ready)
    file(MAKE_DIRECTORY "${folder}")
    find_program(apt_get apt-get NO_CACHE)
    find_program(dpkg_deb dpkg-deb NO_CACHE)
    if(apt_get AND dpkg_deb)
      attend_unpack_debian_package(ready)
    endif()
    if(NOT ready)
      attend_unpack_archive(ready)
    endif()
    if(NOT ready)
      file(REMOVE_RECURSE "${folder}")
      message(FATAL_ERROR
        "attend: ${target} is not installed, and could be downloaded neither as the system's package nor from "
        "${arg_URL}. Connect to the network and run this again, or install it (on Debian and Ubuntu: the package "
        "${arg_DEBIAN_PACKAGE}).")
    endif()
    file(WRITE "${folder}/complete" "")
  endif()
  add_library(${target} INTERFACE IMPORTED GLOBAL)
  target_include_directories(${target} SYSTEM INTERFACE "${folder}/include")
  message(STATUS "attend: ${target} in ${folder}")
endfunction()

# The next two functions use variables of attend_provision_headers, which calls them.
function(attend_unpack_debian_package result)
  set(${result} OFF PARENT_SCOPE)
  execute_process(
    COMMAND "${apt_get}" download ${arg_DEBIAN_PACKAGE}
    WORKING_DIRECTORY "${folder}" RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
  if(failed)
    # The package lists of the system are missing or old, so new lists are downloaded into the folder. The system's hooks
    # are turned off, because they are meant for the system's lists.
    message(STATUS "attend: downloading package lists (about 10 MB) into ${folder} for ${arg_DEBIAN_PACKAGE}")
    file(MAKE_DIRECTORY "${folder}/apt/lists/partial" "${folder}/apt/cache/archives/partial")
    file(WRITE "${folder}/apt/configuration"
      "#clear APT::Update::Pre-Invoke;\n#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n"
      "Dir::State::Lists \"${folder}/apt/lists\";\nDir::Cache \"${folder}/apt/cache\";\nAPT::Sandbox::User \"\";\n")
    foreach(command IN ITEMS update "download;${arg_DEBIAN_PACKAGE}")
      execute_process(
        COMMAND "${apt_get}" --config-file "${folder}/apt/configuration" ${command}
        WORKING_DIRECTORY "${folder}" OUTPUT_QUIET ERROR_QUIET)
    endforeach()
    file(REMOVE_RECURSE "${folder}/apt")
  endif()
  file(GLOB package "${folder}/*.deb")
  if(package)
    execute_process(COMMAND "${dpkg_deb}" --extract "${package}" "${folder}" RESULT_VARIABLE failed)
    if(NOT failed)
      file(RENAME "${folder}/usr/include" "${folder}/include")
      set(${result} ON PARENT_SCOPE)
    endif()
  endif()
endfunction()

# FetchContent is not used, because its errors fill pages instead of one message with a remedy.
function(attend_unpack_archive result)
  set(${result} OFF PARENT_SCOPE)
  set(archive "${folder}/archive.tar.gz")
  file(DOWNLOAD "${arg_URL}" "${archive}" STATUS status INACTIVITY_TIMEOUT 60)
  list(POP_FRONT status failed)
  if(failed)
    return()
  endif()
  file(SHA256 "${archive}" hash)
  if(NOT hash STREQUAL arg_SHA256)
    message(WARNING "attend: the file at ${arg_URL} has another SHA-256 hash than the one that attend knows, so it is not used")
    return()
  endif()
  file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${folder}/archive")
  file(RENAME "${folder}/archive/${arg_INCLUDE}" "${folder}/include")
  set(${result} ON PARENT_SCOPE)
endfunction()
