# SPDX-License-Identifier: MIT
#
# Makes the target attend::torch: LibTorch's headers and libraries, and nothing else. Used by attend's own build and,
# installed beside attendConfig.cmake, by find_package(attend).
#
# A target `torch` that exists already wins. Otherwise this file looks for LibTorch by itself, because
# find_package(Torch) stops without a CUDA toolkit, enables the CUDA language and changes the user's CUDA flags. It may
# still be called afterwards: no name that it uses is taken here.
#
# Sets attend_TORCH_ROOT and attend_TORCH_VERSION, or attend_TORCH_ERROR, a message for the caller to pass on.

set(attend_TORCH_MINIMUM 2.11)
unset(attend_TORCH_ERROR)

if(TARGET attend::torch)
  return()
endif()

if(TARGET torch)
  if(DEFINED Torch_VERSION AND Torch_VERSION VERSION_LESS attend_TORCH_MINIMUM)
    string(CONCAT attend_TORCH_ERROR
      "attend needs LibTorch ${attend_TORCH_MINIMUM} or newer, but the target `torch` of this build is version "
      "${Torch_VERSION}, from ${Torch_DIR}\n")
    return()
  endif()
  set(attend_TORCH_VERSION "${Torch_VERSION}")
  message(STATUS "attend: LibTorch ${Torch_VERSION} by the target `torch`")
  add_library(attend::torch INTERFACE IMPORTED GLOBAL)
  target_link_libraries(attend::torch INTERFACE torch)
  return()
endif()

# Sets `result` to the first of the given folders that holds LibTorch, or to nothing.
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

function(attend_find_torch result)
  # What the user says comes first. A hint that leads nowhere is an error: another LibTorch would be a silent choice.
  if(Torch_DIR)
    attend_first_torch_root(root "${Torch_DIR}/../../..")
    set(${result} "${root}" PARENT_SCOPE)
    return()
  endif()

  # An entry is LibTorch's root itself, or what torch.utils.cmake_prefix_path prints: root/share/cmake.
  cmake_path(CONVERT "$ENV{CMAKE_PREFIX_PATH}" TO_CMAKE_PATH_LIST environment)
  set(folders)
  foreach(prefix IN LISTS CMAKE_PREFIX_PATH environment)
    list(APPEND folders "${prefix}" "${prefix}/../..")
  endforeach()
  attend_first_torch_root(root ${folders})
  set(${result} "${root}" PARENT_SCOPE)
  if(root)
    return()
  endif()

  # The Python on the PATH is remembered, so that a later run from another shell finds the same LibTorch.
  set(python "${Python3_EXECUTABLE}")
  if(NOT python)
    find_program(ATTEND_PYTHON NAMES python3 python DOC "Python whose LibTorch is used")
    mark_as_advanced(ATTEND_PYTHON)
    set(python "${ATTEND_PYTHON}")
  endif()
  # find_spec does not import the package, which would take seconds.
  execute_process(
    COMMAND "${python}" -c "import importlib.util as i; print(i.find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  attend_first_torch_root(root "${folder}")
  set(${result} "${root}" PARENT_SCOPE)
  set(attend_TORCH_ASKED "Python was asked, and has no package torch: ${python}\n" PARENT_SCOPE)
endfunction()

attend_find_torch(attend_TORCH_ROOT)
if(NOT attend_TORCH_ROOT)
  string(CONCAT attend_TORCH_ERROR
    "attend needs LibTorch ${attend_TORCH_MINIMUM} or newer, and found none. Name it in one of three ways:\n"
    "  -DCMAKE_PREFIX_PATH=<folder of LibTorch, the one with include/ and lib/>\n"
    "  -DTorch_DIR=<folder of LibTorch>/share/cmake/Torch\n"
    "  a Python that has the package torch: first on the PATH, or -DPython3_EXECUTABLE=<path>\n"
    "${attend_TORCH_ASKED}")
  if(Torch_DIR)
    string(APPEND attend_TORCH_ERROR "Torch_DIR is set, but there is no LibTorch around it: ${Torch_DIR}\n")
  endif()
  return()
endif()

# Where the version is written has moved: from the C++ API to the headers that need no library.
set(attend_TORCH_VERSION_FILE "${attend_TORCH_ROOT}/include/torch/headeronly/version.h")
if(NOT EXISTS "${attend_TORCH_VERSION_FILE}")
  set(attend_TORCH_VERSION_FILE "${attend_TORCH_ROOT}/include/torch/csrc/api/include/torch/version.h")
endif()
file(STRINGS "${attend_TORCH_VERSION_FILE}" attend_TORCH_VERSION
     REGEX "^#define TORCH_VERSION_(MAJOR|MINOR|PATCH) +[0-9]+")
list(TRANSFORM attend_TORCH_VERSION REPLACE "[^0-9]" "")
list(JOIN attend_TORCH_VERSION "." attend_TORCH_VERSION)
if(attend_TORCH_VERSION VERSION_LESS attend_TORCH_MINIMUM)
  string(CONCAT attend_TORCH_ERROR
    "attend needs LibTorch ${attend_TORCH_MINIMUM} or newer, but found version ${attend_TORCH_VERSION} in "
    "${attend_TORCH_ROOT}. Install a newer one (for example with: pip install torch) and name it by "
    "CMAKE_PREFIX_PATH, Torch_DIR or Python3_EXECUTABLE.\n")
  return()
endif()
message(STATUS "attend: LibTorch ${attend_TORCH_VERSION} in ${attend_TORCH_ROOT}")

add_library(attend::torch INTERFACE IMPORTED GLOBAL)
target_include_directories(attend::torch SYSTEM INTERFACE
  "${attend_TORCH_ROOT}/include" "${attend_TORCH_ROOT}/include/torch/csrc/api/include")
foreach(attend_library IN ITEMS torch torch_cuda c10_cuda torch_cpu c10)
  set(attend_library
      "${attend_TORCH_ROOT}/lib/${CMAKE_SHARED_LIBRARY_PREFIX}${attend_library}${CMAKE_SHARED_LIBRARY_SUFFIX}")
  if(EXISTS "${attend_library}")
    list(APPEND attend_TORCH_LIBRARIES "${attend_library}") # a full path, so that CMake sets the run path of a build
  endif()
endforeach()
if(NOT APPLE)
  # Nothing refers to torch_cuda by name, but without it there is no GPU: it registers its kernels when it is loaded.
  list(PREPEND attend_TORCH_LIBRARIES "-Wl,--push-state,--no-as-needed")
  list(APPEND attend_TORCH_LIBRARIES "-Wl,--pop-state")
endif()
target_link_libraries(attend::torch INTERFACE ${attend_TORCH_LIBRARIES})
unset(attend_TORCH_LIBRARIES)
