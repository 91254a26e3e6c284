// SPDX-License-Identifier: MIT
#pragma once

/// Marks a function that nvcc compiles for the CPU and for the GPU. With other compilers it expands to nothing.
///
/// The operators of a score_mod and of a mask_mod have it, so that the same struct compiles with nvcc.
#if defined(__CUDACC__)
#define ATTEND_HOST_DEVICE __host__ __device__
#else
#define ATTEND_HOST_DEVICE
#endif

/// Marks a function that is always inlined. A function that is not inlined would be compiled for the baseline
/// instruction set of the build.
#define ATTEND_ALWAYS_INLINE inline __attribute__((always_inline))

/// Unrolls the loop that follows, which has a constant number of steps, at most 16.
#if defined(__clang__) || defined(__CUDA_ARCH__)
#define ATTEND_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)  // nvcc passes the pragma on to g++, and warns that it does not know it
#define ATTEND_UNROLL \
  _Pragma("nv_diagnostic push") _Pragma("nv_diag_suppress 1675") _Pragma("GCC unroll 16") _Pragma("nv_diagnostic pop")
#else
#define ATTEND_UNROLL _Pragma("GCC unroll 16")
#endif

/// Keeps a loop of a GPU kernel as a loop, which takes fewer registers.
#if defined(__CUDA_ARCH__)
#define ATTEND_NO_UNROLL _Pragma("unroll 1")
#else
#define ATTEND_NO_UNROLL
#endif

/// Marks a function that the library attend::compiled may hold. Only that target defines ATTEND_COMPILED.
#if defined(ATTEND_COMPILED)
#define ATTEND_INLINE
#else
#define ATTEND_INLINE inline
#endif
