# SPDX-License-Identifier: MIT
"""Tests when attend::cuda exists: with CUDA's headers beside LibTorch, and only if they are complete."""

import pathlib
import subprocess
import tempfile
import unittest

PROJECT = pathlib.Path(__file__).resolve().parents[2]
LISTS = """cmake_minimum_required(VERSION 3.22)
project(user NONE)
add_library(attend::attend INTERFACE IMPORTED)
set(attend_TORCH_VERSION 2.15.0)
set(attend_TORCH_ROOT "${CMAKE_CURRENT_SOURCE_DIR}/torch")
set(attend_TORCH_LIBRARY_DIR "${attend_TORCH_ROOT}/lib")
include(attendCuda.cmake)
if(TARGET attend::cuda)
  message(STATUS "attend::cuda exists")
endif()
"""


class CudaHeaders(unittest.TestCase):
    def configure(self, files):
        """The output of CMake for a LibTorch with CUDA 13 and these files of CUDA's package."""
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            contents = {
                "CMakeLists.txt": LISTS,
                # A toolkit of this machine must not be found.
                "attendCuda.cmake": (PROJECT / "cmake" / "attendCuda.cmake").read_text().replace("/usr/local/cuda", ""),
                "torch/lib/libtorch_cuda.so": "",
                "torch/include/caffe2/core/macros.h": '{"CUDA_VERSION", "13.2"}, \\\n',
                "nvidia/cu13/lib/libcudart.so.13": "",
                **files,
            }
            for name, text in contents.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text)
            command = ["cmake", "-S", root, "-B", root / "build", "-DCUDAToolkit_ROOT=" + str(root / "none")]
            run = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={"PATH": "/usr/bin:/bin"}
            )
            self.assertEqual(run.returncode, 0, run.stdout)
            return run.stdout

    RUNTIME = {"nvidia/cu13/include/cuda_runtime_api.h": "#define CUDART_VERSION  13020\n"}

    def test_complete_headers_beside_libtorch_make_the_target(self):
        output = self.configure({**self.RUNTIME, "nvidia/cu13/include/crt/host_defines.h": ""})
        self.assertIn("attend::cuda exists", output)

    def test_headers_without_the_folder_crt_make_no_target(self):
        output = self.configure(self.RUNTIME)
        self.assertNotIn("attend::cuda exists", output)
        self.assertIn('lack the folder crt; pip install "cuda-toolkit[crt]" adds it', output)


if __name__ == "__main__":
    unittest.main()
