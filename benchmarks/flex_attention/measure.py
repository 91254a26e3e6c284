#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How fast are attention() and flex_attention() on the CPU, compared with PyTorch in Python? python3 measure.py PROGRAM

PROGRAM is the program that CMake built from main.cpp. Writes flex_attention.md and .csv. Needs torch of the same version
as PROGRAM, and g++ for torch's compiled flex_attention.
"""

import argparse
import csv
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import peers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import machine  # noqa: E402
from digits import rounded  # noqa: E402

RESULTS = Path(__file__).resolve().parents[1] / "results"
WIDTH = 64
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # relative to the largest value
PASSES = {"forward": "forward", "forward_backward": "forward + backward"}

PAGE = """# attention() and flex_attention() on the CPU

How fast are `attention()` and `flex_attention()`, compared with PyTorch in Python on the same machine and in the same run?

`benchmarks/flex_attention/measure.py` gives attend and PyTorch the same inputs, compares outputs and gradients, and times
both in turn, in {rounds} rounds. A "peer" is the implementation that attend is compared with in a row. L is the number of
positions, N the batch size, H the number of heads. The head dimension is 64. The dtype is float32 unless a row names
another.

- Milliseconds are medians of the rounds.
- "Ratio" is the median of the ratios of the rounds; above 1, attend is faster.
- "Goal" is the ratio that was required before the kernel was written.
- "Difference" is the largest difference of any output or gradient, relative to the largest value of that tensor.

{comparison}
The window has 256 positions to the left and none to the right. The times exclude making the masks, block masks and biases
of the peers, and PyTorch's compilation{compiled}.
PyTorch's compiled `flex_attention` has no backward pass on the CPU. SDPA is measured with a bool mask and with a float
mask. The table shows the faster of the two.
{memory}
## Cost of a window

`attention()`, causal with a window of 256, {heads} heads: milliseconds, and milliseconds for each 1,024 positions.

