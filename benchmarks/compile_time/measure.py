#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How long does a file that includes attend take to compile, compared with a file that includes only LibTorch?

Compiles small files in turn for several rounds, with each compiler. Each round starts with the next file. The result is
the size of the code in the object file, and the processor time of the compiler, which other work on the machine
disturbs less than the elapsed time. Writes compile_time.md.

Needs the compilers, the program `size`, and LibTorch: the folder of --torch, or the package torch of the Python that
runs this script.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "benchmarks"))
import machine  # noqa: E402

NN = "#include <torch/nn.h>\n"
ATTENTION = NN + """#include <attend/attention.h>
torch::Tensor f(const torch::Tensor& x) { return attend::attention(x, x, x); }
"""
LAYER = """torch::Tensor f(const torch::Tensor& x) {
  LIBRARY::MultiheadAttention layer(LIBRARY::MultiheadAttentionOptions(64, 4));
  return std::get<0>(layer(x, x, x));
}
"""
OUR_LAYER = NN + "#include <attend/layers/multihead_attention.h>\n" + LAYER.replace("LIBRARY", "attend")
FLEX = NN + """#include <attend/flex_attention.h>
struct Halved {
  template <class T>
  T operator()(T score, attend::Coordinate) const { return 0.5f * score; }
};
torch::Tensor f(const torch::Tensor& x) { return attend::flex_attention(x, x, x, Halved{}, attend::Causal{}); }
"""
KERNELS = """#include <attend/kernels.h>
void f(const attend::AttentionParams& params, const attend::AttentionOutputs& outputs) {
  attend::kernels::attention_forward(params, outputs);
}
"""
COMPILED = ["-DATTEND_COMPILED"]
# The name in the table, the source, and more flags. The others are compared with the first one.
PROGRAMS = {
    "`<torch/nn.h>` alone": (NN, []),
    "`<torch/nn.h>`, one `shared_ptr`": (NN + "void f(std::shared_ptr<int>& x) { x.reset(); }\n", []),
    "`<torch/nn.h>`, one layer of torch": (NN + LAYER.replace("LIBRARY", "torch::nn"), []),
    "`<attend/attention.h>`, one call": (ATTENTION, []),
    "the same with `attend::compiled`": (ATTENTION, COMPILED),
    "`<attend/layers/multihead_attention.h>`, one layer": (OUR_LAYER, []),
    "this layer with `attend::compiled`": (OUR_LAYER, COMPILED),
    "`<attend/flex_attention.h>`, one score_mod": (FLEX, []),
    "this score_mod with `attend::compiled`": (FLEX, COMPILED),
    "`<attend/kernels.h>`, one call, no LibTorch": (KERNELS, []),
}

RESULTS = PROJECT / "benchmarks" / "results"

PAGE = """# Compile time

How long does a file that includes attend take to compile, compared with a file that includes only LibTorch?

`benchmarks/compile_time/measure.py` compiles the files in turn with {flags}, in {rounds} rounds. All files except that
of the last row also include `<torch/nn.h>`. Seconds are the processor time of the compiler, the shortest of the rounds.
The number in parentheses is the ratio to `<torch/nn.h>` alone. KB are the code and the constants in the object file.

{table}

The file of the second row releases one `std::shared_ptr`. A compiler that devirtualizes calls, such as g++, then
processes the destructors of all modules in `<torch/nn.h>`, and removes them later because they are unused. Every file
that uses a layer has this cost. `attention()` has it too, because LibTorch's saved tensors contain a `shared_ptr`.

{machine}; {compilers}; {libtorch}.
"""


def torch_root(given):
    """LibTorch's folder, the one with include/ and lib/: `given`, or that of this Python's package torch."""
    if given:
        return given
    spec = importlib.util.find_spec("torch")  # does not import it, which would take seconds
    if spec is None:
        sys.exit(f"measure.py: {sys.executable} has no package torch; pass LibTorch's folder with --torch")
    return Path(spec.submodule_search_locations[0])


