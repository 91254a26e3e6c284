# SPDX-License-Identifier: MIT
"""Compares registers, memory and instructions of the CUDA kernels in gates.cu with gates.csv, without a GPU.

Hard rules, for every nvcc: no spilled registers, no local memory, and a limit of the code's size. The numbers in
gates.csv are compared only if nvcc has the version that the file names, since another version needs other registers.
`gates_test.py --update` writes the file. It does not change the hard rules. Without nvcc or cuobjdump the program
returns 77.
"""

import collections
import concurrent.futures
import csv
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
INCLUDE = HERE.parents[2] / "include"
FILE = HERE / "gates.csv"
NVCC = os.environ.get("ATTEND_NVCC") or shutil.which("nvcc")
CUOBJDUMP = os.environ.get("ATTEND_CUOBJDUMP") or shutil.which("cuobjdump")

FLAGS = ["-std=c++20", "-O3", "-cubin", "-Xptxas=-v,--warn-on-spills", "--diag-error=20011,20012,20013,20014,20015"]
ARCHITECTURES = ["sm_80", "sm_90", "sm_100", "sm_120"]

# Kernels that may use local memory: {regular expression: (the most bytes of stack, the reason)}
EXCEPTIONS = {
    r"<TensorSums<": (256, "the score_mod reads its tensors through a pointer to a list, which is in local memory"),
    r"<TensorCoreForward<kBFloat16, 64, false>, test::SoftSign": (24, "a score_mod, and two tiles of queries per warp"),
    r"<TensorCoreQueries<k\w+, 256": (24, "an output of 256 columns, at 255 registers"),
    r"<TensorCoreKeys<kBFloat16, 128, KeyPart 0, test::Gated":
        (80, "two outputs of 128 columns, a score_mod with a tensor, and a rotation, at 255 registers"),
    r"<TensorCoreKeys<k\w+, 128, KeyPart 0": (24, "two outputs of 128 columns, at 255 registers"),
    r"<PlainForward<kFloat64": (24, "float64, at 255 registers"),
    r"<PlainKeys<double": (24, "float64, at the 170 registers with which 6 blocks run on a multiprocessor"),
}

# A user compiles each kernel for each pair of structs. So no kernel may become large.
MOST_INSTRUCTIONS = 10000  # of 16 bytes

# Columns of gates.csv: those of ptxas, and numbers of instructions.
RESOURCES = ["registers", "static_shared", "stack", "spill_stores", "spill_loads", "instructions"]
INSTRUCTIONS = {
    "tensor_core": r"[HDIQ]MMA\b|[HQ]GMMA\b|UTC\w*MMA\b",
    "ldmatrix": r"LDSM\b",
    "cp_async": r"LDGSTS\b",
    "commit": r"LDGDEPBAR\b",
    "wait": r"DEPBAR\b",
    "barrier": r"BAR\b",
    "shuffle": r"SHFL\b",
    "exp2": r"MUFU\.EX2\b",
    "local": r"(?:LDL|STL)\b",
    "call": r"CALL\b",
}

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
COMPILED = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
STATIC_SHARED = re.compile(r"(\d+) bytes smem")


def run(*command):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout}")
    return done.stdout


def nvcc_version():
    return re.search(r"V(\d+\.\d+\.\d+)", run(NVCC, "--version"))[1]


def readable(names):
    """{mangled name: readable name}, without namespaces and with the names of enumerators."""
    header = (INCLUDE / "attend/kernels/attention_params.h").read_text()
    types = re.findall(r"\bk\w+", re.search(r"enum class NumberType \{(.*?)\};", header, re.DOTALL)[1])
    lines = subprocess.run(["c++filt"], input="\n".join(names), stdout=subprocess.PIPE, text=True, check=True).stdout
    short = {}
    for name, line in zip(names, lines.splitlines()):
        line = re.sub(r"\battend::(?:v\w+::)?|\bcuda::|\bdetail::|\(anonymous namespace\)::", "", line)
        line = re.sub(r"^void |\((?:[^()]|\([^()]*\))*\)$", "", line)  # neither result nor arguments
        line = re.sub(r"\(NumberType\)(\d+)", lambda number: types[int(number[1])], line)
        short[name] = re.sub(r"\(KeyPart\)", "KeyPart ", line)
    return short


