#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the benchmark decode and writes its page: python3 measure.py PROGRAM [options of the program]

PROGRAM is the program that CMake built from main.cpp. It runs twice: with the best instruction set of this processor, and
with AVX2. Writes NAME.csv and NAME.md. The exit status is 1 if ATen / attend is below 0.9 in any row.
"""

import argparse
import csv
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import machine  # noqa: E402
from digits import rounded  # noqa: E402

RESULTS = Path(__file__).resolve().parents[1] / "results"
NOISE = 0.9  # a ratio below this is a loss

PAGE = """# Decoding

How fast is one step of decoding with a `KeyValueCache`?

`benchmarks/decode/measure.py` times three calls in turn, in one process: `KeyValueCache::attention()` of one query, ATen's
`scaled_dot_product_attention`, and a plain sum over the same bytes. Each call reads the next layer of a cache of more than
256 MB, as in a model, so the keys and values come from memory. Milliseconds are medians of the rounds. Ratios are medians
of the ratios of the rounds.

- ATen / attend: above 1, attend is faster.
- Bandwidth: the time of the plain sum divided by the time of attend. 100 % means that attend reads keys and values as fast
  as a plain sum. It can be more, because attend prefetches.

N is the batch size, H the number of query heads, G the number of key heads, S the number of keys and D the head dimension.
Page 0 means a contiguous cache. ATen always reads contiguous tensors. With "different" lengths the batch entries have S / 8
to S keys; ATen then gets a mask, and reads the padding too. "MB" is the size of the keys and values that attend reads.

{sections}

{machine}, {threads} threads; {compiler}, {libtorch}.
"""


def table(rows):
    lines = ["| dtype | N | H | G | S | D | page | lengths | MB | attend (ms) | ATen (ms) | sum (ms) | ATen / attend | bandwidth |",
             "| --- " * 14 + "|"]
    for row in rows:
        sizes = " | ".join(f"{int(row[name]):,}" for name in ("N", "H", "G", "S", "D", "page_size"))
        times = " | ".join(rounded(float(row[name])) for name in ("attend_ms", "aten_ms", "sum_ms"))
        lines.append(f"| {row['dtype']} | {sizes} | {row['lengths']} | {float(row['megabytes']):.0f} | {times} | "
                     f"{float(row['aten_over_attend']):.2f} | {float(row['share']):.0%} |")
    return "\n".join(lines)


def run(command, capability):
    """The facts and the rows that the program prints."""
    environment = {**os.environ, **({"ATEN_CPU_CAPABILITY": capability} if capability else {})}
    lines = machine.lines_of(command, environment)
    facts = dict(line[2:].rstrip().split(" ", 1) for line in lines if line.startswith("# "))
    return facts, list(csv.DictReader(line for line in lines if not line.startswith("# ")))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # the program's own options are passed on
    parser.add_argument("program", help="the program built from main.cpp")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results (default: benchmarks/results)")
    parser.add_argument("--name", default="decode", help="NAME of the files (default: decode)")
    settings, options = parser.parse_known_args()

    machine.warn_if_busy()
    sections, all_rows = [], []
    for title, capability in (("The best instruction set", None), ("AVX2", "avx2")):
        facts, rows = run([settings.program, *options], capability)
        sections.append(f"## {title}\n\n{facts['instructions']}\n\n{table(rows)}")
        all_rows += [{"instructions": title, **row} for row in rows]
    losses = [row for row in all_rows if float(row["aten_over_attend"]) < NOISE]
    settings.output.mkdir(parents=True, exist_ok=True)
    with (settings.output / f"{settings.name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(all_rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(all_rows)
    (settings.output / f"{settings.name}.md").write_text(
        PAGE.format(sections="\n\n".join(sections), machine=machine.describe(), **facts))
    print(f"ATen / attend is below {NOISE} in {len(losses)} of {len(all_rows)} rows.")
    sys.exit(1 if losses else 0)


if __name__ == "__main__":
    main()
