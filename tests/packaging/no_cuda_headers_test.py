# SPDX-License-Identifier: MIT
"""Tests that including attend opens no header of a CUDA toolkit."""

import os
import pathlib
import subprocess
import unittest

HERE = pathlib.Path(__file__).resolve().parent
TORCH = os.environ["ATTEND_TORCH_ROOT"]


class NoCudaHeaders(unittest.TestCase):
    def test_including_attend_opens_no_header_of_a_cuda_toolkit(self):
        command = [os.environ["ATTEND_COMPILER"], "-std=c++20", "-fsyntax-only", "-H", HERE / "consumer/apply.cpp"]
        command += [f"-I{HERE.parents[1]}/include", "-isystem", f"{TORCH}/include"]
        command += ["-isystem", f"{TORCH}/include/torch/csrc/api/include"]
        run = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        self.assertEqual(run.returncode, 0, run.stderr[-2000:])
        opened = [line.lstrip(".").strip() for line in run.stderr.splitlines() if line.startswith(".")]
        self.assertIn(f"{HERE.parents[1]}/include/attend/attend.h", map(os.path.normpath, opened))
        # LibTorch also has headers with such names. They need no toolkit.
        cuda = [path for path in opened if not path.startswith(f"{TORCH}/include/")]
        cuda = [path for path in cuda if any(word in path.lower() for word in ("cuda", "cublas", "cudnn", "nvidia"))]
        self.assertEqual(cuda, [])


if __name__ == "__main__":
    unittest.main()
