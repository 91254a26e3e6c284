#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draws the figures of conv_vs_attention: python3 plot.py FOLDER, the folder that the program wrote.

Needs matplotlib and numpy. Writes into the same folder loss.png, data_example.png, predictions.png, attention_map.png, and
overview.png, which shows all at a glance.
"""

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files, needs no display
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
from matplotlib.patches import Rectangle

COLORS = {
    "input": "#8a8a8a",
    "target": "#1b1b1b",
    "convolution": "#d1495b",
    "attention": "#00798c",
    "triangle": "#edae49",
    "rectangle": "#5d78a3",
}


def read_columns(path):
    """A CSV file with a header as arrays by column name."""
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    return {name: np.array([float(row[i]) for row in rows]) for i, name in enumerate(header)}


def read_samples(folder):
    """The pictured samples, each a dictionary of arrays over positions."""
    columns = read_columns(folder / "samples.csv")
    return [
        {name: values[columns["sample"] == sample] for name, values in columns.items()}
        for sample in np.unique(columns["sample"])
    ]


def shapes(height):
    """(first position, end, kind) of each shape in a signal without noise. Shapes stand at least ten apart."""
    positions = np.flatnonzero(height)
    for run in np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1):
        flat = np.all(height[run] == height[run[0]])
        first = run[0] if flat else run[0] - 1  # a triangle starts at height 0
        yield first, run[-1] + 1, "rectangle" if flat else "triangle"


def draw_losses(axes, histories):
    for name, history in histories.items():
        epochs = history["epoch"] + 1
        axes.plot(epochs, history["train_loss"], "--", color=COLORS[name], lw=1, label=f"{name}, training")
        axes.plot(epochs, history["validation_loss"], color=COLORS[name], lw=2, label=f"{name}, held out")
    axes.set(yscale="log", xlabel="epoch", ylabel="mean squared error", title="Loss after each epoch")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.grid(which="both", alpha=0.25)
    axes.legend(frameon=False)


def draw_signals(axes, sample, names):
    for name in names:
        axes.plot(sample["position"], sample[name], color=COLORS[name], lw=1.2 if name == "input" else 2, label=name)
    axes.set(xlabel="position", ylabel="height (normalized)", xlim=(0, sample["position"][-1]))
    axes.grid(alpha=0.25)


def attention_share(sample, weights, queries, keys):
    """The share of their weight that the tops of one kind of shape put on shapes of another kind, on average."""
    on = {"triangle": [], "rectangle": []}
    tops = {"triangle": [], "rectangle": []}
    for first, end, kind in shapes(sample["height"]):
        positions = np.arange(first, end)
        on[kind].extend(positions)
        tops[kind].extend(positions[sample["height"][first:end] == sample["height"][first:end].max()])
    return weights[np.ix_(tops[queries], on[keys])].sum(axis=1).mean() if tops[queries] else float("nan")


def draw_map(figure, cell, sample, weights):
    """The L × L weights, with the signal along both axes and a colour for each shape."""
    grid = cell.subgridspec(2, 3, width_ratios=(1, 5, 0.2), height_ratios=(1, 5), hspace=0.04, wspace=0.05)
    axes = figure.add_subplot(grid[1, 1])
    top = figure.add_subplot(grid[0, 1], sharex=axes)
    left = figure.add_subplot(grid[1, 0], sharey=axes)
    bar = figure.add_subplot(grid[1, 2])
    length = len(sample["position"])
    # The square root of the weight, so that small weights show beside large ones.
    norm = matplotlib.colors.PowerNorm(0.5, vmin=0, vmax=max(np.quantile(weights, 0.998), 1e-6))
    image = axes.imshow(weights, cmap="magma", norm=norm, interpolation="nearest", aspect="auto")
    top.plot(sample["position"], sample["input"], color=COLORS["target"], lw=1)
    left.plot(sample["input"], sample["position"], color=COLORS["target"], lw=1)
    left.invert_xaxis()
    for first, end, kind in shapes(sample["height"]):
        top.axvspan(first - 0.5, end - 0.5, color=COLORS[kind], alpha=0.6, lw=0)
        left.axhspan(first - 0.5, end - 0.5, color=COLORS[kind], alpha=0.6, lw=0)
        for begin, stop, other in shapes(sample["height"]):
            if kind == other:  # where queries and keys are of one kind
                axes.add_patch(Rectangle((begin - 0.5, first - 0.5), stop - begin, end - first, fill=False,
                                         edgecolor=COLORS[kind], lw=0.8))
    axes.set(xlabel="key position", xlim=(-0.5, length - 0.5), ylim=(length - 0.5, -0.5))
    left.set(ylabel="query position", xticks=[])
    top.set(yticks=[])
    top.tick_params(labelbottom=False)
    axes.tick_params(labelleft=False)
    figure.colorbar(image, cax=bar, label="weight")
    handles = [Rectangle((0, 0), 1, 1, color=COLORS[kind], alpha=0.6) for kind in ("triangle", "rectangle")]
    axes.legend(handles, ("triangle", "rectangle"), loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2,
                frameon=False)
    return top


def save(figure, path):
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    print(path)


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python3 plot.py FOLDER, the folder that conv_vs_attention wrote")
    folder = Path(sys.argv[1])
    if not (folder / "samples.csv").is_file() or (folder / "samples.csv").stat().st_size == 0:
        sys.exit(f"plot.py: {folder} has no results in samples.csv; run conv_vs_attention --output {folder} to its end")
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})

    histories = {
        name: read_columns(folder / name / "history.csv")
        for name in ("convolution", "attention")
        if (folder / name / "history.csv").is_file()
    }
    samples = read_samples(folder)
    nets = [name for name in ("convolution", "attention") if name in samples[0]]
    maps = [np.loadtxt(path, delimiter=",") for path in sorted((folder / "attention").glob("map_*.csv"))]

    figure, axes = plt.subplots(figsize=(8, 4))
    draw_losses(axes, histories)
    save(figure, folder / "loss.png")

    figure, axes = plt.subplots(figsize=(8, 3))
    draw_signals(axes, samples[0], ("input", "target"))
    axes.set_title("One sample: each shape is to get the mean height of its kind")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, folder / "data_example.png")

    figure, all_axes = plt.subplots(len(samples), 1, figsize=(8, 2.2 * len(samples)), sharex=True, layout="constrained")
    for axes, sample in zip(all_axes, samples):
        draw_signals(axes, sample, ("input", "target", *nets))
        axes.label_outer()
    all_axes[0].set_title("Held-out signals and what the nets make of them")
    all_axes[0].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, folder / "predictions.png")

    if not maps:
        print("no attention maps: the run ended before the attention net was trained")
        return

    for queries, others in (("triangle", "rectangle"), ("rectangle", "triangle")):
        own, other = (
            np.nanmean([attention_share(sample, weights, queries, keys) for sample, weights in zip(samples, maps)])
            for keys in (queries, others)
        )
        print(f"the top of a {queries} puts {own:.0%} of its weight on {queries}s, {other:.0%} on {others}s")

    figure = plt.figure(figsize=(8, 7))
    top = draw_map(figure, figure.add_gridspec(1, 1)[0], samples[0], maps[0])
    top.set_title("What each position attends to", loc="left")
    save(figure, folder / "attention_map.png")

    figure = plt.figure(figsize=(15, 4.6))
    grid = figure.add_gridspec(1, 3, width_ratios=(1, 1.25, 1), wspace=0.24)
    draw_losses(figure.add_subplot(grid[0]), histories)
    axes = figure.add_subplot(grid[1])
    draw_signals(axes, samples[0], ("input", "target", *nets))
    axes.set_title("A held-out signal")
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    draw_map(figure, grid[2], samples[0], maps[0]).set_title("What attention looks at", loc="left")
    save(figure, folder / "overview.png")


if __name__ == "__main__":
    main()
