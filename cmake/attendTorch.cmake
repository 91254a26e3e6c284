# SPDX-License-Identifier: MIT
#
# Creates the target attend::torch: only LibTorch's headers and libraries. Included by attend's own build and, installed
# beside attendConfig.cmake, by find_package(attend).
#
# If a target `torch` already exists, it is used. Otherwise this file searches for LibTorch. It does not call
# find_package(Torch), which fails without a CUDA toolkit, enables the CUDA language and changes the user's CUDA flags.
# The user may still call find_package(Torch) afterwards, because this file uses none of its names.
#
# The order of the search follows. If Torch_DIR, or a Python3_EXECUTABLE given by -D, has no LibTorch, that is an error:
# another LibTorch must not be chosen silently.
#   1. Torch_DIR
#   2. CMAKE_PREFIX_PATH, the variable of CMake and then the one of the environment
#   3. the package torch of Python3_EXECUTABLE, if the user set it by -D; otherwise the package torch of the Python that
#      find_package(Python3) found, or of the one on the PATH
#   4. CMake's system prefixes (/usr/local, /usr, ...). They come last because an active virtual environment was chosen on
#      purpose, and the LibTorch of a distribution is often too old.
#
# Sets attend_TORCH_ROOT, attend_TORCH_LIBRARY_DIR and attend_TORCH_VERSION, or attend_TORCH_ERROR, an error message for
# the caller.

# A test compares the other files that name these versions with these two lines.
set(attend_TORCH_MINIMUM 2.7)
set(attend_TORCH_NEWEST_TESTED 2.15)
unset(attend_TORCH_ERROR)

if(TARGET attend::torch)
  return()
endif()

