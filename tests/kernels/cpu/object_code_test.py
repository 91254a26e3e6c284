# SPDX-License-Identifier: MIT
"""Inspects the instructions that compilers generate for the CPU kernels in a user's build with -O2.

The kernels must use full-width vectors. Other code must have no instruction that an older processor lacks.
"""

import os
import pathlib
import platform
import re
import shutil
import subprocess
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
TORCH = os.environ["ATTEND_TORCH_ROOT"]

FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
INSTRUCTION = re.compile(r"^\s+[0-9a-f]+:\s+(?:(?:rep|repz|repnz|lock|notrack|bnd|data16|cs) )*(\S+)\s*(.*)$")
RELOCATION = re.compile(r"^\s+[0-9a-f]+: R_X86_64_(?:PLT32|PC32)\s+(.+)-0x4$")
KERNEL = re.compile(
    r"attend::simd::CompiledFor<attend::simd::(\w+)(?:<[0-9, ]+>)?, attend::(?:cpu|simd)::(\w+)(?:<(\w+)\b.*)? ?>::call<")
REGISTER = {"Avx2": "%ymm", "Avx512": "%zmm", "Avx512Bf16": "%zmm"}


def compilers():
    """The compiler of this build, and clang++ if it is installed."""
    found = [os.environ["ATTEND_COMPILER"], shutil.which("clang++")]
    names = {}
    for path in found:
        if path:
            names.setdefault(os.path.realpath(path), path)
    return list(names.values())


class Function:
    """The instructions of one function, as (mnemonic, operands)."""

    def __init__(self, name):
        self.name = name
        self.instructions = []
        self.called = []  # names of functions that it calls or jumps to

    def count(self, mnemonic, operand=""):
        return sum(1 for m, operands in self.instructions if re.fullmatch(mnemonic, m) and operand in operands)


def functions_of(object_file):
    """All functions of an object file."""
    command = ["objdump", "--disassemble", "--reloc", "--demangle", "--no-show-raw-insn", "--wide", object_file]
    text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    functions = []
    for line in re.sub(r"\battend::v\d+_\d+_\d+::", "attend::", text).splitlines():  # no version namespace
        if match := FUNCTION.match(line):
            functions.append(Function(match[1]))
        elif match := RELOCATION.match(line):
            if re.match("j|call", functions[-1].instructions[-1][0]):
                functions[-1].called.append(match[1])
        elif match := INSTRUCTION.match(line):
            functions[-1].instructions.append((match[1], match[2].split("#")[0].split("<")[0]))
    return functions


def kernels_of(functions):
    """{(instruction set, operation, number type or None): function}"""
    kernels = {}
    for function in functions:
        if match := KERNEL.search(function.name):
            kernels[match.groups()] = function
    return kernels


@unittest.skipUnless(platform.machine() in ("x86_64", "AMD64"), "only x86-64 has instruction sets to choose from")
class ObjectCode(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.functions, cls.errors = {}, {}
        with tempfile.TemporaryDirectory() as folder:
            for compiler in compilers():
                object_file = f"{folder}/object_code.o"
                command = [compiler, "-std=c++20", "-O2", "-c", HERE / "object_code.cpp", "-o", object_file]
                command += [f"-I{HERE.parents[2]}/include", "-isystem", f"{TORCH}/include"]
                command += ["-isystem", f"{TORCH}/include/torch/csrc/api/include"]
                run = subprocess.run(command, stderr=subprocess.PIPE, text=True)
                # An error of one compiler must not hide the results of another.
                if run.returncode:
                    cls.errors[compiler] = run.stderr[-3000:]
                else:
                    cls.functions[compiler] = functions_of(object_file)

    def kernels(self, instruction_sets, operation=None, number=None):
        """(compiler, instruction set, function) of every kernel that matches."""
        for compiler, functions in self.functions.items():
            for (instruction_set, name, of), function in kernels_of(functions).items():
                if instruction_set in instruction_sets and operation in (None, name) and number in (None, of):
                    yield compiler, instruction_set, function

    def test_every_compiler_compiles_the_kernels(self):
        self.assertEqual(self.errors, {})

    def test_every_kernel_exists_for_every_instruction_set(self):
        for compiler, functions in self.functions.items():
            with self.subTest(compiler=compiler):
                kernels = kernels_of(functions)
                for operation in ("Product", "SoftmaxStep", "SoftmaxGradient", "ApplyVariant"):
                    for instruction_set in ("PortableOf", "Avx2", "Avx512"):
                        self.assertIn((instruction_set, operation, "float"), kernels)
                self.assertIn(("Avx512Bf16", "Product", "unsigned"), kernels)

    def test_products_use_fused_multiply_add_on_whole_registers(self):
        for compiler, instruction_set, function in self.kernels(["Avx2", "Avx512"], "Product", "float"):
            with self.subTest(compiler=compiler, instruction_set=instruction_set):
                panel = 4 * 4 if instruction_set == "Avx512" else 6 * 2
                self.assertGreaterEqual(function.count(r"vfmadd\d+ps", REGISTER[instruction_set]), panel)
                self.assertEqual(function.count(r"vfmadd\d+ss"), 0)

    def test_products_of_bfloat16_use_its_instruction(self):
        for compiler, _, function in self.kernels(["Avx512Bf16"], "Product"):
            with self.subTest(compiler=compiler):
                self.assertGreaterEqual(function.count("vdpbf16ps", "%zmm"), 16)

    def test_a_score_mod_is_vectorized_with_and_without_its_derivative(self):
        for compiler, instruction_set, function in self.kernels(["Avx2", "Avx512"], "ApplyVariant", "float"):
            with self.subTest(compiler=compiler, instruction_set=instruction_set):
                # One division for the score alone, and at least one for the score with its derivative.
                self.assertGreaterEqual(function.count("vdivps", REGISTER[instruction_set]), 2)
                self.assertEqual(function.count("vdivss"), 0)

    def test_nothing_is_called_from_a_kernel(self):
        # What is not drawn in is compiled for the oldest processor; but the C library's own choose for themselves.
        for compiler, instruction_set, function in self.kernels(["PortableOf", *REGISTER]):
            with self.subTest(compiler=compiler, function=function.name[:120]):
                self.assertEqual([name for name in function.called if name not in ("memset", "memcpy", "memmove")], [])
                if "Product" in function.name or "ApplyVariant" in function.name:
                    self.assertEqual(function.count("callq?"), 0)

    def test_other_functions_run_on_a_processor_without_avx(self):
        for compiler, functions in self.functions.items():
            for function in functions:
                match = KERNEL.search(function.name)
                if match and match[1] in REGISTER:
                    continue
                newer = [i for i in map(" ".join, function.instructions) if re.search(r"%[yz]mm|^v.*%xmm", i)]
                with self.subTest(compiler=compiler, function=function.name[:120]):
                    self.assertEqual(newer, [])


if __name__ == "__main__":
    unittest.main()
