#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How fast are attend's CUDA kernels, compared with SDPA's flash kernel and with compiled flex_attention?

python3 measure.py LIBRARY --output FOLDER

LIBRARY is the file gpu_attention.so that CMake built from operators.cpp and kernels.cu. attend and a peer run in one
process, in turn, with the same inputs in bfloat16. Before a case is timed, results are compared with those of the peer;
for a window, with those of the dense formula on one head. A case with a large difference is not timed, and the script
then fails. Writes attention.csv, a row as soon as it is measured. Needs a GPU and torch of the version of LIBRARY;
without a GPU it exits with status 77.

--rehearse runs all cases on the CPU, with short sequences. LIBRARY then computes the dense formula. It can be left out:
then a dense formula of torch takes its place.
"""

import argparse
import csv
import dataclasses
import statistics
import sys
import time
import traceback
from pathlib import Path

import torch

import peers

DTYPE = torch.bfloat16
TOLERANCE = 2e-2  # relative to the largest value
COLUMNS = ("case", "pass", "N", "H", "G", "L", "S", "D", "peer", "difference", "attend_ms", "peer_ms", "ratio", "goal",
           "tflops", "peer_tflops", "gb_per_s", "note")


@dataclasses.dataclass(frozen=True)
class Case:
    title: str
    kind: str  # as in peers.py
    passes: str  # forward, or backward: the backward pass alone
    batch: int
    heads: int
    kv_heads: int
    length: int
    keys: int
    width: int
    peer: str
    goal: float | None = None  # the required ratio
    window: int = 0

    def allowed(self):
        """Pairs of a query and a key that are not masked, in one head."""
        if self.kind in ("plain", "decode"):
            return self.length * self.keys
        return sum(min(i + 1, self.window or self.keys) for i in range(self.length))

    def operations(self):
        """Floating-point operations: two products forward, five backward, without masked pairs."""
        products = 2 if self.passes == "forward" else 5
        return 2 * products * self.batch * self.heads * self.allowed() * self.width


def cases(is_rehearsal):
    """In the order of importance, because a time limit can cut the last ones."""
    heads, total = (2, 128) if is_rehearsal else (16, 16_384)  # total: N · L
    lengths = (32, 64) if is_rehearsal else (2048, 4096, 8192, 16_384)
    widths = (16,) if is_rehearsal else (64, 128)
    window = 24 if is_rehearsal else peers.WINDOW

    def case(title, kind, passes, length, width, peer, goal, **more):
        return Case(title, kind, passes, total // length, heads, heads, length, length, width, peer, goal, **more)

    for length in reversed(lengths):
        for width in widths:
            for kind in ("plain", "causal"):
                for passes, goal in (("forward", 0.6), ("backward", 0.5)):
                    yield case(kind, kind, passes, length, width, "SDPA, flash", goal)
    for width in widths:
        for passes, goal in (("forward", 4), ("backward", None)):
            yield case(f"window {window:,}", "window", passes, lengths[-1], width, "causal SDPA, flash", goal,
                       window=window)
    for keys in (64, 96) if is_rehearsal else (4096, 16_384, 65_536):
        for kv_heads in (heads, heads // 2 if is_rehearsal else heads // 8):
            for width in reversed(widths):
                yield Case("decoding", "decode", "forward", 1, heads, kv_heads, 1, keys, width, "SDPA, flash")
    for length in (lengths[-1], lengths[1]) if not is_rehearsal else lengths[:1]:
        for width in reversed(widths):
            for kind, title in (("table", "a user's score with a table"), ("bounded", "a user's score with tanh")):
                for passes in ("forward", "backward"):
                    yield case(title, kind, passes, length, width, "compiled flex_attention", 0.8)


class Device:
    """A GPU, or the CPU in a rehearsal."""

    def __init__(self, name):
        self.name = name

    def milliseconds(self, call, calls):
        """The time of one call."""
        if self.name == "cpu":
            begin = time.perf_counter()
            for _ in range(calls):
                call()
            return 1000 * (time.perf_counter() - begin) / calls
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / calls

    def captured(self, call):
        """The call as a CUDA graph, so that the time to launch its kernels is not measured."""
        if self.name == "cpu":
            return call
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay


def random(case, length, heads, device):
    return torch.randn(case.batch, heads, length, case.width, device=device.name, dtype=DTYPE)


def difference(results, expected):
    """The largest difference, relative to the largest value of a tensor."""
    return torch.stack([(x.float() - y.float()).abs().max() / y.float().abs().max()
                        for x, y in zip(results, expected, strict=True)]).max().item()  # NaN if one is NaN


def results(function, inputs, gradient):
    """Output and gradients; without `gradient` only the output."""
    y = function(*inputs)
    return [y] if gradient is None else [y.detach(), *torch.autograd.grad(y, inputs, gradient)]


def compare(case, ours, theirs, inputs, gradient, device):
    if case.kind != "window":
        return difference(results(ours, inputs, gradient), results(theirs, inputs, gradient))
    head = [x.detach()[:1, :1].clone().requires_grad_(gradient is not None) for x in inputs]
    one = None if gradient is None else gradient[:1, :1]
    return difference(results(ours, head, one), results(peers.formula(case, device.name), head, one))


def layers_of(case, device):
    """Keys and values of several layers, more than a GPU's caches hold."""
    layer_bytes = 2 * 2 * case.kv_heads * case.keys * case.width
    count = 2 if device.name == "cpu" else max(2, -(-(256 << 20) // layer_bytes))
    return [[random(case, case.keys, case.kv_heads, device) for _ in range(2)] for _ in range(count)]


def calls_of(case, ours, theirs, device):
    """Both calls that are timed, the number of layers in each, and the difference of the results."""
    torch.manual_seed(1)
    q = random(case, case.length, case.heads, device)
    if case.kind == "decode":
        layers = layers_of(case, device)
        found = difference(*([function(q, *layer) for layer in layers] for function in (ours, theirs)))
        calls = [device.captured(lambda function=function: [function(q, *layer) for layer in layers])
                 for function in (ours, theirs)]
        return calls, len(layers), found
    k, v = (random(case, case.keys, case.kv_heads, device) for _ in range(2))
    inputs = [q, k, v]
    if case.passes == "forward":
        found = compare(case, ours, theirs, inputs, None, device)
        return [lambda function=function: function(*inputs) for function in (ours, theirs)], 1, found
    for x in inputs:
        x.requires_grad_()
    gradient = torch.randn_like(q)
    with torch.enable_grad():
        found = compare(case, ours, theirs, inputs, gradient, device)
        outputs = [function(*inputs) for function in (ours, theirs)]
    return [lambda y=y: torch.autograd.grad(y, inputs, gradient, retain_graph=True) for y in outputs], 1, found


def measure(case, attend, device, rounds):
    """What is found out about a case, by column."""
    row = {}
    theirs = peers.flex(case, device.name) if "flex" in case.peer else peers.sdpa(case, device.name)
    calls, layers, row["difference"] = calls_of(case, attend(case, device.name), theirs, device)
    if not row["difference"] <= TOLERANCE:
        row["note"] = "not timed: the results differ"
        return row
    repeats = []
    for call in calls:
        device.milliseconds(call, 1)
        repeats.append(min(100, max(1, round(20 / device.milliseconds(call, 1)))))  # 20 ms
    times = [[], []]
    for turn in range(rounds):
        for i in (0, 1) if turn % 2 == 0 else (1, 0):
            times[i].append(device.milliseconds(calls[i], repeats[i]) / layers)
    row["attend_ms"], row["peer_ms"] = (statistics.median(each) for each in times)
    row["ratio"] = statistics.median(peer / own for own, peer in zip(*times))
    if case.kind == "decode":
        row["gb_per_s"] = 1e-6 * 2 * 2 * case.kv_heads * case.keys * case.width / row["attend_ms"]
    else:
        row["tflops"] = 1e-9 * case.operations() / row["attend_ms"]
        if case.kind != "window":  # whose peer computes more
            row["peer_tflops"] = 1e-9 * case.operations() / row["peer_ms"]
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", nargs="?", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="folder of attention.csv")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=600, help="no case begins later than this (default: 600)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with short sequences")
    options = parser.parse_args()
    begin = time.monotonic()
    if not options.rehearse and not torch.cuda.is_available():
        print("measure.py: this machine has no GPU that torch can use")
        sys.exit(77)
    if options.library:
        torch.ops.load_library(options.library)
    elif not options.rehearse:
        parser.error("LIBRARY is missing")
    attend = peers.attend if options.library else peers.formula
    device = Device("cpu" if options.rehearse else "cuda")

    options.output.mkdir(parents=True, exist_ok=True)
    bad = 0
    with open(options.output / "attention.csv", "w", newline="") as file, torch.no_grad():
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for case in cases(options.rehearse):
            row = {"case": case.title, "pass": case.passes, "N": case.batch, "H": case.heads, "G": case.kv_heads,
                   "L": case.length, "S": case.keys, "D": case.width, "peer": case.peer, "goal": case.goal}
            if time.monotonic() - begin > options.seconds:
                row["note"] = "not timed: no time was left"
            else:
                try:
                    row.update(measure(case, attend, device, options.rounds))
                except Exception as error:  # the other cases run nevertheless
                    traceback.print_exc()
                    row["note"] = f"not timed: {(str(error) or type(error).__name__).splitlines()[0]}"
            bad += "note" in row
            writer.writerow({name: f"{value:.4g}" if isinstance(value, float) else value
                             for name, value in row.items()})
            file.flush()
            print(", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                            for name, value in row.items() if value is not None), flush=True)
    if bad:
        sys.exit(f"measure.py: {bad} cases were not timed")


if __name__ == "__main__":
    main()
