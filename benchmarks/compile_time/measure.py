#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How long does a file that includes attend take to compile, compared with a file that includes only LibTorch?

Compiles small files in turn for several rounds, with and without optimization. Each round starts with the next file. The
result is the processor time of the compiler in user mode, because other work on the machine disturbs it less than the
elapsed time. Writes compile_time.md.

Needs a compiler and LibTorch: the folder of --torch, or the package torch of the Python that runs this script.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "benchmarks"))
import machine  # noqa: E402

# The name in the table, and the source. The others are compared with the first one.
USE = """int main() {
  LIBRARY::MultiheadAttention layer(LIBRARY::MultiheadAttentionOptions(64, 4));
  torch::Tensor x = torch::randn({10, 2, 64});
  return std::get<0>(layer(x, x, x)).size(0) == 10 ? 0 : 1;
}
"""
PROGRAMS = {
    "`<torch/nn.h>` alone": "#include <torch/nn.h>\n",
    "`<torch/nn.h>` and one layer": "#include <torch/nn.h>\n" + USE.replace("LIBRARY", "torch::nn"),
    "`<attend/attend.h>` and one layer": "#include <attend/attend.h>\n" + USE.replace("LIBRARY", "attend"),
    "`<attend/layers/multihead_attention.h>` alone": "#include <attend/layers/multihead_attention.h>\n",
    "`<torch/torch.h>` alone": "#include <torch/torch.h>\n",
}
OPTIMIZATIONS = ("-O0", "-O2")

RESULTS = PROJECT / "benchmarks" / "results"

PAGE = """# Compile time

How long does a file that includes attend take to compile, compared with a file that includes only LibTorch?

`benchmarks/compile_time/measure.py` compiles the files in turn, in {rounds} rounds. Seconds are the user time of the
compiler, as a median of the rounds. The number in parentheses is the ratio to `<torch/nn.h>` alone, as a median of the
ratios of the rounds. The layer is `MultiheadAttention` of torch or of attend, depending on the header.

{table}

{machine}; {compiler}, {libtorch}.
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


def user_seconds(command):
    """Processor time in user mode of a command and its child processes."""
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"measure.py: this command failed: {' '.join(map(str, command))}")
    return usage.ru_utime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", default=os.environ.get("CXX", "c++"), help="the compiler (default: $CXX, or c++)")
    parser.add_argument("--torch", type=Path, help="LibTorch's folder, the one with include/ and lib/ (default: that of this Python's package torch)")
    parser.add_argument("--attend", type=Path, default=PROJECT / "include", help="attend's include folder (default: that of this repository)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results (default: benchmarks/results)")
    settings = parser.parse_args()
    if settings.rounds < 1:
        parser.error("--rounds must be at least 1")

    root = torch_root(settings.torch)
    libtorch = torch_version(root)
    flags = ["-std=c++20", f"-I{settings.attend}", "-isystem", root / "include", "-isystem",
             root / "include/torch/csrc/api/include"]
    os.environ["CCACHE_DISABLE"] = "1"  # in case the compiler is a link to ccache
    machine.warn_if_busy()

    names = list(PROGRAMS)
    seconds = {(name, optimization): [] for name in names for optimization in OPTIMIZATIONS}
    with tempfile.TemporaryDirectory() as folder:
        sources = {name: Path(folder, f"program{i}.cpp") for i, name in enumerate(names)}
        for name, source in sources.items():
            source.write_text(PROGRAMS[name])

        def compile_one(name, optimization):
            return user_seconds([settings.compiler, optimization, *flags, "-c", sources[name],
                                 "-o", Path(folder, "program.o")])

        for name in names:
            compile_one(name, "-O0")  # warm-up: reads the headers from the disk
        for round_ in range(settings.rounds):
            for optimization in OPTIMIZATIONS:
                for turn in range(len(names)):
                    name = names[(round_ + turn) % len(names)]
                    seconds[name, optimization].append(compile_one(name, optimization))

    lines = ["| a file with | " + " | ".join(f"{optimization} (s)" for optimization in OPTIMIZATIONS) + " |",
             "| --- " * (1 + len(OPTIMIZATIONS)) + "|"]
    for name in names:
        cells = []
        for optimization in OPTIMIZATIONS:
            own, base = seconds[name, optimization], seconds[names[0], optimization]
            ratio = statistics.median(a / b for a, b in zip(own, base))
            cells.append(f"{statistics.median(own):.1f} ({ratio:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    print(table)
    compiler = subprocess.run([settings.compiler, "--version"], capture_output=True, check=True, text=True)
    page = settings.output / "compile_time.md"
    settings.output.mkdir(parents=True, exist_ok=True)
    page.write_text(PAGE.format(rounds=settings.rounds, table=table, machine=machine.describe(),
                                compiler=compiler.stdout.splitlines()[0], libtorch=libtorch))
    print(f"Wrote {page}.")


if __name__ == "__main__":
    main()
