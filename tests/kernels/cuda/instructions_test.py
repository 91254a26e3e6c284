# SPDX-License-Identifier: MIT
"""Tests that what only a GPU has stands in instructions.cuh, so that all other code of a kernel also runs on the host."""

import pathlib
import re
import unittest

HEADERS = pathlib.Path(__file__).resolve().parents[3] / "include/attend/kernels/cuda"

# The names with two underscores that other headers may use. So every intrinsic is found, also one that is not known here.
ALLOWED = re.compile(r"__(builtin_\w+|global__|grid_constant__|launch_bounds__|host__|device__|attribute__|restrict__)$")
FORBIDDEN = re.compile(r"\b(asm|threadIdx|blockIdx|blockDim|gridDim|warpSize)\b|#\s*include\s*<(cuda_|mma|cooperative)\w*")
# shared.cuh loads and stores 8 and 16 bytes by CUDA's vectors. Launches need the runtime.
EXCEPTIONS = {"shared.cuh": {"__CUDA_ARCH__"}}
RUNTIME = re.compile(r"launch\w*\.cuh$")


def violations(name, text):
    """What a header uses and must not."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/|\"(\\.|[^\"\\])*\"", "", text, flags=re.DOTALL)
    if RUNTIME.search(name):
        text = re.sub(r"#\s*include\s*<cuda_runtime\w*\.h>", "", text)
    found = [match.group() for match in FORBIDDEN.finditer(text)]
    found += [word for word in re.findall(r"\b__\w+", text)
              if not ALLOWED.match(word) and word not in EXCEPTIONS.get(name, ())]
    return sorted(set(found))


class Instructions(unittest.TestCase):
    def test_no_other_header_uses_what_only_a_gpu_has(self):
        headers = [path for path in HEADERS.rglob("*") if path.suffix in (".h", ".cuh")]
        self.assertIn(HEADERS / "instructions.cuh", headers)
        for path in headers:
            if path.name != "instructions.cuh":
                with self.subTest(header=path.name):
                    self.assertEqual(violations(path.name, path.read_text()), [])

    def test_each_use_is_reported(self):
        for text in ("int i = threadIdx.x;", "asm volatile(\"bar.sync 0;\");", "__syncthreads();", "__shared__ float x[2];",
                     "x = __shfl_xor_sync(~0u, x, 1);", "y = __expf(x);", "#if defined(__CUDA_ARCH__)", "#ifdef __CUDACC__",
                     "#include <cuda_fp16.h>", "#include <mma.h>", "#include <cuda_runtime.h>"):
            with self.subTest(text=text):
                self.assertEqual(len(violations("forward.cuh", text)), 1)

    def test_comments_and_launches_are_no_uses(self):
        self.assertEqual(violations("forward.cuh", "// threadIdx, asm\n/* __shared__ */ const char* x = \"__syncwarp\";"), [])
        self.assertEqual(violations("launch.cuh", "#include <cuda_runtime.h>\n__global__ void f(__grid_constant__ const int);"),
                         [])


if __name__ == "__main__":
    unittest.main()
