#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draws the table that the benchmark multihead_attention printed: python3 plot.py TABLE.csv FIGURE.png

Needs matplotlib.
"""

import csv
import sys

import matplotlib

matplotlib.use("Agg")  # draws into files, needs no display
import matplotlib.pyplot as plt
import matplotlib.ticker

PASSES = {"forward": "Forward", "forward_backward": "Forward and backward"}
PEERS = {
    "torch_ms": ("torch::nn::MultiheadAttention", "#d1495b", "s-"),
    "sdpa_ms": ("scaled_dot_product_attention by hand", "#8a8a8a", "D--"),
    "attend_ms": ("attend::MultiheadAttention", "#00798c", "o-"),
}


def read_rows(lines):
    """The rows of the table as dictionaries, numbers as numbers."""
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return [{name: value if name == "pass" else float(value) for name, value in row.items()} for row in rows]


def draw(rows, path):
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for axes, (name, title) in zip(panels, PASSES.items()):
        # Milliseconds for one sequence, because short sequences run in batches.
        points = [row for row in rows if row["pass"] == name]
        lengths = [row["length"] for row in points]
        for column, (label, color, style) in PEERS.items():
            times = [row[column] / row["batch"] for row in points]
            axes.plot(lengths, times, style, color=color, lw=1.8, ms=4, label=label)
        axes.set(xscale="log", yscale="log", xlabel="length of the sequence", title=title)
        axes.set_xticks(lengths, [f"{length:,.0f}" for length in lengths])
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,g}"))
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("milliseconds for one sequence")
    panels[0].legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], newline="") as file:
        draw(read_rows(file), sys.argv[2])


if __name__ == "__main__":
    main()
