#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How much slower does a busy machine make an epoch of training? python3 measure.py FOLDER [--before FOLDER]

FOLDER has the programs experiment and threads that CMake built. Measures epochs of the experiment and of the notebook on
an idle machine, beside one busy process and beside two. Measures single calls on an idle machine. Writes threads.md.
Needs torch and numpy for the notebook.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(BENCHMARKS / "experiment"), str(BENCHMARKS)]
import machine  # noqa: E402
import measure as experiment  # noqa: E402
from digits import rounded  # noqa: E402

ROUNDS = 3  # for the single calls

PAGE = """# Threads

How much slower does a busy machine make an epoch of training?

`benchmarks/threads/measure.py` measures epochs of {samples:,} samples of [the experiment](experiment.md) in float32, while
busy processes run. A busy process is an endless loop in a shell; it is not bound to a core. The programs run in turn,
epoch by epoch. Seconds are medians of {epochs} epochs. A ratio compares the seconds with those of the same program on the
idle machine, in the column "alone".

{epochs_table}

## An idle machine

Single calls in float32, in microseconds. Each number is a median of {rounds} runs, and the result of a run is the
median of its calls. The programs run in turn. "Product of matrices" multiplies two matrices of 512² on LibTorch's
threads. A section is one piece of work that several threads share.

{calls_table}

{machine}, {threads} threads; {compiler}, LibTorch {torch}.
"""


class Busy:
    """Processes that do nothing but keep the machine busy."""

    def __init__(self, count):
        self.processes = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(count)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()


def epochs_table(programs, epochs):
    """Seconds and ratios, one line for each program and net."""
    seconds = {}
    for busy in range(3):
        with Busy(busy):
            for round in range(epochs + 1):  # the first round is a warm-up
                for name, program in programs.items():
                    for net in experiment.NETS:
                        experiment.rest()
                        took = program.ask("epoch", net)["seconds"]
                        print(f"beside {busy}: {name}, {net}: {took:.3f} s", file=sys.stderr)
                        if round > 0:
                            seconds.setdefault((name, net, busy), []).append(took)
    lines = ["| program | net | alone (s) | beside one busy process (s) | ratio | beside two (s) | ratio |",
             "| --- " * 7 + "|"]
    for name in programs:
        for net in experiment.NETS:
            alone, one, two = (statistics.median(seconds[name, net, busy]) for busy in range(3))
            lines.append(f"| {name} | {net} | {rounded(alone)} | {rounded(one)} | {one / alone:.2f} | {rounded(two)} | "
                         f"{two / alone:.2f} |")
    return "\n".join(lines)


def calls_table(folders):
    runs = {name: [] for name in folders}
    for _ in range(ROUNDS):
        for name, folder in folders.items():
            text = subprocess.run([folder / "threads"], stdout=subprocess.PIPE, text=True, check=True).stdout
            runs[name].append([line.rsplit(",", 1) for line in text.splitlines()])
    lines = ["| call | " + " | ".join(f"{name} (µs)" for name in folders) + " |", "| --- " * (1 + len(folders)) + "|"]
    for i, (call, _) in enumerate(next(iter(runs.values()))[0]):
        medians = [statistics.median(float(run[i][1]) for run in of_program) for of_program in runs.values()]
        lines.append(f"| {call} | " + " | ".join(map(rounded, medians)) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the programs experiment and threads")
    parser.add_argument("--before", type=Path, help="folder with the programs of another version of attend")
    parser.add_argument("--output", type=Path, default=experiment.RESULTS, help="folder for the page (default: benchmarks/results)")
    parser.add_argument("--samples", type=experiment.positive, default=500, help="samples of an epoch (default: 500)")
    parser.add_argument("--epochs", type=experiment.positive, default=5, help="epochs of each net (default: 5)")
    options = parser.parse_args()
    machine.warn_if_busy()

    folders = {"attend": options.folder.resolve()}
    if options.before:
        folders = {"attend before": options.before.resolve(), **folders}
    programs = {}
    try:
        for name, folder in {"notebook": None, **folders}.items():
            settings = experiment.Settings(folder and folder / "experiment", options.epochs, options.samples, 0, 0, 0,
                                           "cpu")
            programs[name] = experiment.Program(experiment.OURS if folder else experiment.PEER, settings)
        ready = programs["attend"].ready
        page = PAGE.format(samples=options.samples, epochs=options.epochs, rounds=ROUNDS,
                           epochs_table=epochs_table(programs, options.epochs), calls_table=calls_table(folders),
                           machine=machine.describe(), threads=ready["threads"], compiler=ready["compiler"],
                           torch=ready["torch"])
    finally:
        for program in programs.values():
            program.end(is_killed=True)
    (options.output / "threads.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