def torch_version(root):
    for header in ("include/torch/headeronly/version.h", "include/torch/csrc/api/include/torch/version.h"):
        if (root / header).is_file():
            numbers = {}
            for line in (root / header).read_text().splitlines():
                words = line.split()
                if len(words) == 3 and words[0] == "#define":
                    numbers[words[1]] = words[2]
            return "LibTorch " + ".".join(numbers[f"TORCH_VERSION_{part}"] for part in ("MAJOR", "MINOR", "PATCH"))
    sys.exit(f"measure.py: {root} is not LibTorch's folder, the one with include/ and lib/")


def seconds_of(command):
    """Processor time of a command and its child processes."""
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"measure.py: this command failed: {' '.join(map(str, command))}")
    return usage.ru_utime + usage.ru_stime


def kilobytes_of(object_file):
    """Code and constants in an object file."""
    output = subprocess.run(["size", object_file], capture_output=True, check=True, text=True).stdout
    return int(output.splitlines()[1].split()[0]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", nargs="+", default=["g++", "clang++"], help="the compilers (default: g++ clang++)")
    parser.add_argument("--flags", default="-O2", help="flags of all files (default: -O2)")
    parser.add_argument("--torch", type=Path, help="LibTorch's folder, the one with include/ and lib/ (default: that of this Python's package torch)")
    parser.add_argument("--attend", type=Path, default=PROJECT / "include", help="attend's include folder (default: that of this repository)")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default: 3)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results (default: benchmarks/results)")
    settings = parser.parse_args()
    if settings.rounds < 1:
        parser.error("--rounds must be at least 1")

    root = torch_root(settings.torch)
    libtorch = torch_version(root)
    flags = ["-std=c++20", *settings.flags.split(), f"-I{settings.attend}", "-isystem", root / "include", "-isystem",
             root / "include/torch/csrc/api/include"]
    os.environ["CCACHE_DISABLE"] = "1"  # in case a compiler is a link to ccache
    machine.warn_if_busy()

    names = list(PROGRAMS)
    seconds = {(name, compiler): [] for name in names for compiler in settings.compiler}
    kilobytes = {}
    with tempfile.TemporaryDirectory() as folder:
        object_file = Path(folder, "program.o")

        def compile_one(name, compiler, record=True):
            source = Path(folder, f"program{names.index(name)}.cpp")
            source.write_text(PROGRAMS[name][0])
            took = seconds_of([compiler, *flags, *PROGRAMS[name][1], "-c", source, "-o", object_file])
            if record:
                seconds[name, compiler].append(took)
                kilobytes[name, compiler] = kilobytes_of(object_file)

        compile_one(names[0], settings.compiler[0], record=False)  # reads the headers from the disk
        for round_ in range(settings.rounds):
            for compiler in settings.compiler:
                for turn in range(len(names)):
                    compile_one(names[(round_ + turn) % len(names)], compiler)

    lines = ["| a file with | " + " | ".join(f"{compiler} (s) | KB" for compiler in settings.compiler) + " |",
             "| --- " * (1 + 2 * len(settings.compiler)) + "|"]
    for name in names:
        cells = []
        for compiler in settings.compiler:
            own, base = min(seconds[name, compiler]), min(seconds[names[0], compiler])
            cells.append(f"{own:.1f} ({own / base:.2f}) | {kilobytes[name, compiler]:.0f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    print(table)
    versions = [subprocess.run([compiler, "--version"], capture_output=True, check=True, text=True).stdout.splitlines()[0]
                for compiler in settings.compiler]
    page = settings.output / "compile_time.md"
    settings.output.mkdir(parents=True, exist_ok=True)
    page.write_text(PAGE.format(flags=f"`{settings.flags}`", rounds=settings.rounds, table=table,
                                machine=machine.describe(), compilers=", ".join(versions), libtorch=libtorch))
    print(f"Wrote {page}.")


if __name__ == "__main__":
    main()
