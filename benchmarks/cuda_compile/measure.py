#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How long does nvcc take for the CUDA kernels of one score_mod, and how large are they?

Compiles each file once, for one architecture. The result is the number of kernels, the size of their machine code, and
the processor time of nvcc, which other work on the machine disturbs less than the elapsed time. Writes cuda_compile.md.
Needs nvcc.
"""

import argparse
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "benchmarks"))
import machine  # noqa: E402

FILE = """#include <attend/kernels/cuda/launch_backward.cuh>
#include <attend/kernels/cuda/launch_forward.cuh>
#include <attend/score/mask_mod.h>

#include <cstdint>

struct Scaled {
  float factor;
  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
    return score * T(factor) - T(0.01f) * T(at.query - at.key);
  }
};

struct Chosen {
  using BFloat16 = attend::cuda::Widths<%s>;
  using Float16 = attend::cuda::Widths<>;
};
using Kernels = %s;
"""
FORWARD = """
cudaError_t forward(const attend::cuda::Call& call, void* workspace, cudaStream_t stream) {
  return attend::cuda::attention_forward<Kernels>(call, %s, %s, workspace, stream);
}
"""
BACKWARD = """
cudaError_t backward(const attend::cuda::Call& call, const attend::AttentionGradients& gradients, void* workspace,
                     cudaStream_t stream) {
  const auto marked = [](int, attend::detail::TensorReads*) { return %s; };
  return attend::cuda::attention_backward<Kernels>(call, gradients, %s, %s, marked, workspace, stream);
}
"""


def source(widths, score, mask, has_backward):
    """A file that starts the kernels of these widths; None: of all types and widths."""
    chosen = "attend::cuda::EveryKernel" if widths is None else "Chosen"
    text = FILE % (", ".join(map(str, widths or [])), chosen) + FORWARD % (score, mask)
    return text + BACKWARD % (score, score, mask) if has_backward else text


USER = ("Scaled{2}", "attend::Causal{}")
ROWS = [
    ("forward, one score_mod with `Causal`, bfloat16, width 128", source([128], *USER, False)),
    ("the same with the backward pass", source([128], *USER, True)),
    ("the same, widths 64 and 128", source([64, 128], *USER, True)),
    ("forward and backward, no structs, bfloat16, width 128",
     source([128], "attend::Unchanged{}", "attend::EveryKey{}", True)),
    ("forward, one score_mod with `Causal`, every type and width", source(None, *USER, False)),
    ("the same with the backward pass", source(None, *USER, True)),
]


def compile_time(nvcc, text, architecture, folder):
    """Processor seconds, kernels, and the kilobytes of the kernels' code and of the object file."""
    (folder / "program.cu").write_text(text)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([nvcc, "-std=c++20", "-O3", f"-arch={architecture}", f"-I{PROJECT / 'include'}", "-Xptxas=-v",
                    "-keep", "-keep-dir", folder, "-c", folder / "program.cu", "-o", folder / "program.o"],
                   check=True, stderr=(folder / "log").open("w"))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    kernels = (folder / "log").read_text().count("Compiling entry function")
    cubin, = folder.glob("*.cubin")
    return seconds, kernels, code_bytes(cubin) / 1024, (folder / "program.o").stat().st_size / 1024


def code_bytes(cubin):
    """The size of the sections with machine code in an ELF file."""
    text = subprocess.run(["readelf", "--sections", "--wide", cubin], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          text=True, check=True).stdout
    return sum(int(match[1], 16) for match in re.finditer(r"\s\.text\.\S+\s+PROGBITS\s+\S+\s+\S+\s+(\S+)", text))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvcc", default="nvcc", help="the compiler (default: nvcc on the PATH)")
    parser.add_argument("--architecture", default="sm_90", help="the GPU architecture (default: sm_90)")
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks/results/cuda_compile.md",
                        help="the page to write (default: benchmarks/results/cuda_compile.md)")
    arguments = parser.parse_args()
    machine.warn_if_busy()
    version = re.search(r"V([\d.]+)", subprocess.run([arguments.nvcc, "--version"], stdout=subprocess.PIPE, text=True,
                                                     check=True).stdout)[1]
    lines = [
        "# Compile time of the CUDA kernels",
        "",
        "How long does nvcc take for the kernels of one score_mod and one mask_mod, and how large are they?",
        "",
        f"`benchmarks/cuda_compile/measure.py` compiles each file once with `-O3 -arch={arguments.architecture}`. Seconds",
        "are the processor time of nvcc. Each further architecture takes nearly as long again. Code is the machine code of",
        "the kernels, and object is the object file.",
        "",
        "| a file with | kernels | seconds | code (KB) | object (KB) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, text in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            seconds, kernels, code, size = compile_time(arguments.nvcc, text, arguments.architecture, Path(folder))
        lines.append(f"| {name} | {kernels} | {seconds:.1f} | {code:.0f} | {size:.0f} |")
        print(lines[-1], flush=True)
    lines += ["", "Rule: name the types and widths that your program uses. The default compiles all of them.", "",
              f"{machine.describe()}; nvcc {version}."]
    arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
