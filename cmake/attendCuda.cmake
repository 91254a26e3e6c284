# SPDX-License-Identifier: MIT
#
# Creates the target attend::cuda: attend::attend with CUDA's headers and CUDA's runtime, which
# <attend/training/cuda_graph.h> needs. Included by attend's own build and by find_package(attend), after attend::attend
# exists.
#
# If LibTorch was built without CUDA, or CUDA's headers are missing, the target is not created; this is not an error.
# find_package(CUDAToolkit) is not called, because its cache entries would affect a later call by the user.

function(attend_make_cuda)
  set(parts)
  if(attend_TORCH_VERSION AND attend_TORCH_VERSION VERSION_LESS 2.9)
    message(STATUS "attend: there is no target attend::cuda, because CUDA graphs need LibTorch 2.9 or newer")
    return()
  endif()
  if(TARGET torch::cudart) # find_package(Torch) was called and has found a toolkit
    set(parts torch::cudart)
  elseif(attend_TORCH_ROOT AND EXISTS "${attend_TORCH_LIBRARY_DIR}/libtorch_cuda.so")
    file(STRINGS "${attend_TORCH_ROOT}/include/caffe2/core/macros.h" wanted REGEX "\"CUDA_VERSION\"")
    string(REGEX MATCH "[0-9]+" wanted "${wanted}")
    # First the CUDA libraries of the wheel, which LibTorch itself loads. Wheels for CUDA 12 have a folder for each part.
    file(GLOB roots "${attend_TORCH_ROOT}/../nvidia/cu${wanted}" "${attend_TORCH_ROOT}/../nvidia/cuda_runtime")
    foreach(root IN ITEMS ${roots} "${CUDAToolkit_ROOT}" "$ENV{CUDA_HOME}" "$ENV{CUDA_PATH}" /usr/local/cuda)
      set(header "${root}/include/cuda_runtime_api.h")
      file(GLOB runtime "${root}/lib/libcudart.so*" "${root}/lib64/libcudart.so*")
      if(parts OR NOT root OR NOT runtime OR NOT EXISTS "${header}")
        continue()
      endif()
      if(NOT EXISTS "${root}/include/crt/host_defines.h") # which the header includes
        message(STATUS "attend: there is no target attend::cuda, which only CUDA graphs need, because CUDA's headers in "
          "${root} lack the folder crt; pip install \"cuda-toolkit[crt]\" adds it")
        continue()
      endif()
      file(STRINGS "${header}" found REGEX "^#define CUDART_VERSION +${wanted}[0-9][0-9][0-9]") # 13000 is version 13.0
      if(found)
        list(GET runtime 0 parts)
        set(include "${root}/include")
      endif()
    endforeach()
  endif()
  if(parts)
    add_library(attend::cuda INTERFACE IMPORTED GLOBAL)
    target_link_libraries(attend::cuda INTERFACE attend::attend "${parts}")
    target_include_directories(attend::cuda SYSTEM INTERFACE ${include})
  endif()
endfunction()

if(NOT TARGET attend::cuda)
  attend_make_cuda()
endif()
