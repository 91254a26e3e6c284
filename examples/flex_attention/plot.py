#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draws the pictures of docs/flex_attention.md: python3 plot.py FOLDER [PICTURES]

FOLDER is the folder that the program wrote. The pictures are written into the folder PICTURES, by default FOLDER. Needs
matplotlib and numpy.
"""

import io
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files, needs no display
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from PIL import Image  # comes with matplotlib

NEVER, RULED_OUT, ATTENDED = "#ffffff", "#f0c9a4", "#00798c"
DOCUMENTS = ["#8a8a8a", "#00798c", "#d1495b", "#edae49"]


def panels(count, figsize):
    figure, axes = plt.subplots(1, count, figsize=figsize, layout="constrained")
    for one in axes:
        one.set(xlabel="key", ylabel="query")
    return figure, axes


def draw_scores(folder):
    figure, axes = panels(3, (8, 3))
    colors = plt.get_cmap("viridis").with_extremes(bad="#e6e6e6")
    for one, head, slope in zip(axes, (0, 2, 4), ("1/2", "1/8", "1/32")):
        scores = np.loadtxt(folder / f"distance_penalty_{head}.csv", delimiter=",")
        image = one.imshow(np.ma.masked_invalid(scores), cmap=colors, vmin=-6, vmax=0)
        one.set_title(f"head {head}: slope {slope}")
    figure.colorbar(image, ax=axes, label="added to the score", extend="min", shrink=0.75)
    axes[0].legend(handles=[Patch(facecolor="#e6e6e6", label="not allowed")], loc="upper right", fontsize=8)
    return figure


def draw_window(folder):
    figure, axes = panels(3, (8, 3.2))
    colors = [NEVER, RULED_OUT, ATTENDED]
    names = [("near", "Near{12}"), ("causal", "Causal"), ("near_and_causal", "Near{12} & Causal")]
    for one, (name, title) in zip(axes, names):
        one.imshow(np.loadtxt(folder / f"{name}.csv", delimiter=","), cmap=ListedColormap(colors), vmin=0, vmax=2)
        one.set_title(title)
        one.set(xticks=range(0, 65, 16), yticks=range(0, 65, 16))
    labels = ("attended", "computed and ruled out", "never computed")
    handles = [Patch(facecolor=color, edgecolor="#8a8a8a", lw=0.5, label=label) for color, label in zip(colors[::-1], labels)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_documents(folder):
    figure, axes = panels(2, (7, 3.6))
    names = [("documents", "Document & Causal"), ("documents_and_prompt", "(FirstKeys{8} | Document) & Causal")]
    for one, (name, title) in zip(axes, names):
        one.imshow(np.loadtxt(folder / f"{name}.csv", delimiter=","), cmap=ListedColormap([NEVER, *DOCUMENTS]), vmin=0, vmax=4)
        one.set_title(title)
        one.set(xticks=(0, 8, 28, 40, 64), yticks=(0, 8, 28, 40, 64))
    labels = ("queries of the prompt", "of document 1", "of document 2", "of document 3")
    handles = [Patch(facecolor=color, label=label) for color, label in zip(DOCUMENTS, labels)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def draw_learned(folder):
    figure, axes = panels(4, (9.6, 2.7))
    names = ["grid_table_0", "grid_bias_0", "grid_table_1", "grid_bias_1"]
    for one, name in zip(axes, names):
        is_table = "table" in name
        if is_table:
            one.set(xlabel="columns from query to key", ylabel="rows from query to key")
        extent = (-5.5, 5.5, 5.5, -5.5) if is_table else None
        image = one.imshow(np.loadtxt(folder / f"{name}.csv", delimiter=","), cmap="viridis", vmin=-6, vmax=6, extent=extent)
        one.set_title(f"head {name[-1]}: {'the table' if is_table else 'the scores'}")
    figure.colorbar(image, ax=axes, label="added to the score", shrink=0.9)
    return figure


PICTURES = {
    "distance_penalty": draw_scores,
    "window": draw_window,
    "documents": draw_documents,
    "grid_bias": draw_learned,
}


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit("usage: python3 plot.py FOLDER [PICTURES] (FOLDER: written by flex_attention)")
    folder, pictures = Path(sys.argv[1]), Path(sys.argv[-1])
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 10, "image.interpolation": "nearest"})
    for name, draw in PICTURES.items():
        figure = draw(folder)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=100)
        plt.close(figure)
        # A palette halves the size of the file, or better.
        palette = Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
        palette.save(pictures / f"{name}.png", optimize=True)
        print(pictures / f"{name}.png")


if __name__ == "__main__":
    main()
