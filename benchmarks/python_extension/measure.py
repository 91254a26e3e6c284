#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How fast is examples/python_extension on the CPU, compared with PyTorch's compiled flex_attention and a dense formula?

Compiles both, compares outputs and gradients, and times them in turn. Writes python_extension.md. Needs g++ and ninja, and
takes about two minutes.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT / "benchmarks"), str(PROJECT / "examples" / "python_extension")]
import dilated_attention  # noqa: E402
import machine  # noqa: E402

PAGE = """\
# An extension for Python

`benchmarks/python_extension/measure.py` calls the operator of
[examples/python_extension](../../examples/python_extension/README.md) from Python. It is compared with two peers: PyTorch's
compiled `flex_attention` with the same score_mod and mask_mod, and a dense formula of torch's operators. All get the
same inputs: float32, N {batch}, H {heads}, D {width}. They run in turn, in {rounds} rounds. Milliseconds are medians of the
rounds. A ratio is the median of the ratios of the rounds; above 1, the extension is faster.

{table}
The forward pass runs under `torch.no_grad()`. PyTorch's `flex_attention` has no backward pass on the CPU: it throws
`NotImplementedError`. The times exclude making its block mask and the mask of the dense formula. The backward
pass computes the gradients of query, key, value, strength and rate.

The largest difference between the extension and a peer is {difference:.0e} of the largest value of the tensor. The
extension is compiled once, in {seconds[extension]:.0f} s. PyTorch compiles `flex_attention` in each process, in the first call with
each mask, in up to {seconds[flex]:.0f} s: this script turns PyTorch's caches off.

{machine}, {threads} threads; LibTorch {libtorch}.
"""
EXTENSION, FLEX, DENSE = "extension", "compiled flex_attention", "dense formula"


def parameters(heads):
    return torch.linspace(0.5, 1.5, heads), torch.linspace(1.5, 0.5, heads)  # strength, rate


def compiled_flex(heads, length, window, dilation):
    """PyTorch's flex_attention with the score_mod and mask_mod of dilated_attention.cpp, and the seconds to compile it."""
    strength, rate = parameters(heads)

    def penalty(score, batch, head, query, key):
        return score - strength[head] * torch.log(1 + rate[head] * (query - key).abs())

    def dilated(batch, head, query, key):
        return (query >= key) & (query - key < window) & ((query - key) % dilation == 0)

    torch._dynamo.reset()
    torch._inductor.config.force_disable_caches = True
    torch._inductor.config.compile_threads = 1
    mask = create_block_mask(dilated, None, None, length, length, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)

    def call(q, k, v, strength, rate):
        return compiled(q, k, v, score_mod=penalty, block_mask=mask)

    begin = time.perf_counter()
    with torch.no_grad():
        call(*torch.randn(3, 1, heads, length, 64).unbind(), None, None)
    return call, time.perf_counter() - begin


def dense_formula(length, window, dilation):
    distance = torch.arange(length)[:, None] - torch.arange(length)  # (L, S): query − key
    allowed = (0 <= distance) & (distance < window) & (distance % dilation == 0)
    distance = distance.abs()

    def call(q, k, v, strength, rate):
        score = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        score = score - strength[:, None, None] * torch.log(1 + rate[:, None, None] * distance)
        return score.masked_fill(~allowed, -math.inf).softmax(-1) @ v

    return call


def run(function, tensors, backward):
    """The output, and with the backward pass the gradients."""
    if not backward:
        with torch.no_grad():
            return [function(*(tensor.detach() for tensor in tensors))]
    output = function(*tensors)
    return [output.detach(), *torch.autograd.grad(output.sum(), tensors)]


def difference(results, expected):
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(results, expected))


def measure(functions, tensors, backward, rounds):
    """Milliseconds of each round, and the largest difference from the extension."""
    expected = run(functions[EXTENSION], tensors, backward)
    differences, calls = [], {}
    for name, function in functions.items():  # also the warm-up
        differences.append(difference(run(function, tensors, backward), expected))
        if not differences[-1] < 1e-4:
            raise SystemExit(f"measure.py: {name} differs by {differences[-1]:.2g} of the largest value")
        begin = time.perf_counter()
        run(function, tensors, backward)
        calls[name] = max(1, round(0.1 / (time.perf_counter() - begin)))
    times = {name: [] for name in functions}
    names = list(functions)
    for turn in range(rounds):
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            begin = time.perf_counter()
            for _ in range(calls[name]):
                run(functions[name], tensors, backward)
            times[name].append((time.perf_counter() - begin) / calls[name] * 1e3)
    return times, max(differences)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks" / "results", help="folder for the result (default: benchmarks/results)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; the result is their median (default: 7)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default: 2)")
    parser.add_argument("--length", type=int, default=2048, help="number of queries and of keys (default: 2048)")
    settings = parser.parse_args()
    machine.warn_if_busy()
    torch.set_num_threads(settings.threads)
    batch, heads, width, length = 1, 8, 64, settings.length
    torch.manual_seed(1)
    tensors = [tensor.requires_grad_()
               for tensor in (*torch.randn(3, batch, heads, length, width).unbind(), *parameters(heads))]

    lines, differences, seconds = [], [], {"flex": 0}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCH_EXTENSIONS_DIR"] = folder
        begin = time.perf_counter()
        operator = dilated_attention.load()
        seconds["extension"] = time.perf_counter() - begin
        for title, window, dilation in (("causal", length, 1), ("window 512", 512, 1),
                                        ("window 512, dilation 2", 512, 2)):
            flex, compile_seconds = compiled_flex(heads, length, window, dilation)
            seconds["flex"] = max(seconds["flex"], compile_seconds)
            dense = dense_formula(length, window, dilation)
            for backward in (False, True):
                functions = {EXTENSION: lambda *x: operator(*x, window=window, dilation=dilation), DENSE: dense}
                if not backward:
                    functions[FLEX] = flex
                times, largest = measure(functions, tensors, backward, settings.rounds)
                differences.append(largest)
                median = {name: statistics.median(times[name]) for name in times}

                def cells(peer):
                    if peer not in times:
                        return ["", ""]
                    ratio = statistics.median(b / a for a, b in zip(times[EXTENSION], times[peer]))
                    return [f"{median[peer]:,.0f}", f"{ratio:.2f}"]

                row = [f"{title}, {'forward + backward' if backward else 'forward'}", f"{length:,}",
                       f"{median[EXTENSION]:,.0f}", *cells(FLEX), *cells(DENSE)]
                lines.append("| " + " | ".join(row) + " |\n")
                print(lines[-1], end="", flush=True)
    header = ["case", "L", "extension (ms)", FLEX + " (ms)", "ratio", DENSE + " (ms)", "ratio"]
    table = "| " + " | ".join(header) + " |\n|" + " --- |" * len(header) + "\n" + "".join(lines)
    settings.output.mkdir(parents=True, exist_ok=True)
    (settings.output / "python_extension.md").write_text(PAGE.format(
        batch=batch, heads=heads, width=width, rounds=settings.rounds, table=table, difference=max(differences),
        seconds=seconds, machine=machine.describe(), threads=settings.threads, libtorch=torch.__version__.split("+")[0]))


if __name__ == "__main__":
    main()
