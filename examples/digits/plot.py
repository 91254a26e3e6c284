#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draws the figures of digits: python3 plot.py FOLDER

FOLDER is the output folder of the program. Writes confusion.png and loss.png into the same folder. Needs matplotlib and
numpy.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import numpy as np
from figures import COLORS, draw_losses, plt, read_columns, save


def draw_confusion(axes, digits, answers):
    """The number of images of each digit (row) by the answer (column)."""
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (digits.astype(int), answers.astype(int)), 1)
    axes.imshow(np.sqrt(counts), cmap="Blues")  # the square root, so that single errors are visible
    for (digit, answer), count in np.ndenumerate(counts):
        if count:
            axes.text(answer, digit, count, ha="center", va="center", color="white" if count > 10 else "black")
    right = np.trace(counts)
    axes.set(xticks=range(10), yticks=range(10), xlabel="answer", ylabel="digit",
             title=f"{right} of {counts.sum()} held-out images: {100 * right / counts.sum():.1f} %")


def main():
    folder = Path(sys.argv[1])
    columns = read_columns(folder / "answers.csv")
    figure, axes = plt.subplots(figsize=(5, 5))
    draw_confusion(axes, columns["digit"], columns["answer"])
    save(figure, folder / "confusion.png")
    figure, axes = plt.subplots(figsize=(6, 4))
    draw_losses(axes, {"transformer": read_columns(folder / "history.csv")}, {"transformer": COLORS["attention"]})
    axes.set(ylabel="cross entropy")
    save(figure, folder / "loss.png")


if __name__ == "__main__":
    main()
