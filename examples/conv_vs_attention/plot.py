#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draws the figures of conv_vs_attention: python3 plot.py FOLDER

FOLDER is the output folder of the program. Writes loss.png, data_example.png, predictions.png, attention_map.png and
overview.png into the same folder. Needs matplotlib and numpy.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import numpy as np
from figures import draw_losses, draw_map, draw_signals, plt, read_columns, read_samples, save


def shapes(height):
    """(first position, end, kind) of each shape in a signal without noise. Shapes are at least ten positions apart."""
    positions = np.flatnonzero(height)
    for run in np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1):
        flat = np.all(height[run] == height[run[0]])
        first = run[0] if flat else run[0] - 1  # a triangle starts at height 0
        yield first, run[-1] + 1, "rectangle" if flat else "triangle"


def attention_share(sample, weights, queries, keys):
    """The mean share of attention that the tops of shapes of one kind (queries) give to shapes of a kind (keys)."""
    on = {"triangle": [], "rectangle": []}
    tops = {"triangle": [], "rectangle": []}
    for first, end, kind in shapes(sample["height"]):
        positions = np.arange(first, end)
        on[kind].extend(positions)
        tops[kind].extend(positions[sample["height"][first:end] == sample["height"][first:end].max()])
    return weights[np.ix_(tops[queries], on[keys])].sum(axis=1).mean() if tops[queries] else float("nan")


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python3 plot.py FOLDER (the output folder of conv_vs_attention)")
    folder = Path(sys.argv[1])
    if not (folder / "samples.csv").is_file() or (folder / "samples.csv").stat().st_size == 0:
        sys.exit(f"plot.py: {folder} has no results in samples.csv; run conv_vs_attention --output {folder} until it ends")
    histories = {
        name: read_columns(folder / name / "history.csv")
        for name in ("convolution", "attention")
        if (folder / name / "history.csv").is_file()
    }
    samples = read_samples(folder / "samples.csv")
    nets = [name for name in ("convolution", "attention") if name in samples[0]]
    maps = [np.loadtxt(path, delimiter=",") for path in sorted((folder / "attention").glob("map_*.csv"))]

    figure, axes = plt.subplots(figsize=(8, 4))
    draw_losses(axes, histories)
    save(figure, folder / "loss.png")

    figure, axes = plt.subplots(figsize=(8, 3))
    draw_signals(axes, samples[0], ("input", "target"), ylabel="height (normalized)")
    axes.set_title("One sample: each shape is to get the mean height of its kind")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, folder / "data_example.png")

    figure, all_axes = plt.subplots(len(samples), 1, figsize=(8, 2.2 * len(samples)), sharex=True, layout="constrained")
    for axes, sample in zip(all_axes, samples):
        draw_signals(axes, sample, ("input", "target", *nets), ylabel="height (normalized)")
        axes.label_outer()
    all_axes[0].set_title("Held-out signals and what the nets make of them")
    all_axes[0].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, folder / "predictions.png")

    if not maps:
        print("There are no attention maps: the run ended before the attention net was trained.")
        return

    for queries, others in (("triangle", "rectangle"), ("rectangle", "triangle")):
        own, other = (
            np.nanmean([attention_share(sample, weights, queries, keys) for sample, weights in zip(samples, maps)])
            for keys in (queries, others)
        )
        print(f"The top of a {queries} gives {own:.0%} of its attention to {queries}s and {other:.0%} to {others}s.")
    print("These shares differ from run to run. README.md beside plot.py lists other runs, whose nets solve the task too.")

    figure = plt.figure(figsize=(8, 7))
    top = draw_map(figure, figure.add_gridspec(1, 1)[0], samples[0]["input"], list(shapes(samples[0]["height"])), maps[0])
    top.set_title("What each position attends to", loc="left")
    save(figure, folder / "attention_map.png")

    figure = plt.figure(figsize=(15, 4.6))
    grid = figure.add_gridspec(1, 3, width_ratios=(1, 1.25, 1), wspace=0.24)
    draw_losses(figure.add_subplot(grid[0]), histories)
    axes = figure.add_subplot(grid[1])
    draw_signals(axes, samples[0], ("input", "target", *nets), ylabel="height (normalized)")
    axes.set_title("A held-out signal")
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    draw_map(figure, grid[2], samples[0]["input"], list(shapes(samples[0]["height"])), maps[0]).set_title("What attention looks at", loc="left")
    save(figure, folder / "overview.png")


if __name__ == "__main__":
    main()
