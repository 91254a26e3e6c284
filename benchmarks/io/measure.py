#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How long do files in the safetensors format take? python3 measure.py FOLDER [--disk FOLDER]

FOLDER has the program io that CMake built. Writes 2 GiB to the folder --disk, and io.md with the results.
"""

import argparse
import collections
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path.append(str(BENCHMARKS))
import machine  # noqa: E402

PAGE = """# Files

How long does a file in the safetensors format take, and how much memory?

`benchmarks/io/measure.py` loads and saves 64 float32 tensors of 16 MiB, 1 GiB together. The ways run in turn. Seconds are
medians of {rounds} rounds, with the smallest and largest. A ratio compares the median with that of the plain read or write.

## Loading into tensors that exist

"Cached" means that the file is in the page cache. Otherwise it is removed from there before each round, and the disk
determines the time. Memory is the largest resident memory during the load, beyond that before it, in a process of its own.
With load_safetensors() it has the pages of the file, which the operating system takes back when it needs memory.

{loads}

## Saving

The plain write writes each tensor to a file with another name, calls fsync, and renames the file. "New" means that there is
no old file. An old file is removed by the rename, which takes time, and the new file cannot use its memory in the page
cache.

{saves}

{machine}; {about}.
"""

PLAIN = {"load": "plain read into the model", "save": "plain write with fsync and rename"}


def run(program, *arguments):
    return subprocess.run([program, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True).stdout


def seconds(text):
    """All values of each way of one CSV."""
    values = collections.defaultdict(list)
    for line in text.splitlines():
        *way, value = line.split(",")
        values[tuple(way)].append(float(value))
    return values


def cell(values, plain):
    median = statistics.median(values)
    return f"{median:.3f} ({min(values):.3f} to {max(values):.3f}) | {median / statistics.median(plain):.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the program io")
    parser.add_argument("--disk", type=Path, help="folder for the files (default: the system's for temporary files)")
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results", help="folder for the page (default: benchmarks/results)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each way (default: 7)")
    options = parser.parse_args()
    machine.warn_if_busy()
    program = options.folder.resolve() / "io"

    with tempfile.TemporaryDirectory(dir=options.disk) as folder:
        path = Path(folder, "model.safetensors")
        loads = seconds(run(program, "load", path, options.rounds))
        ways = sorted({way for way, _ in loads}, key=lambda way: (way != PLAIN["load"], way))
        load_lines = ["| way | cached (s) | ratio | from the disk (s) | ratio | memory (MiB) |", "| --- " * 6 + "|"]
        for way in ways:
            cells = [cell(loads[way, cached], loads[PLAIN["load"], cached]) for cached in ("yes", "no")]
            load_lines.append(f"| {way} | {' | '.join(cells)} | {float(run(program, 'memory', path, way)):.1f} |")
        saves = seconds(run(program, "save", path, options.rounds))
    save_lines = ["| way | new (s) | ratio | replaces an old file (s) | ratio |", "| --- " * 5 + "|"]
    for way in sorted({way for way, _ in saves}):
        cells = [cell(saves[way, is_new], saves[PLAIN["save"], is_new]) for is_new in ("yes", "no")]
        save_lines.append(f"| {way} | {' | '.join(cells)} |")
    page = PAGE.format(rounds=options.rounds, loads="\n".join(load_lines), saves="\n".join(save_lines),
                       machine=machine.describe(), about=run(program, "about").strip())
    (options.output / "io.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
