# SPDX-License-Identifier: MIT
"""Common parts of the figures of the examples. Needs matplotlib and numpy."""

import csv

import matplotlib

matplotlib.use("Agg")  # draws into files, needs no display
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
from matplotlib.patches import Rectangle

plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})

COLORS = {
    "input": "#8a8a8a",
    "target": "#1b1b1b",
    "convolution": "#d1495b",
    "attention": "#00798c",
    "triangle": "#edae49",
    "rectangle": "#5d78a3",
}


def read_rows(path):
    """A CSV file with a header as dictionaries of strings."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read_columns(path):
    """A CSV file with a header as arrays of numbers by column name. The arrays are empty if there is only a header."""
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    return {name: np.array([float(row[i]) for row in rows]) for i, name in enumerate(header)}


def read_samples(path):
    """The samples of a samples.csv, each as a dictionary of arrays over positions."""
    columns = read_columns(path)
    return [
        {name: values[columns["sample"] == sample] for name, values in columns.items()}
        for sample in np.unique(columns["sample"])
    ]


def draw_losses(axes, histories, colors=COLORS):
    """Training and held-out loss of each epoch, by name."""
    for name, history in histories.items():
        epochs = history["epoch"] + 1
        axes.plot(epochs, history["train_loss"], "--", color=colors[name], lw=1, label=f"{name}, training")
        axes.plot(epochs, history["validation_loss"], color=colors[name], lw=2, label=f"{name}, held out")
    axes.set(yscale="log", xlabel="epoch", ylabel="mean squared error", title="Loss after each epoch")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.grid(which="both", alpha=0.25)
    axes.legend(frameon=False)


def draw_signals(axes, sample, names, colors=COLORS, ylabel="height"):
    """Signals of one sample over the positions, by name."""
    for name in names:
        axes.plot(sample["position"], sample[name], color=colors[name], lw=1.2 if name == "input" else 2, label=name)
    axes.set(xlabel="position", ylabel=ylabel, xlim=(0, sample["position"][-1]))
    axes.grid(alpha=0.25)


def draw_map(figure, cell, signal, shapes, weights):
    """The L × L weights, with the signal along both axes and a colour for each shape (first position, end, kind)."""
    grid = cell.subgridspec(2, 3, width_ratios=(1, 5, 0.2), height_ratios=(1, 5), hspace=0.04, wspace=0.05)
    axes = figure.add_subplot(grid[1, 1])
    top = figure.add_subplot(grid[0, 1], sharex=axes)
    left = figure.add_subplot(grid[1, 0], sharey=axes)
    bar = figure.add_subplot(grid[1, 2])
    positions = np.arange(len(signal))
    # The colour is the square root of the weight, so that small weights are visible beside large ones.
    norm = matplotlib.colors.PowerNorm(0.5, vmin=0, vmax=max(np.quantile(weights, 0.998), 1e-6))
    image = axes.imshow(weights, cmap="magma", norm=norm, interpolation="nearest", aspect="auto")
    top.plot(positions, signal, color=COLORS["target"], lw=1)
    left.plot(signal, positions, color=COLORS["target"], lw=1)
    left.invert_xaxis()
    for first, end, kind in shapes:
        top.axvspan(first - 0.5, end - 0.5, color=COLORS[kind], alpha=0.6, lw=0)
        left.axhspan(first - 0.5, end - 0.5, color=COLORS[kind], alpha=0.6, lw=0)
        for begin, stop, other in shapes:
            if kind == other:  # where queries and keys are of one kind
                axes.add_patch(Rectangle((begin - 0.5, first - 0.5), stop - begin, end - first, fill=False,
                                         edgecolor=COLORS[kind], lw=0.8))
    axes.set(xlabel="key position", xlim=(-0.5, len(signal) - 0.5), ylim=(len(signal) - 0.5, -0.5))
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
