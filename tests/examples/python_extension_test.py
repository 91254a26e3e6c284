#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compiles examples/python_extension as a user does, and compares it with the dense formula in torch."""

import importlib.util
import math
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "python_extension"
BUILD = Path(os.environ["TORCH_EXTENSIONS_DIR"])

if importlib.util.find_spec("setuptools") is None or shutil.which("ninja") is None:
    print("this Python has no setuptools, or there is no ninja on the PATH")
    sys.exit(77)

import torch  # noqa: E402

sys.path.insert(0, str(EXAMPLE))
import dilated_attention  # noqa: E402


def use_compiler_of_cmake():
    """Sets CXX, which torch uses as compiler, to the compiler of this build without a launcher such as ccache."""
    compiler = os.environ["ATTEND_COMPILER"]
    launcher = os.environ.get("CMAKE_CXX_COMPILER_LAUNCHER")
    if launcher:
        BUILD.mkdir(parents=True, exist_ok=True)
        script = BUILD / Path(compiler).name
        script.write_text(f'#!/bin/sh\nexec {launcher} "{compiler}" "$@"\n')
        script.chmod(0o755)
        compiler = str(script)
    os.environ["CXX"] = compiler


def dense_attention(query, key, value, strength, rate, window, dilation=1):
    """The same in torch's operators. L is the number of queries and of keys."""
    position = torch.arange(query.size(2))
    distance = position[:, None] - position  # (L, L), query − key
    score = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))  # (N, H, L, L)
    score = score - strength[:, None, None] * torch.log(1 + rate[:, None, None] * distance.abs())
    allowed = (0 <= distance) & (distance < window) & (distance % dilation == 0)
    return score.masked_fill(~allowed, -math.inf).softmax(-1) @ value


def inputs(batch, heads, length, width, dtype=torch.float64):
    """query, key, value, strength and rate, all with gradients."""
    torch.manual_seed(1)
    tensors = [*torch.randn(3, batch, heads, length, width, dtype=dtype).unbind(),
               torch.rand(heads, dtype=dtype) + 0.5, torch.rand(heads, dtype=dtype) + 0.5]
    return [tensor.requires_grad_() for tensor in tensors]


class PythonExtension(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        built = list(EXAMPLE.glob("*.so"))
        assert not built, f"setup.py built {built}, which load() would take: delete it and its folder build"
        use_compiler_of_cmake()
        (BUILD / "dilated_attention_ops" / "lock").unlink(missing_ok=True)  # a killed run may leave it
        cls.attention = staticmethod(dilated_attention.load())

    def compare(self, tensors, exact, tolerance, **options):
        """Compares output and gradients with those of the dense formula for the tensors `exact`."""
        weight = torch.randn_like(exact[2])
        actual, expected = self.attention(*tensors, **options), dense_attention(*exact, **options)
        results = [actual, *torch.autograd.grad((actual * weight).sum(), tensors)]
        wanted = [expected, *torch.autograd.grad((expected * weight).sum(), exact)]
        for name, result, want in zip(("output", "query", "key", "value", "strength", "rate"), results, wanted):
            with self.subTest(name):
                error = (result - want).abs().max() / want.abs().max()
                self.assertLess(error.item(), tolerance)

    def test_output_and_gradients_equal_the_dense_formula(self):
        for options in ({"window": 70}, {"window": 70, "dilation": 3}, {"window": 10_000}):
            with self.subTest(options):
                tensors = inputs(2, 3, 130, 16)
                self.compare(tensors, tensors, 1e-12, **options)

    def test_float32_is_close_to_float64(self):
        tensors = inputs(2, 3, 130, 16, torch.float32)
        exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
        self.compare(tensors, exact, 1e-5, window=70, dilation=3)

    def test_gradients_pass_gradcheck_and_gradgradcheck(self):
        small = inputs(1, 2, 7, 3)
        for attention in (self.attention, dense_attention):
            self.assertTrue(torch.autograd.gradcheck(lambda *x: attention(*x, window=5, dilation=2), small))
        self.assertTrue(torch.autograd.gradgradcheck(lambda *x: self.attention(*x, window=5, dilation=2), small))

    def test_invalid_arguments_raise_value_error(self):
        *tensors, rate = inputs(1, 2, 7, 3)
        with self.assertRaisesRegex(ValueError, "strength and rate must have 2 values each"):
            self.attention(*tensors, rate[:1], window=5)
        with self.assertRaisesRegex(ValueError, "window must be between 1 and"):
            self.attention(*tensors, rate, window=0)
        with self.assertRaisesRegex(ValueError, "dilation must be between 1 and"):
            self.attention(*tensors, rate, window=5, dilation=0)

    def test_flex_attention_of_pytorch_has_no_gradients_on_the_cpu(self):
        from torch.nn.attention.flex_attention import flex_attention
        query, key, value, *_ = inputs(1, 2, 128, 16, torch.float32)
        with self.assertRaisesRegex(NotImplementedError, "backward"):
            flex_attention(query, key, value)

    def test_the_program_learns_the_penalty(self):
        output = subprocess.run([sys.executable, EXAMPLE / "dilated_attention.py"], check=True, capture_output=True,
                                text=True).stdout
        losses = [float(line.split()[-1]) for line in output.splitlines() if line.startswith("step")]
        self.assertEqual(len(losses), 4)
        self.assertLess(losses[-1], losses[0] / 100)
        strength = next(line for line in output.splitlines() if line.startswith("strength"))
        for value, wanted in zip(eval(strength.split(":")[1]), (0.5, 1.0, 1.5, 2.0)):
            self.assertAlmostEqual(value, wanted, delta=0.1)

    def test_setup_py_builds_the_library_that_load_uses(self):
        # Built in a copy, because the library is written beside setup.py.
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "examples" / "python_extension"
            copy.mkdir(parents=True)
            for file in EXAMPLE.glob("*.*"):
                if file.is_file() and file.suffix != ".so":
                    shutil.copy(file, copy)
            (Path(folder) / "include").symlink_to(EXAMPLE.parents[1] / "include")
            result = subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=copy,
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            self.assertEqual(result.returncode, 0, result.stdout)
            program = ("import torch, dilated_attention\n"
                       "q = torch.ones(1, 1, 4, 8, requires_grad=True)\n"
                       "one = torch.ones(1)\n"
                       "dilated_attention.load()(q, q, q, one, one, window=2).sum().backward()\n"
                       "print(q.grad.shape)\n")
            result = subprocess.run([sys.executable, "-c", program], cwd=copy, capture_output=True, text=True,
                                    env={**os.environ, "TORCH_EXTENSIONS_DIR": f"{folder}/unused"})
            self.assertEqual(result.stdout, "torch.Size([1, 1, 4, 8])\n", result.stderr)
            self.assertFalse((Path(folder) / "unused").exists())


if __name__ == "__main__":
    unittest.main()
