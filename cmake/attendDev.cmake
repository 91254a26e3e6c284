# SPDX-License-Identifier: MIT
#
# Settings of attend's own programs: warnings, sanitizers, ccache, CUDA. They do not affect users of the library.

set(ATTEND_SANITIZE "" CACHE STRING "Sanitizers for attend's own programs, for example address,undefined")

if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release)
endif()

# This Python draws the figures and computes the expected results of tests.
if(Python3_EXECUTABLE)
  set(ATTEND_PYTHON "${Python3_EXECUTABLE}")
else()
  find_program(ATTEND_PYTHON NAMES python3 python REQUIRED)
endif()

set(CMAKE_CXX_EXTENSIONS OFF) # attend must compile as standard C++20

find_program(ATTEND_CCACHE ccache)
mark_as_advanced(ATTEND_CCACHE)
if(ATTEND_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # ccache accepts precompiled headers only with this sloppiness. The base folder makes results usable in a clone in
  # another folder.
  set(CMAKE_CXX_COMPILER_LAUNCHER
      "${CMAKE_COMMAND}" -E env "CCACHE_SLOPPINESS=pch_defines,time_macros" "CCACHE_BASEDIR=${PROJECT_SOURCE_DIR}"
      CCACHE_NOHASHDIR=1 "${ATTEND_CCACHE}")
endif()

# attend's own programs link to attend_dev, and those without LibTorch to attend_dev_kernels.
add_library(attend_dev_kernels INTERFACE)
target_link_libraries(attend_dev_kernels INTERFACE attend::kernels)
add_library(attend_dev INTERFACE)
target_link_libraries(attend_dev INTERFACE attend_dev_kernels attend::attend)
target_compile_options(attend_dev_kernels INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic>
  # g++ 12 warns about inlined code of std::string (GCC bug 105651).
  $<$<AND:$<COMPILE_LANG_AND_ID:CXX,GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-restrict>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>)
if(ATTEND_SANITIZE)
  target_compile_options(attend_dev_kernels INTERFACE
    -fsanitize=${ATTEND_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(attend_dev_kernels INTERFACE -fsanitize=${ATTEND_SANITIZE})
endif()

# ---- CUDA, if there are a compiler and .cu files --------------------------------------------------------------------

set(cuda_sources)
if(ATTEND_BUILD_TESTS)
  file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS tests/*.cu)
endif()
if(ATTEND_BUILD_BENCHMARKS)
  file(GLOB_RECURSE benchmark_sources CONFIGURE_DEPENDS benchmarks/*.cu)
  list(APPEND cuda_sources ${benchmark_sources})
endif()
if(ATTEND_BUILD_EXAMPLES)
  file(GLOB_RECURSE example_sources CONFIGURE_DEPENDS examples/*.cu)
  list(APPEND cuda_sources ${example_sources})
endif()
if(cuda_sources)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    # CMake's own default is the oldest GPU that the compiler supports.
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
      set(CMAKE_CUDA_ARCHITECTURES 80 90)
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    enable_language(CUDA)
    if(NOT "cuda_std_20" IN_LIST CMAKE_CUDA_COMPILE_FEATURES) # CMake 3.25 does not know that nvcc supports C++20
      string(APPEND CMAKE_CUDA_FLAGS " --std=c++20")
    endif()
    string(APPEND CMAKE_CUDA_FLAGS " --diag-error=20011") # a call of a host function in device code; see docs/cuda.md
  else()
    message(STATUS "attend: no CUDA compiler was found, so the .cu files are not built")
  endif()
endif()

# ---- Header-only libraries that the tests and examples use ----------------------------------------------------------

# Finds the library `package`, or downloads it. The other arguments are those of attend_provision_headers.
function(attend_need package target)
  find_package(${package} QUIET)
  if(TARGET ${target})
    return()
  endif()
  if(ATTEND_PROVISION)
    attend_provision_headers(${target} ${ARGN})
  else()
    message(FATAL_ERROR "attend: the tests or examples need ${package}, which was not found. Install it, or let attend "
                        "download it with -DATTEND_PROVISION=ON.")
  endif()
endfunction()

function(attend_need_doctest)
  attend_need(doctest doctest::doctest
    FOLDER doctest-2.4.9
    INCLUDE doctest-2.4.9
    DEBIAN_PACKAGE doctest-dev
    URL https://github.com/doctest/doctest/archive/v2.4.9.tar.gz
    SHA256 19b2df757f2f3703a5e63cee553d85596875f06d91a3333acd80a969ef210856)
endfunction()

function(attend_need_cli11)
  attend_need(CLI11 CLI11::CLI11
    FOLDER cli11-2.1.2
    INCLUDE CLI11-2.1.2/include
    DEBIAN_PACKAGE libcli11-dev
    URL https://github.com/CLIUtils/CLI11/archive/v2.1.2.tar.gz
    SHA256 26291377e892ba0e5b4972cdfd4a2ab3bf53af8dac1f4ea8fe0d1376b625c8cb)
endfunction()