# Sets `result` to the first of the given folders that has LibTorch's headers, or to nothing.
function(attend_first_torch_root result)
  set(${result} "" PARENT_SCOPE)
  foreach(folder IN LISTS ARGN)
    get_filename_component(folder "${folder}" ABSOLUTE)
    if(EXISTS "${folder}/include/torch/csrc/api/include/torch/version.h")
      set(${result} "${folder}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

# Sets `result` to the root of the LibTorch whose TorchConfig.cmake is in `package`: root/share/cmake/Torch, or in a
# distribution root/lib/<architecture>/cmake/Torch.
function(attend_torch_root_above result package)
  attend_first_torch_root(
    root "${package}" "${package}/.." "${package}/../.." "${package}/../../.." "${package}/../../../..")
  set(${result} "${root}" PARENT_SCOPE)
endfunction()

function(attend_find_torch result)
  if(Torch_DIR)
    attend_torch_root_above(root "${Torch_DIR}")
    set(${result} "${root}" PARENT_SCOPE)
    return()
  endif()

  # An entry is LibTorch's root itself, or the folder of its package, as torch.utils.cmake_prefix_path prints it.
  cmake_path(CONVERT "$ENV{CMAKE_PREFIX_PATH}" TO_CMAKE_PATH_LIST environment)
  foreach(prefix IN LISTS CMAKE_PREFIX_PATH environment)
    attend_first_torch_root(root "${prefix}")
    if(NOT root AND EXISTS "${prefix}/Torch/TorchConfig.cmake")
      attend_torch_root_above(root "${prefix}/Torch")
    endif()
    if(root)
      set(${result} "${root}" PARENT_SCOPE)
      return()
    endif()
  endforeach()

  # The Python on the PATH is cached, so that a later run from another shell finds the same LibTorch.
  set(python "${Python3_EXECUTABLE}")
  if(NOT python)
    find_program(ATTEND_PYTHON NAMES python3 python DOC "Python whose LibTorch is used")
    mark_as_advanced(ATTEND_PYTHON)
    set(python "${ATTEND_PYTHON}")
  endif()
  # find_spec does not import the package, because that would take seconds.
  execute_process(
    COMMAND "${python}" -c "import importlib.util as i; print(i.find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  attend_first_torch_root(root "${folder}")
  if(NOT root AND NOT (Python3_EXECUTABLE AND DEFINED CACHE{Python3_EXECUTABLE}))
    unset(include)
    find_path(include torch/csrc/api/include/torch/version.h
      NO_CACHE NO_PACKAGE_ROOT_PATH NO_CMAKE_PATH NO_CMAKE_ENVIRONMENT_PATH NO_SYSTEM_ENVIRONMENT_PATH)
    if(include)
      attend_first_torch_root(root "${include}/..")
    endif()
  endif()
  set(${result} "${root}" PARENT_SCOPE)
  set(attend_TORCH_ASKED "This Python has no package torch: ${python}\n" PARENT_SCOPE)
endfunction()

# Sets `result` to the version in LibTorch's headers in `root`, or to nothing.
function(attend_read_torch_version result root)
  # Newer versions of LibTorch have the version in another header.
  set(file "${root}/include/torch/headeronly/version.h")
  if(NOT EXISTS "${file}")
    set(file "${root}/include/torch/csrc/api/include/torch/version.h")
  endif()
  file(STRINGS "${file}" numbers REGEX "^#define TORCH_VERSION_(MAJOR|MINOR|PATCH) +[0-9]+")
  list(TRANSFORM numbers REPLACE "[^0-9]" "")
  list(JOIN numbers "." version)
  if(NOT version MATCHES "^[0-9]+\\.[0-9]+\\.[0-9]+$")
    set(version "")
  endif()
  set(${result} "${version}" PARENT_SCOPE)
endfunction()

# Sets `result` to the folder with the libraries of the LibTorch in `root`. If there is none, sets attend_TORCH_ERROR.
function(attend_find_torch_libraries result root)
  if(CMAKE_LIBRARY_ARCHITECTURE)
    set(folders "${root}/lib/${CMAKE_LIBRARY_ARCHITECTURE}")
  else() # no language is enabled, or this compiler has no such folder
    file(GLOB folders "${root}/lib/*-linux-*")
  endif()
  list(APPEND folders "${root}/lib64" "${root}/lib")
  set(torch_cpu "${CMAKE_SHARED_LIBRARY_PREFIX}torch_cpu${CMAKE_SHARED_LIBRARY_SUFFIX}")
  set(c10 "${CMAKE_SHARED_LIBRARY_PREFIX}c10${CMAKE_SHARED_LIBRARY_SUFFIX}")
  foreach(folder IN LISTS folders)
    if(EXISTS "${folder}/${torch_cpu}" AND EXISTS "${folder}/${c10}")
      set(${result} "${folder}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  list(JOIN folders ", " folders)
  set(${result} "" PARENT_SCOPE)
  string(CONCAT message
    "attend found the headers of LibTorch ${attend_TORCH_VERSION} in ${root}, but not its libraries. None of these "
    "folders has both ${torch_cpu} and ${c10}: ${folders}. Install LibTorch's shared libraries there, or pass another "
    "LibTorch with CMAKE_PREFIX_PATH, Torch_DIR or Python3_EXECUTABLE.\n")
  set(attend_TORCH_ERROR "${message}" PARENT_SCOPE)
endfunction()

# ---- Which LibTorch -------------------------------------------------------------------------------------------------

if(TARGET torch)
  set(attend_TORCH_VERSION "${Torch_VERSION}") # empty if the target was not made by find_package(Torch)
  if(attend_TORCH_VERSION AND attend_TORCH_VERSION VERSION_LESS attend_TORCH_MINIMUM)
    string(CONCAT attend_TORCH_ERROR
      "attend needs LibTorch ${attend_TORCH_MINIMUM} or newer, but the target `torch` of this build is version "
      "${Torch_VERSION}, from ${Torch_DIR}\n")
    return()
  endif()
  set(attend_TORCH_PLACE "from the target `torch`")
  if(NOT attend_TORCH_VERSION)
    set(attend_TORCH_PLACE "of unknown version, from the target `torch`")
  endif()
else()
  attend_find_torch(attend_TORCH_ROOT)
  if(NOT attend_TORCH_ROOT)
    string(CONCAT attend_TORCH_ERROR
      "attend needs LibTorch ${attend_TORCH_MINIMUM} or newer, but found none. Pass it in one of three ways:\n"
      "  -DCMAKE_PREFIX_PATH=<folder of LibTorch, the one with include/ and lib/>\n"
      "  -DTorch_DIR=<folder of LibTorch>/share/cmake/Torch\n"
      "  a Python with the package torch: the first one on the PATH, or -DPython3_EXECUTABLE=<path>\n"
      "attend::kernels alone needs no LibTorch: pass -DATTEND_FIND_TORCH=OFF.\n"
      "${attend_TORCH_ASKED}")
    if(Torch_DIR)
      string(APPEND attend_TORCH_ERROR "Torch_DIR is set, but there is no LibTorch around it: ${Torch_DIR}\n")
    endif()
    return()
  endif()

  attend_read_torch_version(attend_TORCH_VERSION "${attend_TORCH_ROOT}")
  if(NOT attend_TORCH_VERSION)
    string(CONCAT attend_TORCH_ERROR
      "attend found LibTorch in ${attend_TORCH_ROOT}, but its file version.h gives no version. Install LibTorch again, "
      "or pass another LibTorch with CMAKE_PREFIX_PATH, Torch_DIR or Python3_EXECUTABLE.\n")
    return()
  endif()
  if(attend_TORCH_VERSION VERSION_LESS attend_TORCH_MINIMUM)
    string(CONCAT attend_TORCH_ERROR
      "attend needs LibTorch ${attend_TORCH_MINIMUM} or newer, but found version ${attend_TORCH_VERSION} in "
      "${attend_TORCH_ROOT}. Install a newer one (for example with: pip install torch) and pass it with "
      "CMAKE_PREFIX_PATH, Torch_DIR or Python3_EXECUTABLE.\n")
    return()
  endif()
  attend_find_torch_libraries(attend_TORCH_LIBRARY_DIR "${attend_TORCH_ROOT}")
  if(NOT attend_TORCH_LIBRARY_DIR)
    return()
  endif()
  set(attend_TORCH_PLACE "in ${attend_TORCH_ROOT}")
endif()

message(STATUS "attend: LibTorch ${attend_TORCH_VERSION} ${attend_TORCH_PLACE}")
string(REGEX MATCH "^[0-9]+\\.[0-9]+" attend_TORCH_MINOR "${attend_TORCH_VERSION}")
if(attend_TORCH_MINOR VERSION_GREATER attend_TORCH_NEWEST_TESTED)
  message(WARNING
    "attend was not tested with LibTorch ${attend_TORCH_VERSION}. The newest tested version is "
    "${attend_TORCH_NEWEST_TESTED}, so the build may fail. If it fails, use a newer attend, or LibTorch "
    "${attend_TORCH_NEWEST_TESTED} (for example with: pip install torch==${attend_TORCH_NEWEST_TESTED}.*).")
endif()
unset(attend_TORCH_MINOR)
unset(attend_TORCH_PLACE)

# ---- The target -----------------------------------------------------------------------------------------------------

add_library(attend::torch INTERFACE IMPORTED GLOBAL)
if(TARGET torch)
  target_link_libraries(attend::torch INTERFACE torch)
  return()
endif()
target_include_directories(attend::torch SYSTEM INTERFACE
  "${attend_TORCH_ROOT}/include" "${attend_TORCH_ROOT}/include/torch/csrc/api/include")
foreach(attend_library IN ITEMS torch torch_cuda c10_cuda torch_cpu c10)
  set(attend_library
      "${attend_TORCH_LIBRARY_DIR}/${CMAKE_SHARED_LIBRARY_PREFIX}${attend_library}${CMAKE_SHARED_LIBRARY_SUFFIX}")
  if(EXISTS "${attend_library}")
    list(APPEND attend_TORCH_LIBRARIES "${attend_library}") # a full path, so that CMake sets the run path of programs in the build folder
  endif()
endforeach()
if(NOT APPLE)
  # torch_cuda registers its kernels when it is loaded. No program refers to it by name, so the linker must keep it.
  list(PREPEND attend_TORCH_LIBRARIES "-Wl,--push-state,--no-as-needed")
  list(APPEND attend_TORCH_LIBRARIES "-Wl,--pop-state")
endif()
target_link_libraries(attend::torch INTERFACE ${attend_TORCH_LIBRARIES})
unset(attend_TORCH_LIBRARIES)