{linear}
{machine}, {threads} threads; {compiler}, {libtorch}.
"""


@dataclasses.dataclass(frozen=True)
class Who:
    """An implementation of a case: a function of attend if it has a backend, otherwise one of peers.py."""

    function: str
    dtype: str = "float32"
    backend: str = ""

    def __str__(self):
        about = [name for name in (self.backend, self.dtype) if name not in ("", "kAuto", "float32")]
        return ", ".join([f"{self.function}()" if self.backend else self.function, *about])


ATTENTION = Who("attention", backend="kAuto")
FLEX = Who("flex_attention", backend="kAuto")
SDPA, MASKED, COMPILED = Who("SDPA"), Who("SDPA, dense mask"), Who("compiled flex_attention")


@dataclasses.dataclass(frozen=True)
class Case:
    title: str
    kind: str
    passes: str
    batch: int
    heads: int
    length: int
    ours: tuple  # of Who
    peers: dict  # Who: the required ratio, or None; results are compared with those of the first peer
    with_memory: bool = False


def cases(long):
    """The cases of the table; `long` is the length of the long sequences."""
    both = ("forward", "forward_backward")
    for kind, targets in {"dense": (1.1, 1.25), "causal": (1.4, 1.4)}.items():
        for passes, target in zip(both, targets):
            yield Case(kind, kind, passes, 1, 8, long, (ATTENTION,), {SDPA: target})
    yield Case("window", "window", "forward", 1, 8, long, (ATTENTION, FLEX), {MASKED: None, COMPILED: 1.3})
    yield Case("window", "window", "forward_backward", 1, 8, long, (ATTENTION, FLEX), {MASKED: 12})
    yield Case("causal, ALiBi", "alibi", "forward", 1, 8, long, (ATTENTION, FLEX), {MASKED: None, COMPILED: 2})
    yield Case("a user's score", "soft_sign", "forward_backward", 1, 8, long, (FLEX,),
               {Who("dense formula in torch"): 5, dataclasses.replace(FLEX, backend="kReference"): 5}, with_memory=True)
    for batch, length, head_counts, targets in ((32, 100, (1, 8), (2, 2)), (8, 512, (8,), (1.3, 2))):
        for heads in head_counts:
            for kind, target in zip(("dense", "causal"), targets):
                yield Case(kind, kind, "forward_backward", batch, heads, length, (ATTENTION,), {SDPA: target})
    half = dataclasses.replace(ATTENTION, dtype="bfloat16")
    for kind in ("dense", "causal"):
        for passes in both:
            yield Case(f"{kind}, bfloat16", kind, passes, 1, 8, long, (half,),
                       {ATTENTION: 1.4, Who("SDPA", "bfloat16"): None})


def linear_cases(longest):
    """Cases that show that with a window the time per position does not depend on the length."""
    length = 1024
    while length <= longest:
        for passes in PASSES:
            yield Case("cost of a window", "window", passes, 1, 8, length, (ATTENTION,), {})
        length *= 2


class Program:
    """PROGRAM, which computes attend's part."""

    def __init__(self, path, threads, folder):
        self.folder = folder
        self.process = subprocess.Popen([path, str(threads), str(folder)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.libtorch, self.compiler = self._answer().split("; ")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def ask(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline().rstrip("\n")
        if not line:
            raise SystemExit(self.process.wait() or 1)  # the program has printed why
        return line


class Ours:
    def __init__(self, who, case, program):
        self.program, self.slot, self.process_id = program, str(who).replace(" ", ""), program.process.pid
        self.shape = (case.batch, case.heads, case.length, WIDTH)
        self.results_count = 1 if case.passes == "forward" else 4
        self.name = str(who)
        self.explanation = program.ask("prepare", self.slot, who.function, case.kind, who.dtype, *self.shape,
                                       case.passes, who.backend)

    def results(self):
        self.program.ask("run", self.slot)
        return [read(self.program.folder / str(i), self.shape) for i in range(self.results_count)]

    def milliseconds(self, calls):
        return float(self.program.ask("time", self.slot, calls))


class Theirs:
    def __init__(self, who, case, inputs):
        *qkv, self.gradient = (tensor.to(getattr(torch, who.dtype), copy=True) for tensor in inputs)
        self.with_backward, self.process_id = case.passes == "forward_backward", os.getpid()
        self.qkv = [tensor.requires_grad_(self.with_backward) for tensor in qkv]
        self.name = str(who)
        if who.function == "SDPA":
            self.function = peers.sdpa(case.kind)
        elif who == COMPILED:
            self.function = peers.compiled_flex(case.kind, case.heads, case.length)
        elif who == MASKED:  # the faster of the two masks
            times = {}
            for mask in peers.masks(case.kind, case.heads, case.length):
                self.function = peers.sdpa_with_mask(mask)
                self.milliseconds(1)
                times[mask.dtype] = self.milliseconds(1), self.function
            fastest = min(times, key=lambda dtype: times[dtype][0])
            self.function, self.name = times[fastest][1], f"SDPA, {str(fastest).removeprefix('torch.')} mask"
        else:
            self.function = peers.dense_formula(case.length)

    def results(self):
        with torch.set_grad_enabled(self.with_backward):
            y = self.function(*self.qkv)
            return [y.detach(), *torch.autograd.grad(y, self.qkv, self.gradient)] if self.with_backward else [y]

    def milliseconds(self, calls):
        begin = time.perf_counter()
        for _ in range(calls):
            self.results()
        return 1000 * (time.perf_counter() - begin) / calls


def read(path, shape):
    return torch.from_file(str(path), shared=False, size=torch.Size(shape).numel()).view(shape).clone()


def write_inputs(case, folder):
    """Writes q, k, v and the gradient of the output, which are exact in every dtype of the case."""
    torch.manual_seed(1)
    inputs = torch.randn(4, case.batch, case.heads, case.length, WIDTH)
    if any(who.dtype == "bfloat16" for who in (*case.ours, *case.peers)):
        inputs = inputs.bfloat16().float()
    for name, tensor in zip(("q", "k", "v", "gradient"), inputs):
        torch.from_file(str(folder / name), shared=True, size=tensor.numel()).copy_(tensor.flatten())
    return inputs


def difference(results, expected):
    return max(((x.float() - y.float()).abs().max() / y.float().abs().max()).item()
               for x, y in zip(results, expected, strict=True))


def rest():
    """Waits until idle threads stop spinning, which would slow down the next process."""
    time.sleep(0.02)


def peak_mib(runner):
    """The additional memory of the process during one call; None if /proc cannot reset the peak."""
    proc = Path(f"/proc/{runner.process_id}")

    def status(field):
        line = next(line for line in (proc / "status").read_text().splitlines() if line.startswith(field + ":"))
        return int(line.split()[1]) / 1024  # kB

    try:
        (proc / "clear_refs").write_text("5")  # the peak begins here
    except OSError:
        return None
    before = status("VmRSS")
    runner.milliseconds(1)
    return status("VmHWM") - before


def peak_mib_of_ours(who, case, settings, folder):
    """The peak in a new process that has run only a short call, so no memory of earlier calls can be reused."""
    with Program(settings.program, settings.threads, folder) as program:
        Ours(who, dataclasses.replace(case, length=64), program).milliseconds(1)
        return peak_mib(Ours(who, case, program))


def measure(case, program, settings):
    """Rows of the table: each function of attend with each peer, or alone."""
    program.ask("clear")
    inputs = write_inputs(case, program.folder)
    everyone = [who for who in (*case.ours, *case.peers) if settings.compile or who != COMPILED]
    runners = {who: Ours(who, case, program) if who.backend else Theirs(who, case, inputs) for who in everyone}
    print(f"\n{case.title}, {PASSES[case.passes]}, N {case.batch}, H {case.heads}, L {case.length}", flush=True)
    for who, runner in runners.items():
        if who.backend:
            print(f"  {who}: {runner.explanation}", flush=True)
            if not case.peers and case.length > 2048 and runner.explanation.startswith("kReference"):
                print("  skipped: L × L is too large")
                return []

    # Also the warm-up.
    expected = runners[next(iter(case.peers), everyone[0])].results()
    differences = {}
    for who, runner in runners.items():
        differences[who] = difference(runner.results(), expected)
        if not differences[who] <= TOLERANCE[who.dtype]:
            raise SystemExit(f"measure.py: {who} differs by {differences[who]:.2g} of the largest value")
    del expected

    memory = {}
    if case.with_memory:
        for who, runner in runners.items():
            memory[who] = peak_mib_of_ours(who, case, settings, program.folder) if who.backend else peak_mib(runner)

    calls = {who: max(1, round(50 / runner.milliseconds(1))) for who, runner in runners.items()}  # 50 ms at least
    times = {who: [] for who in everyone}
    for turn in range(settings.rounds):
        start = turn % len(everyone)
        for who in everyone[start:] + everyone[:start]:
            rest()
            times[who].append(runners[who].milliseconds(calls[who]))

    rows = []
    for who in case.ours:
        for peer in [peer for peer in case.peers if peer in runners] or [None]:
            row = {"case": case.title, "pass": case.passes, "N": case.batch, "H": case.heads, "L": case.length,
                   "ours": str(who), "backend": runners[who].explanation.split()[0],
                   "ours_ms": statistics.median(times[who]), "ours_mib": memory.get(who)}
            if peer:
                # The larger difference of the two from the expected results. That of the first peer is 0.
                row.update(peer=runners[peer].name, peer_ms=statistics.median(times[peer]),
                           ratio=statistics.median(b / a for a, b in zip(times[who], times[peer])),
                           to_reach=case.peers[peer], difference=max(differences[who], differences[peer]),
                           peer_mib=memory.get(peer))
            rows.append(row)
            print("  " + ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                                   for key, value in list(row.items())[5:] if value is not None), flush=True)
    compiled = runners.get(COMPILED)
    if compiled:
        print(f"  compiled in {compiled.function.seconds_to_compile:.0f} s")
        for row in rows:
            row["seconds_to_compile"] = compiled.function.seconds_to_compile
    return rows


def table(columns, rows):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)) + "\n"