def measured(architecture, source):
    """{readable name: {column: number}} of the kernels of a .cu file, on one architecture."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = pathlib.Path(folder, "kernels.cubin")
        log = run(NVCC, *FLAGS, f"-arch={architecture}", f"-I{INCLUDE}", f"-I{HERE.parents[1]}", source, "-o", cubin)
        code = run(CUOBJDUMP, "-sass", cubin)
    kernels, kernel = collections.defaultdict(lambda: dict.fromkeys([*RESOURCES, *INSTRUCTIONS], 0)), None
    for line in log.splitlines():
        if match := COMPILED.search(line):
            kernel = kernels[match[1]]
        elif match := MEMORY.search(line):
            kernel["stack"], kernel["spill_stores"], kernel["spill_loads"] = map(int, match.groups())
        elif match := USED.search(line):
            kernel["registers"] = int(match[1])
            kernel["static_shared"] = int(shared[1]) if (shared := STATIC_SHARED.search(line)) else 0
    patterns = {column: re.compile(pattern) for column, pattern in INSTRUCTIONS.items()}
    for line in code.splitlines():
        if match := re.match(r"\s+Function : (\w+)", line):
            kernel = kernels[match[1]]
        elif match := INSTRUCTION.match(line):
            kernel["instructions"] += 1
            for column, pattern in patterns.items():
                kernel[column] += bool(pattern.match(match[1]))
    names = readable(list(kernels))
    return {names[name]: values for name, values in kernels.items()}


def broken_rules(name, values):
    """The hard rules that a kernel breaks."""
    allowed = [most for pattern, (most, _) in EXCEPTIONS.items() if re.search(pattern, name)]
    if allowed:
        return [f"stack = {values['stack']}"] if values["stack"] > allowed[0] else []
    return [f"{column} = {values[column]}" for column in ("stack", "spill_stores", "spill_loads", "local")
            if values[column]]


def text_of(table, version):
    """gates.csv for {(kernel, architecture): {column: number}}."""
    output = io.StringIO()
    output.write(f"# nvcc {version}. Written by gates_test.py --update.\n")
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(["kernel", "architecture", *RESOURCES, *INSTRUCTIONS])
    for (name, architecture), values in sorted(table.items(), key=lambda x: (x[0][0], ARCHITECTURES.index(x[0][1]))):
        writer.writerow([name, architecture, *values.values()])
    return output.getvalue()


def measured_table():
    known = run(NVCC, "--list-gpu-code").split()
    architectures = [architecture for architecture in ARCHITECTURES if architecture in known]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda architecture: measured(architecture, HERE / "gates.cu"), architectures)
    return {(name, architecture): values
            for architecture, kernels in zip(architectures, results) for name, values in kernels.items()}


class Gates(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.table = measured_table()

    def test_no_kernel_spills_or_uses_local_memory(self):
        self.assertGreater(len(self.table), 0)
        for (name, architecture), values in self.table.items():
            with self.subTest(kernel=name, architecture=architecture):
                self.assertEqual(broken_rules(name, values), [])

    def test_code_is_small(self):
        for (name, architecture), values in self.table.items():
            with self.subTest(kernel=name, architecture=architecture):
                self.assertLessEqual(values["instructions"], MOST_INSTRUCTIONS)

    def test_numbers_are_those_of_the_file(self):
        version = nvcc_version()
        self.assertTrue(FILE.exists(), "gates.csv is missing: run gates_test.py --update")
        expected = FILE.read_text()
        if not expected.startswith(f"# nvcc {version}."):
            self.skipTest(f"gates.csv is of another nvcc than {version}, so only spills and local memory were checked")
        self.maxDiff = None
        self.assertEqual(expected.splitlines(), text_of(self.table, version).splitlines(),
                         "if the change is wanted: gates_test.py --update")

    def test_a_kernel_with_local_memory_breaks_the_rules(self):
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder, "local.cu")
            source.write_text("""
                __global__ void indexed(int* x, int n) {
                  int numbers[64];
                  for (int i = 0; i < 64; ++i) numbers[(i * n) % 64] = x[i];
                  x[threadIdx.x] = numbers[x[threadIdx.x] % 64];
                }
                __global__ void __launch_bounds__(1024, 2) spilled(const float* x, float* y) {
                  float numbers[64];
                  for (int i = 0; i < 64; ++i) numbers[i] = x[i * 1024 + threadIdx.x];
                  __syncthreads();
                  for (int i = 0; i < 64; ++i) y[i * 1024 + threadIdx.x] = numbers[i] * numbers[63 - i];
                }""")
            found = measured("sm_80", source)
        self.assertEqual([rule.split()[0] for rule in broken_rules("indexed", found["indexed"])], ["stack", "local"])
        self.assertIn("spill_stores", " ".join(broken_rules("spilled", found["spilled"])))


def update():
    table = measured_table()
    FILE.write_text(text_of(table, nvcc_version()))
    broken = [f"{name} on {architecture}: {', '.join(rules)}"
              for (name, architecture), values in table.items() if (rules := broken_rules(name, values))]
    if broken:
        sys.exit("gates.csv was written, but the test will fail, because of local memory:\n" + "\n".join(broken))


if __name__ == "__main__":
    if not NVCC or not CUOBJDUMP or not shutil.which(CUOBJDUMP):
        print("skipped: nvcc or cuobjdump was not found")
        sys.exit(77)
    if sys.argv[1:] == ["--update"]:
        update()
    else:
        unittest.main()
