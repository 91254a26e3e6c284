#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the benchmark backends and writes its page: python3 measure.py PROGRAM [options of the program]

PROGRAM is the program that CMake built from main.cpp. Writes NAME.csv and NAME.md. The exit status is 1 if ATen / kAuto is
below 0.9 in any row.
"""

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import machine  # noqa: E402
from digits import rounded  # noqa: E402

RESULTS = Path(__file__).resolve().parents[1] / "results"
NOISE = 0.9  # a ratio below this is a loss

PAGE = """# Choice of a backend

Does `kAuto` use the faster backend?

`benchmarks/backends/measure.py` times three calls in turn, in one process: `attention()` with `kAuto`, `attention()` with
`kCpu`, and ATen's `scaled_dot_product_attention`. Milliseconds are medians of the rounds. The last column, ATen / `kAuto`,
is the median of the ratios of the rounds; above 1, `kAuto` is faster.

N is the batch size, H the number of query heads, G the number of key heads, L the number of queries, S the number of keys
and D the head dimension. The mask is "causal", with the last query aligned to the last key, or "dense", which means none.
The dtypes have torch's names: "Float" is float32, "Double" float64, "Half" float16.

{summary}

{table}

{machine}, {threads} threads; {compiler}, {libtorch}. {instructions}
"""


def table(rows):
    lines = ["| dtype, pass | N | H | G | L | S | D | mask | `kAuto` uses | `kAuto` (ms) | `kCpu` (ms) | ATen (ms) | ATen / `kAuto` |",
             "| --- " * 13 + "|"]
    for row in rows:
        times = " | ".join(rounded(float(row[name])) for name in ("auto_ms", "cpu_ms", "aten_ms"))
        sizes = " | ".join(f"{int(row[name]):,}" for name in "NHGLSD")
        lines.append(f"| {row['dtype']}, {row['pass']} | {sizes} | {row['mask']} | `{row['backend']}` | {times} | "
                     f"{float(row['aten_over_auto']):.2f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # the program's own options are passed on
    parser.add_argument("program", help="the program built from main.cpp")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results (default: benchmarks/results)")
    parser.add_argument("--name", default="backends", help="NAME of the files, for example backends_avx2 (default: backends)")
    settings, options = parser.parse_known_args()

    machine.warn_if_busy()
    lines = machine.lines_of([settings.program, *options])

    facts = dict(line[2:].rstrip().split(" ", 1) for line in lines if line.startswith("# "))
    text = [line for line in lines if not line.startswith("# ")]
    rows = list(csv.DictReader(text))
    losses = [row for row in rows if float(row["aten_over_auto"]) < NOISE]
    summary = f"ATen / `kAuto` is below {NOISE} in {len(losses)} of {len(rows)} rows."
    settings.output.mkdir(parents=True, exist_ok=True)
    (settings.output / f"{settings.name}.csv").write_text("".join(text))
    (settings.output / f"{settings.name}.md").write_text(
        PAGE.format(summary=summary, table=table(rows), machine=machine.describe(), **facts))
    print(summary)
    sys.exit(1 if losses else 0)


if __name__ == "__main__":
    main()
