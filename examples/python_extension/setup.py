# SPDX-License-Identifier: MIT
"""Compiles the operator in advance: python setup.py build_ext --inplace"""

from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

from dilated_attention import FLAGS, INCLUDE

setup(
    name="dilated_attention",
    version="0.1.0",
    py_modules=["dilated_attention"],
    ext_modules=[CppExtension("dilated_attention_ops", [str(Path(__file__).with_name("dilated_attention.cpp"))],
                              include_dirs=INCLUDE, extra_compile_args=FLAGS)],
    cmdclass={"build_ext": BuildExtension},
)
