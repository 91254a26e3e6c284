# SPDX-License-Identifier: MIT
"""Runs the PTX that nvcc makes of the kernels, with ptx_interpreter.py, and compares the results with float64.

The host harness never executes the device half of instructions.cuh. This test does: it finds swapped operands, wrong
address spaces, and a missing `volatile` or "memory". The tests with "mutant" in their names change that half, and
demand that the result is wrong. Without nvcc the program returns 77.
"""

import concurrent.futures
import ctypes
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

import numpy as np

import ptx_interpreter
import ptx_parser
from ptx_arithmetic import bfloat16_bits, from_bfloat16
from ptx_memory import READ, WRITE, GlobalMemory
from ptx_parser import PtxError

HERE = pathlib.Path(__file__).resolve().parent
INCLUDE = HERE.parents[2] / "include"
NVCC = os.environ.get("ATTEND_NVCC") or shutil.which("nvcc")
LIBRARY = os.environ.get("ATTEND_PTX_CALLS")  # ptx_calls.cpp
COMPILER = os.environ.get("ATTEND_COMPILER", "c++")


def ptx_of(source, *folders):
    """The kernels of a .cu file: {name: Kernel}. `folders`: where headers are looked for before attend's own."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder, "kernels.ptx")
        includes = [f"-I{include}" for include in (*folders, INCLUDE, HERE.parents[1])]
        subprocess.run([NVCC, "-std=c++20", "-arch=sm_80", "-ptx", *includes, source, "-o", output], check=True)
        return ptx_parser.parse(output.read_text())


def all_ptx_of(sources):
    """ptx_of() of each (source, *folders), two at a time: nvcc takes most of the time of these tests."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda source: ptx_of(*source), sources))


