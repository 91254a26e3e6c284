#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the benchmark transformer and writes its page: python3 measure.py PROGRAM [options of the program]

PROGRAM is the program that CMake built from main.cpp. Writes transformer.csv and transformer.md. With
ATEN_CPU_CAPABILITY=avx2 it writes transformer_avx2.csv and .md.
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

PAGE = """# TransformerEncoder

How fast is `attend::TransformerEncoder`, compared with `torch::nn::TransformerEncoder`?

`benchmarks/transformer/measure.py` gives both the same weights and inputs, compares their results, and times them in
turn, in {rounds} rounds. The encoder has 4 layers and 8 heads, in float32. Milliseconds are medians of the rounds. The
ratio is the median of the ratios of the rounds; above 1, attend is faster. E is the width, F that of the feed-forward
network, L the number of positions, N the batch size.

{tables}
{machine}, {threads} threads{capability}; {compiler}, {libtorch}.
"""

TITLES = {
    "training": "Forward and backward, without dropout",
    "dropout": "Forward and backward, dropout 0.1",
    "inference": "Forward, without padding",
    "padded": "Forward, 37.5 % of the positions are padding, which attend leaves out",
}


def table(rows, title):
    lines = [f"## {title}", "", "| E | F | L | N | attend (ms) | torch::nn (ms) | torch::nn / attend |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        sizes = " | ".join(f"{int(row[name]):,}" for name in ("width", "hidden", "length", "batch"))
        times = " | ".join(rounded(float(row[name])) for name in ("attend_ms", "torch_ms"))
        lines.append(f"| {sizes} | {times} | {float(row['torch_over_attend']):.2f} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # the program's own options are passed on
    parser.add_argument("program", help="the program built from main.cpp")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results (default: benchmarks/results)")
    settings, options = parser.parse_known_args()

    machine.warn_if_busy()
    lines = machine.lines_of([settings.program, *options])

    # The program's first line: # LibTorch 2.11.0; compiler: g++ 12.2.0; threads: 2; …
    libtorch, *rest = lines[0].removeprefix("# ").strip().split("; ")
    facts = dict(fact.split(": ", 1) for fact in rest)
    rows = list(csv.DictReader(lines[1:]))
    tables = "\n".join(table([row for row in rows if row["pass"] == name], title) for name, title in TITLES.items()
                       if any(row["pass"] == name for row in rows))
    capability = os.environ.get("ATEN_CPU_CAPABILITY")
    name = f"transformer_{capability}" if capability else "transformer"
    settings.output.mkdir(parents=True, exist_ok=True)
    (settings.output / f"{name}.csv").write_text("".join(lines))
    (settings.output / f"{name}.md").write_text(
        PAGE.format(**facts, libtorch=libtorch, machine=machine.describe(), tables=tables,
                    capability=f", ATEN_CPU_CAPABILITY={capability}" if capability else ""))
    print(f"Wrote {settings.output}/{name}.md and .csv.")


if __name__ == "__main__":
    main()
