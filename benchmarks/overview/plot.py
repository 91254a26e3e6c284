#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draws the first figure of README from measured tables: python3 plot.py [RESULTS [FIGURE.png]]

RESULTS is the folder with multihead_attention.csv, flex_attention.csv and experiment.csv, by default benchmarks/results.
The figure is RESULTS/overview.png by default. Needs matplotlib.
"""

import csv
import itertools
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files, needs no display
import matplotlib.pyplot as plt
import matplotlib.ticker

TORCH, ATTEND = "#d1495b", "#00798c"

# A case of flex_attention.csv, its pass, the function of attend, the peer, and the label of the bar.
CALLS = [
    ("causal", "forward_backward", "attention()", "SDPA", "causal, forward + backward, against SDPA"),
    ("causal, bfloat16", "forward_backward", "attention(), bfloat16", "SDPA, bfloat16",
     "causal, bfloat16, forward + backward, against SDPA"),
    ("causal, ALiBi", "forward", "attention()", "compiled flex_attention",
     "causal, ALiBi, forward, against compiled flex_attention"),
    ("window", "forward", "attention()", "compiled flex_attention", "window, forward, against compiled flex_attention"),
    ("a user's score", "forward_backward", "flex_attention()", "dense formula in torch",
     "a score_mod, forward + backward, against torch's operators"),
]


def read_rows(path):
    """A CSV file with a header as dictionaries of strings; lines with # are comments."""
    with open(path, newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def draw_layer(axes, rows):
    """Milliseconds of MultiheadAttention, forward and backward, for one sequence. Short sequences run in batches."""
    points = [row for row in rows if row["pass"] == "forward_backward"]
    lengths = [int(row["length"]) for row in points]
    for column, label, color, style in [("torch_ms", "torch::nn", TORCH, "s-"), ("attend_ms", "attend", ATTEND, "o-")]:
        times = [float(row[column]) / float(row["batch"]) for row in points]
        axes.plot(lengths, times, style, color=color, lw=1.8, ms=4, label=label)
    axes.set(xscale="log", yscale="log", xlabel="sequence length", ylabel="milliseconds per sequence",
             title="MultiheadAttention,\nforward + backward")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths], fontsize=8.5)
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,g}"))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper left")


def draw_calls(axes, rows):
    """The speed of attend relative to PyTorch, for calls at L 4,096: the ratio of the median times, as in README."""
    largest = 1
    for place, (case, name, ours, peer, label) in enumerate(reversed(CALLS)):
        (row,) = (row for row in rows if row["case"] == case and row["pass"] == name and row["ours"] == ours
                  and row["peer"] == peer and row["L"] == "4096")
        ratio = float(row["peer_ms"]) / float(row["ours_ms"])
        largest = max(largest, ratio)
        axes.barh(place, ratio, 0.42, color=ATTEND, alpha=0.8)
        axes.text(0, place + 0.27, label, va="bottom", fontsize=8.5,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
        axes.text(ratio + 0.08, place, f"{ratio:.1f}", va="center", fontsize=9)
    axes.axvline(1, color=TORCH, lw=1.4, zorder=0)
    axes.text(1.1, -0.37, "PyTorch = 1", color=TORCH, fontsize=8.5)
    axes.set(xlabel="PyTorch's time / attend's time", title="Attention at length 4,096,\n8 heads of 64", yticks=[],
             xlim=(0, 1.12 * largest), ylim=(-0.45, len(CALLS) - 0.3))
    axes.spines["left"].set_visible(False)


def draw_experiment(axes, rows):
    """Held-out loss over seconds of training, for both nets and both programs."""
    for who, label, color in [("notebook", "PyTorch", TORCH), ("attend", "attend", ATTEND)]:
        for net, style in [("convolution", "--"), ("attention", "-")]:
            epochs = [row for row in rows if (row["who"], row["net"]) == (who, net)]
            seconds = list(itertools.accumulate(float(row["seconds"]) for row in epochs))
            losses = [float(row["held_out_loss"]) for row in epochs]
            each = statistics.median(float(row["seconds"]) for row in epochs)
            axes.plot(seconds, losses, style, color=color, lw=1.6,
                      label=f"{label}, {net} net ({each:.1f} s per epoch)")
    axes.set(title="The experiment: 50 epochs,\nconvolution against attention", xlabel="seconds of training",
             ylabel="held-out loss", yscale="log", xlim=(0, None), ylim=(None, 0.02))
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper right", fontsize=8.5)


def draw(results, path):
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (layer, calls, experiment) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    draw_layer(layer, read_rows(results / "multihead_attention.csv"))
    draw_calls(calls, read_rows(results / "flex_attention.csv"))
    draw_experiment(experiment, read_rows(results / "experiment.csv"))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main():
    if len(sys.argv) > 3 or any(word.startswith("-") for word in sys.argv[1:]):
        sys.exit(__doc__)
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "results"
    draw(results, Path(sys.argv[2]) if len(sys.argv) > 2 else results / "overview.png")


if __name__ == "__main__":
    main()