def page(rows, linear_rows, settings, program):
    comparison = table(
        ["case", "N", "H", "L", "attend", "backend", "attend (ms)", "peer", "peer (ms)", "ratio", "goal", "difference"],
        [[f"{row['case']}, {PASSES[row['pass']]}", str(row["N"]), str(row["H"]), f"{row['L']:,}", f"`{row['ours']}`",
          f"`{row['backend']}`", rounded(row["ours_ms"]), row["peer"], rounded(row["peer_ms"]), f"{row['ratio']:.2f}",
          f"{row['to_reach']:g}" if row["to_reach"] else "", f"{row['difference']:.0e}"]
         for row in rows])
    memory = "".join(f"\nPeak memory of one call, including its results, for {row['case']}: "
                     f"`{row['ours']}` {row['ours_mib']:,.0f} MiB, {row['peer']} {row['peer_mib']:,.0f} MiB.\n"
                     for row in rows if row.get("peer_mib") is not None)
    seconds = sorted({round(row["seconds_to_compile"]) for row in rows if "seconds_to_compile" in row})
    by_length = {}
    for row in linear_rows:
        by_length.setdefault(row["L"], {})[row["pass"]] = row["ours_ms"]
    linear = table(
        ["L", *(title for name in PASSES.values() for title in (f"{name} (ms)", "for each 1,024"))],
        [[f"{length:,}", *(rounded(times[name] * share) for name in PASSES for share in (1, 1024 / length))]
         for length, times in by_length.items()])
    return PAGE.format(comparison=comparison, memory=memory, linear=linear, rounds=settings.rounds, heads=8,
                       compiled=f" (of {' and '.join(map(str, seconds))} s)" if seconds else "",
                       machine=machine.describe(), threads=settings.threads, compiler=program.compiler,
                       libtorch=program.libtorch)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="the program built from main.cpp")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results (default: benchmarks/results)")
    parser.add_argument("--rounds", type=int, help="rounds; the result is their median (default: 11)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default: 2)")
    parser.add_argument("--only", default="", help="only cases whose title contains this text; writes no results")
    parser.add_argument("--quick", action="store_true", help="L 1,024 and three rounds, in about a minute")
    parser.add_argument("--compile", action="store_true", help="with --quick, also compile PyTorch's flex_attention")
    settings = parser.parse_args()
    settings.rounds = settings.rounds or (3 if settings.quick else 11)
    settings.compile = settings.compile or not settings.quick

    machine.warn_if_busy()
    torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory() as folder, \
            Program(settings.program, settings.threads, Path(folder)) as program:
        if program.libtorch != f"LibTorch {torch.__version__.split('+')[0]}":
            raise SystemExit(f"measure.py: the program uses {program.libtorch}, and this Python torch {torch.__version__}")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        rows, linear_rows = (
            [row for case in some if settings.only in case.title for row in measure(case, program, settings)]
            for some in (cases(1024 if settings.quick else 4096), linear_cases(4096 if settings.quick else 65536)))
    if settings.only:
        return
    settings.output.mkdir(parents=True, exist_ok=True)
    with open(settings.output / "flex_attention.csv", "w", newline="") as file:
        names = list(dict.fromkeys(name for row in rows for name in row))
        file.write(f"# {program.libtorch}; compiler: {program.compiler}; threads: {settings.threads}; "
                   f"rounds: {settings.rounds}\n")
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows + linear_rows)
    (settings.output / "flex_attention.md").write_text(page(rows, linear_rows, settings, program))
    print(f"Wrote {settings.output}/flex_attention.md and .csv.")


if __name__ == "__main__":
    main()
