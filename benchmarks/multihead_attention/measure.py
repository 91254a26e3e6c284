#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the benchmark multihead_attention and writes its page: python3 measure.py PROGRAM [options of the program]

PROGRAM is the program that CMake built from main.cpp. Writes multihead_attention.csv, .md and .png. Needs matplotlib.
"""

import argparse
import sys
from pathlib import Path

import plot

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import machine  # noqa: E402
from digits import rounded  # noqa: E402

RESULTS = Path(__file__).resolve().parents[1] / "results"

PAGE = """# MultiheadAttention

How fast is self-attention with `attend::MultiheadAttention`, compared with `torch::nn::MultiheadAttention` and with a
hand-written layer of projections and `scaled_dot_product_attention` ("SDPA by hand")?

`benchmarks/multihead_attention/measure.py` gives all three the same weights and inputs, compares their results, and times
them in turn, in {rounds} rounds. The width is {embed_dim}, with {heads} heads, in float32; no attention weights are returned.
Milliseconds are medians of the rounds. A ratio is the median of the ratios of the rounds; above 1, attend is faster. L
is the number of positions, N the batch size.

![Time against length, for the forward pass, and for forward and backward pass together](multihead_attention.png)

{tables}
{machine}, {threads} threads; {compiler}, {libtorch}.
"""


def table(rows, title):
    lines = [
        f"| {title}, L | N | attend (ms) | torch::nn (ms) | SDPA by hand (ms) | torch::nn / attend | SDPA / attend |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        milliseconds = " | ".join(rounded(row[name]) for name in ("attend_ms", "torch_ms", "sdpa_ms"))
        ratios = " | ".join(f"{row[name]:.2f}" for name in ("torch_over_attend", "sdpa_over_attend"))
        lines.append(f"| {row['length']:,.0f} | {row['batch']:.0f} | {milliseconds} | {ratios} |")
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
    rows = plot.read_rows(lines)
    tables = "\n".join(table([row for row in rows if row["pass"] == name], title)
                       for name, title in plot.PASSES.items())
    settings.output.mkdir(parents=True, exist_ok=True)
    (settings.output / "multihead_attention.csv").write_text("".join(lines))
    (settings.output / "multihead_attention.md").write_text(
        PAGE.format(**facts, libtorch=libtorch, machine=machine.describe(), tables=tables))
    plot.draw(rows, settings.output / "multihead_attention.png")
    print(f"Wrote {settings.output}/multihead_attention.md, .csv and .png.")


if __name__ == "__main__":
    main()