class Buffers:
    """The arrays that a kernel may read and write."""

    def __init__(self):
        self.arrays = []  # (array, access)

    def add(self, array, access=READ):
        """Returns the address of a copy of the array."""
        memory = np.empty(array.nbytes + 16, np.uint8)
        start = -memory.ctypes.data % 16
        copy = memory[start:start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        self.arrays.append((copy, access))
        return copy.ctypes.data

    def result(self, shape, dtype):
        return self.add(np.frombuffer(b"\xFF" * (int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape),
                        WRITE)

    def launch(self, kernel, arguments, grid=(1, 1, 1), block=128, **options):
        """Runs the kernel and returns the arrays that it may write."""
        memory = GlobalMemory([(array.ctypes.data, array.nbytes, access) for array, access in self.arrays])
        ptx_interpreter.launch(kernel, grid, block, arguments, memory, **options)
        return [array for array, access in self.arrays if access == WRITE]


def halves(array, kind):
    """float64 numbers as float16 or bfloat16, and their bits."""
    if kind == "float16":
        return array.astype(np.float16).astype(np.float64), array.astype(np.float16).view(np.uint16)
    bits = bfloat16_bits(array.astype(np.float32))
    return from_bfloat16(bits).astype(np.float64), bits


def halves_as_float64(bits, kind):
    return (bits.view(np.float16) if kind == "float16" else from_bfloat16(bits)).astype(np.float64)


class Interpreter(unittest.TestCase):
    def test_arithmetic_is_that_of_the_host(self):
        number = np.dtype([("i", "<i4"), ("j", "<i4"), ("u", "<u8"), ("v", "<u8"), ("x", "<f4"), ("y", "<f4"),
                           ("d", "<f8")])
        result = np.dtype([("exact", "<u8", 12), ("close", "<f8", 10)])
        generator = np.random.default_rng(1)
        numbers = np.zeros(300, number)
        for name in "ij":
            numbers[name] = generator.integers(-2**31, 2**31, 300)
        for name in "uv":
            numbers[name] = generator.integers(0, 2**64, 300, np.uint64) >> generator.integers(0, 64, 300, np.uint64)
        numbers["x"], numbers["y"] = generator.normal(0, 20, (2, 300))
        numbers["d"] = generator.normal(0, 3, 300)
        numbers["j"][:3], numbers["x"][3:6] = (0, -1, 1), (0, np.inf, np.nan)
        with tempfile.TemporaryDirectory() as folder:
            library = pathlib.Path(folder, "host.so")
            subprocess.run([COMPILER, "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{INCLUDE}", "-x", "c++",
                            HERE / "ptx_arithmetic.cu", "-o", library], check=True)
            expected = np.zeros(300, result)
            ctypes.CDLL(library).arithmetic_on_host(ctypes.c_void_p(numbers.ctypes.data),
                                                    ctypes.c_void_p(expected.ctypes.data), 300)
        buffers = Buffers()
        arguments = struct.pack("<QQi", buffers.add(numbers), buffers.result(300, result), 300)
        kernel = ptx_of(HERE / "ptx_arithmetic.cu")["arithmetic_kernel"]
        found, = buffers.launch(kernel, arguments, grid=(5, 1, 1), block=64)
        for k in range(12):
            np.testing.assert_array_equal(found["exact"][:, k], expected["exact"][:, k], f"exact[{k}]")
        for k in range(10):
            tolerance = 1e-13 if k in (4, 5, 6) else 3e-6
            np.testing.assert_allclose(found["close"][:, k], expected["close"][:, k], tolerance, tolerance,
                                       err_msg=f"close[{k}]")

    def test_faults_are_named(self):
        """The message for each body of a kernel; None: it has no fault.

        %a is the address of 256 bytes that may be written, %b that of 256 that may not.
        """
        for body, message in (
                ("frobnicate.b32 %r, 1;", "unknown instruction frobnicate.b32"),
                ("add.sat.s32 %r, %r, 1;", "unknown instruction add.sat.s32"),
                ("mov.u32 %r, %other;", "no register or variable %other"),
                (".local .align 4 .b8 depot[16]; ld.local.b32 %r, [depot+16];", "reads local memory at byte 16 of 16"),
                ("ld.global.b32 %r, [%a+256];", "reads global memory that is in no such buffer"),
                ("st.global.b32 [%b], 1;", "writes to global memory that is in no such buffer"),
                ("ld.global.v2.b32 {%r, %r}, [%a+4];", "is no multiple of 8"),
                ("ld.b32 %r, [%a+-4];", "reads global memory that is in no such buffer"),
                ("ld.shared.b32 %r, [array+64];", "reads shared memory at byte 64 of 64"),
                ("ld.shared.b32 %r, [0];", "reads shared memory"),
                ("ld.param.b64 %t, [p_1+8];", "reads parameter memory at byte 16 of 16"),
                ("@%even bra SKIP; shfl.sync.bfly.b32 %r, %r, 1, 31, -1; SKIP:", "only 16 threads of warp 0"),
                ("@%even bra LATE; THERE: shfl.sync.bfly.b32 %r, %r, 1, 31, -1; ret; LATE: bra THERE;", None),
                ("@%even shfl.sync.bfly.b32 %r, %r, 1, 31, -1;", "only 16 threads of warp 0 execute it"),
                ("@%even bra SKIP; bar.sync 0; SKIP:", "only 16 threads of warp 0 execute it"),
                ("setp.lt.u32 %even, %r, 32; @%even bra SKIP; bar.sync 0; bar.sync 0; SKIP: bar.sync 0;", None),
                ("setp.lt.u32 %even, %r, 32; @%even bra SKIP; bar.sync 1; SKIP:", "only barrier 0"),
                ("cp.async.cg.shared.global [array], [%a], 16; cp.async.wait_group 0; ld.shared.f32 %f, [array];"
                 # The copy is in no group, so it has not arrived: the number is still a NaN.
                 "setp.nan.f32 %even, %f, %f; @%even ld.global.b32 %r, [%b+256];", "no such buffer"),
        ):
            with self.subTest(body):
                text = f""".version 9.0
                    .visible .entry k(.param .u64 p_0, .param .u64 p_1) {{
                    .shared .align 16 .b8 array[64];
                    .reg .pred %even; .reg .b32 %r, %s; .reg .f32 %f; .reg .b64 %a, %b, %t;
                    ld.param.u64 %a, [p_0]; ld.param.u64 %b, [p_1];
                    mov.u32 %r, %tid.x; and.b32 %s, %r, 1; setp.eq.s32 %even, %s, 0;
                    {body}
                    ret;
                    }}"""
                if message is None:
                    self.run_ptx(text)
                else:
                    with self.assertRaises(PtxError) as caught:
                        self.run_ptx(text)
                    self.assertIn(message, str(caught.exception))

    @staticmethod
    def run_ptx(text):
        buffers, zeros = Buffers(), np.zeros(256, np.uint8)
        arguments = struct.pack("<QQ", buffers.add(zeros, WRITE), buffers.add(zeros))
        buffers.launch(ptx_parser.parse(text)["k"], arguments, block=64)


# ---- The instructions of instructions.cuh ---------------------------------------------------------------------------

ROWS, INNER = 100, 72  # of tile_product: the last tile of rows and of the inner dimension are not full


def check_tile_product(kernels, kind, order=None):
    """The kernel that uses nearly all functions of instructions.cuh."""
    generator = np.random.default_rng(7)
    a, a_bits = halves(generator.normal(size=(ROWS, INNER)), kind)
    b, b_bits = halves(generator.normal(size=(INNER, 16)), kind)
    buffers = Buffers()
    arguments = struct.pack("<QQQQii", buffers.add(a_bits), buffers.add(b_bits), buffers.result((ROWS, 16), np.uint16),
                            buffers.result((ROWS, 4), np.float32), ROWS, INNER)
    c, sums = buffers.launch(kernels[f"tile_product_{kind}"], arguments, grid=(2, 1, 1), shared_size=10240, order=order)
    c = halves_as_float64(c, kind)
    np.testing.assert_allclose(c, a @ b, atol=1e-3, rtol=2.0**-8 if kind == "bfloat16" else 2.0**-11)
    full_warps = ROWS // 16 * 16
    np.testing.assert_allclose(sums[:full_warps], sums_of_tile_product(a @ b)[:full_warps], atol=1e-3)


def sums_of_tile_product(c):
    """What the shuffles of tile_product make of c: (rows, 4)."""
    rows = np.zeros((-(-len(c) // 16) * 16, 16))
    rows[:len(c)] = c
    of_lane = np.stack([rows[:, 2 * t] + 2 * rows[:, 2 * t + 1] + rows[:, 8 + 2 * t] + 2 * rows[:, 9 + 2 * t]
                        for t in range(4)], axis=1)
    lane = np.arange(4)
    for mask in (1, 2):
        of_lane = of_lane + (1 + lane) * of_lane[:, lane ^ mask]
    of_warp = of_lane.reshape(-1, 32)  # the lanes of rows g, or of rows g + 8
    return (of_warp - np.roll(of_warp, -1, axis=1)).reshape(-1, 4)[:len(c)]


def check_tf32_product(kernels):
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=(16, 8)).astype(np.float32), generator.normal(size=(8, 8)).astype(np.float32)
    buffers = Buffers()
    arguments = struct.pack("<QQQ", buffers.add(a), buffers.add(b), buffers.result((16, 8), np.float32))
    c, = buffers.launch(kernels["tf32_product_kernel"], arguments, block=32)
    np.testing.assert_allclose(c, a.astype(np.float64) @ b, atol=5e-3)


def check_conversions(kernels):
    x = np.concatenate([np.random.default_rng(5).normal(0, 30, 60), [0, -1e-40, 70000, 1.00390625]]).astype(np.float32)
    buffers = Buffers()
    arguments = struct.pack("<QQQ", buffers.add(x), buffers.result((64, 3), np.uint32),
                            buffers.result((64, 5), np.float32))
    bits, values = buffers.launch(kernels["conversions_kernel"], arguments, block=64, shared_size=256)
    pairs = np.stack([x, 2 * x], axis=1)
    with np.errstate(over="ignore"):
        half, power = pairs.astype(np.float16), np.exp2(x.astype(np.float64))
    np.testing.assert_array_equal(bits[:, 0].copy().view(np.float16).reshape(64, 2), half)
    brain = pairs.view(np.uint32).astype(np.int64)
    brain = (brain + 0x7FFF + (brain >> 16 & 1)) >> 16
    np.testing.assert_array_equal(bits[:, 1], brain[:, 0] | brain[:, 1] << 16)
    np.testing.assert_allclose(bits[:, 2].copy().view(np.float32), x, rtol=2.0**-11, atol=1e-38)
    np.testing.assert_array_equal(values[:, 0], half[:, 0])
    np.testing.assert_array_equal(values[:, 1], (brain[:, 0] << 16).astype(np.uint32).view(np.float32))
    power = np.where(power > 3e38, np.inf, np.where(power < 2.0**-126, 0, power))
    np.testing.assert_allclose(values[:, 2], power, 1e-6)
    np.testing.assert_array_equal(values[:, 3], np.arange(64) >= 32)  # only one warp has a value above 1000
    np.testing.assert_allclose(values[:, 4], x[np.arange(64) ^ 3], atol=1e-6)


def check_copy_in_rounds(kernels):
    numbers = np.arange(512, dtype=np.uint16).reshape(8, 8, 8)  # 8 matrices
    buffers = Buffers()
    results = [buffers.result(numbers.shape, np.uint16) for _ in range(2)]
    arguments = struct.pack("<QQQi", buffers.add(numbers), *results, 2)
    plain, transposed = buffers.launch(kernels["copy_in_rounds_kernel"], arguments, block=32, shared_size=512)
    np.testing.assert_array_equal(plain, numbers)
    np.testing.assert_array_equal(transposed, numbers.swapaxes(1, 2))


def check_instructions(kernels):
    """Raises AssertionError or PtxError if a function of instructions.cuh is wrong."""
    for kind in ("bfloat16", "float16"):
        for order in (None, [2, 0, 3, 1]):
            check_tile_product(kernels, kind, order)
    check_tf32_product(kernels)
    check_conversions(kernels)
    check_copy_in_rounds(kernels)


# Faults in the device half of instructions.cuh: {name: (regular expression, its replacement)}
MUTANTS = {
    "a[1] and a[2] of mma swapped": (r'"r"\(a\[1\]\), "r"\(a\[2\]\)', '"r"(a[2]), "r"(a[1])'),
    "b[0] and b[1] of mma swapped": (r'"r"\(b\[0\]\), "r"\(b\[1\]\)', '"r"(b[1]), "r"(b[0])'),
    "c[2] and c[3] of mma swapped": (r'"\+f"\(c\[2\]\), "\+f"\(c\[3\]\)', '"+f"(c[3]), "+f"(c[2])'),
    "c of mma not added": (r"\{%8, %9\}, \{%0, %1, %2, %3\};", "{%8, %9}, {%3, %2, %1, %0};"),
    "bf16 instead of f16 in mma": (r"f32\.f16\.f16\.f32", "f32.bf16.bf16.f32"),
    "the operands of pack swapped": (r'"f"\(high\), "f"\(low\)', '"f"(low), "f"(high)'),
    "bf16 truncated": (r"cvt\.rn\.bf16\.f32 %0, %1;", "{.reg .b16 l; mov.b32 {l, %0}, %1;}"),
    ".trans missing": (r"x4\.trans", "x4"),
    ".trans not wanted": (r"x4\.shared", "x4.trans.shared"),
    "two registers of ldmatrix swapped": (r'"=r"\(registers\[1\]\), "=r"\(registers\[2\]\)',
                                          '"=r"(registers[2]), "=r"(registers[1])'),
    "ldmatrix without volatile and memory": (r'asm volatile\("ldmatrix([^#]*?): "memory"\);', r'asm("ldmatrix\1);'),
    "a generic address for ldmatrix": (r"__cvta_generic_to_shared\(row\.data\(\)\)",
                                       "reinterpret_cast<std::uintptr_t>(row.data())"),
    "a generic address for cp.async": (r"__cvta_generic_to_shared\(to\.data\(\)\)",
                                       "reinterpret_cast<std::uintptr_t>(to.data())"),
    "zero-fill if valid": (r"is_valid \? 16 : 0", "is_valid ? 0 : 16"),
    "no zero-fill": (r"is_valid \? 16 : 0", "16"),
    "8 bytes of 16 copied": (r"is_valid \? 16 : 0", "is_valid ? 8 : 0"),
    "cp.async without commit": (r'asm volatile\("cp\.async\.commit_group;" ::: "memory"\);', ""),
    "cp.async without a wait": (r'asm volatile\("cp\.async\.wait_group.*', ""),
    "cp.async waits for one group less": (r'"n"\(kPending\)', '"n"(kPending + 1)'),
    "no barrier": (r"__syncthreads\(\);", ""),
    "shuffle_xor from another lane": (r"__shfl_xor_sync\(0xFFFFFFFF, value, lane\)",
                                      "__shfl_xor_sync(0xFFFFFFFF, value, lane ^ 3)"),
    "shuffle from another lane": (r"__shfl_sync\(0xFFFFFFFF, value, lane\)",
                                  "__shfl_sync(0xFFFFFFFF, value, lane ^ 1)"),
    "shuffle and shuffle_xor swapped": (r"== Exchange::kXor \?", "!= Exchange::kXor ?"),
    "all instead of any": (r"__any_sync", "__all_sync"),
    "log2 instead of exp2": (r"ex2\.approx", "lg2.approx"),
    "tf32 truncated": (r"cvt\.rna\.tf32\.f32 %0, %1;", "and.b32 %0, %1, 0xffff0000;"),
}


def plant(name, folder):
    """Writes instructions.cuh with this fault into a folder for headers."""
    header = pathlib.Path("attend/kernels/cuda/instructions.cuh")
    pattern, replacement = MUTANTS[name]
    mutant, count = re.subn(pattern, replacement, (INCLUDE / header).read_text())
    if count == 0:
        raise RuntimeError(f"the fault could not be planted: {name}")
    (folder / header).parent.mkdir(parents=True)
    (folder / header).write_text(mutant)


class Instructions(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.kernels = ptx_of(HERE / "ptx_instructions.cu")

    def test_tile_product(self):
        for kind in ("bfloat16", "float16"):
            for order in (None, [0, 1, 2, 3], [2, 0, 3, 1]):
                with self.subTest(kind=kind, order=order):
                    check_tile_product(self.kernels, kind, order)

    def test_tf32_product(self):
        check_tf32_product(self.kernels)

    def test_conversions(self):
        check_conversions(self.kernels)

    def test_copy_in_rounds(self):
        check_copy_in_rounds(self.kernels)

    def test_each_mutant_is_found(self):
        with tempfile.TemporaryDirectory() as folder:
            folders = [pathlib.Path(folder, str(number)) for number in range(len(MUTANTS))]
            for name, own in zip(MUTANTS, folders):
                plant(name, own)
            mutants = all_ptx_of([(HERE / "ptx_instructions.cu", own) for own in folders])
        for name, kernels in zip(MUTANTS, mutants):
            with self.subTest(name), self.assertRaises((AssertionError, PtxError), msg="the fault was not found"):
                check_instructions(kernels)


# ---- Attention ------------------------------------------------------------------------------------------------------

def placed(arguments, kernel):
    """The bytes of a kernel's arguments as its parameters."""
    data = bytearray(kernel.parameter_size)
    for argument, (offset, size) in zip(arguments, kernel.parameters.values(), strict=True):
        if len(argument) != size:
            raise PtxError(f"{kernel.name}: an argument has {len(argument)} bytes, not {size}")
        data[offset:offset + size] = argument
    return bytes(data)


class Attention(unittest.TestCase):
    """The kernels of attention, for the calls of ptx_calls.cpp."""

    @classmethod
    def setUpClass(cls):
        cls.library = ctypes.CDLL(LIBRARY)
        cls.library.ptx_plan.restype = cls.library.ptx_errors.restype = ctypes.c_char_p
        cls.kernels = cls.compiled([launch for number in range(cls.library.ptx_calls())
                                    for launch in cls.plan(number)["launches"]])

    @classmethod
    def plan(cls, number):
        return json.loads(cls.library.ptx_plan(number))

    @classmethod
    def compiled(cls, launches, *folders):
        """The kernels of these launches: {readable name: Kernel}."""
        instances = set()
        for launch in launches:
            parameters = ", ".join(f"const __grid_constant__ {launch[part]}" for part in ("call", "score", "mask"))
            instances.add(f"template __global__ void attend::cuda::detail::{launch['function']}"
                          f"<{launch['kernel']}, {launch['score']}, {launch['mask']}>({parameters});\n")
        instances, kernels = sorted(instances), {}
        with tempfile.TemporaryDirectory() as folder:
            sources = [pathlib.Path(folder, f"attention{i}.cu") for i in range(2)]
            for i, source in enumerate(sources):
                source.write_text("#include <attend/kernels/cuda/launch_backward.cuh>\n"
                                  "#include <attend/kernels/cuda/launch_forward.cuh>\n"
                                  '#include "kernels/support/user_structs.h"\n' + "".join(instances[i::2]))
            for some in all_ptx_of([(source, *folders) for source in sources]):
                kernels |= some
        lines = subprocess.run(["c++filt"], input="\n".join(kernels), stdout=subprocess.PIPE, text=True,
                               check=True).stdout
        return dict(zip(lines.replace(" >", ">").splitlines(), kernels.values()))

    def run_call(self, number, kernels):
        """Runs all kernels of a call. Returns {result: (numbers, our largest error, the dense formula's, its size)}."""
        plan = self.plan(number)
        memory = GlobalMemory([(address, size, WRITE if is_output else READ)
                               for address, size, is_output in plan["buffers"]])
        for launch in plan["launches"]:
            name = f"{launch['function']}<{launch['kernel']}, {launch['score']}, {launch['mask']}>".replace(" >", ">")
            kernel, = (kernel for whole, kernel in kernels.items() if name in whole)
            arguments = placed([bytes.fromhex(argument) for argument in launch["arguments"]], kernel)
            ptx_interpreter.launch(kernel, (launch["blocks"], 1, 1), launch["threads"], arguments, memory,
                                   shared_size=launch["shared_bytes"])
        return {name: (int(count), *map(float, errors))
                for name, count, *errors in map(str.split, self.library.ptx_errors().decode().splitlines())}

    def wrong_results(self, number, kernels):
        """The results of a call that break the house rule.

        If a result has few numbers, the dense formula's error may be small by luck. Then the largest error of all
        results of the call counts, each relative to the size of the numbers.
        """
        results = self.run_call(number, kernels)
        of_dense = max(dense / size for _, _, dense, size in results.values())
        return [f"{name}: error {ours}, the dense formula's {dense}"
                for name, (count, ours, dense, size) in results.items()
                if not ours <= 2 * (dense if count >= 64 else of_dense * size) + 1e-6]

    def test_calls(self):
        for number in range(self.library.ptx_calls()):
            with self.subTest(self.plan(number)["name"]):
                self.assertEqual(self.wrong_results(number, self.kernels), [])

    def test_a_mutant_is_found(self):
        number = next(i for i in range(self.library.ptx_calls()) if self.plan(i)["name"] == "bfloat16, D 64")
        with tempfile.TemporaryDirectory() as folder:
            plant(".trans missing", folder)
            kernels = self.compiled(self.plan(number)["launches"], folder)
        wrong = self.wrong_results(number, kernels)
        for result in ("output", "query", "key"):
            self.assertTrue(any(line.startswith(result) for line in wrong), f"{result} should be wrong: {wrong}")


if __name__ == "__main__":
    if not NVCC or not LIBRARY:
        print("skipped: nvcc was not found")
        sys.exit(77)
    unittest.main()
