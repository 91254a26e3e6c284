#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draws the figures of attention_series and writes its page: python3 plot.py FOLDER

FOLDER is the output folder of the program. Writes series.md and its figures into the same folder, for the experiments that
have been run. Needs matplotlib and numpy.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import numpy as np
from figures import COLORS, draw_losses, draw_map, draw_signals, plt, read_columns, read_rows, read_samples, save

COLOR_OF = {
    "conv": COLORS["convolution"],
    "attention": COLORS["attention"],
    "location": "#c77d1e",
    "location_positions": "#3d8b37",
    "heads": "#5b4b9a",
}


class Experiment:
    """The results of one experiment, read from its folder."""

    def __init__(self, folder, color):
        self.color = color
        (self.results,) = read_rows(folder / "results.csv")
        self.history = read_columns(folder / "history.csv")
        self.samples = read_samples(folder / "samples.csv")
        self.shapes = [[] for _ in self.samples]
        for row in read_rows(folder / "shapes.csv"):
            centre, reach = float(row["centre"]), float(row["width"]) / 2
            self.shapes[int(row["sample"])].append(
                (math.floor(centre - reach) + 1, math.ceil(centre + reach), row["kind"]))
        self.maps = []  # by sample and head
        for sample in range(len(self.samples)):
            paths = sorted(folder.glob(f"map_{sample}_*.csv"), key=lambda path: int(path.stem.split("_")[2]))
            self.maps.append([np.loadtxt(path, delimiter=",") for path in paths])

    def after(self):
        """The number of epochs, in words."""
        return "After one epoch" if self.epochs == 1 else f"After {self.epochs} epochs"

    title = property(lambda self: self.results["title"])
    epochs = property(lambda self: int(self.results["epochs"]))
    held_out_loss = property(lambda self: float(self.results["held_out_loss"]))
    own_share = property(lambda self: float(self.results["own_share"]))


def colors_with(experiments):
    return {**COLORS, **{each.title: each.color for each in experiments}}


def legend_beside(axes):
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def draw_outputs(path, experiments, title):
    """Held-out inputs with the outputs of each net for the same signals."""
    samples = experiments[0].samples
    figure, all_axes = plt.subplots(len(samples), 1, figsize=(8, 2.2 * len(samples)), sharex=True, layout="constrained")
    for i, axes in enumerate(all_axes):
        outputs = {each.title: each.samples[i]["output"] for each in experiments}
        draw_signals(axes, {**samples[i], **outputs}, ("input", "target", *outputs), colors_with(experiments))
        axes.label_outer()
    all_axes[0].set_title(title)
    figure.legend(*all_axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=4)
    save(figure, path)


def draw_maps(path, cells, title):
    """Maps in two columns: (label, signal, shapes, weights) each."""
    rows = (len(cells) + 1) // 2
    figure = plt.figure(figsize=(12.6, 5.4 * rows))
    grid = figure.add_gridspec(rows, 2, wspace=0.34, hspace=0.28)
    for cell, (label, signal, shapes, weights) in zip(grid, cells):
        draw_map(figure, cell, signal, shapes, weights).set_title(label, loc="left")
    figure.suptitle(title, y=0.93)
    save(figure, path)


def draw_curves(path, experiments):
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for each in experiments:
        axes.plot(each.history["epoch"] + 1, each.history["validation_loss"], color=each.color, label=each.title)
    axes.set(yscale="log", xlabel="epoch", ylabel="held-out mean squared error", title="The series")
    axes.grid(which="both", alpha=0.25)
    legend_beside(axes)
    save(figure, path)


def loss_after(experiment, epochs):
    return experiment.history["validation_loss"][epochs - 1]


def story(folder, experiments):
    """Draws the figures in order, and returns the page as a list of paragraphs."""
    page = ["# Attention in a few experiments"]
    conv, attention, location, with_positions, heads = (experiments.get(name) for name in COLOR_OF)
    by_kind = [each for each in (conv, attention) if each]
    by_location = [each for each in (location, with_positions) if each]

    def show(heading, *figures_and_sentences):
        page.append(f"## {heading}")
        page.extend(figures_and_sentences)

    if by_kind:
        figure, axes = plt.subplots(figsize=(8, 3))
        draw_signals(axes, by_kind[0].samples[0], ("input", "target"))
        axes.set_title("One sample: each shape is to get the mean height of its kind")
        legend_beside(axes)
        save(figure, folder / "data_example.png")
        show("The task", "![A sample: input and target](data_example.png)",
             "A signal holds two triangles and two rectangles, with noise. A net must output the signal with both triangles at "
             "their mean height and both rectangles at theirs. Each output therefore depends on shapes that may be far away.")

        figure, axes = plt.subplots(figsize=(8, 4))
        draw_losses(axes, {each.title: each.history for each in by_kind}, colors_with(by_kind))
        save(figure, folder / "loss.png")
        sentences = [f"{each.after()} the held-out error of the net \"{each.title}\" is {each.held_out_loss:.3f}, with "
                     f"{int(each.results['parameters']):,} parameters." for each in by_kind]
        show("Convolution and attention", "![Loss per epoch](loss.png)", " ".join(sentences))

        draw_outputs(folder / "predictions.png", by_kind, "Held-out signals and what the nets make of them")
        show("Predictions", "![Held-out signals](predictions.png)",
             "Five convolutions of width 5 see 21 positions. If the shapes of a kind are farther apart, the convolution net cannot "
             "compute their mean height. It gives each shape a height between its own and the usual height. The attention layer sees "
             "all positions, and its weights depend on the content of the signal.")

    if attention:
        cells = [(f"signal {i + 1}", attention.samples[i]["input"], attention.shapes[i], maps[0])
                 for i, maps in enumerate(attention.maps)]
        draw_maps(folder / "attention_map.png", cells, "What each position attends to")
        show("Attention maps", "![Attention maps](attention_map.png)",
             "Each row of a map belongs to one position and shows the weights with which it averages all positions. Frames mark the "
             f"weights between shapes of the same kind. {'Peaks attend to peaks of their kind. ' if attention.own_share > 0.6 else ''}"
             f"Of the weights with which a peak attends to shapes, {attention.own_share:.1%} are on shapes of its own kind. "
             f"This is a mean over {attention.results['mapped_samples']} held-out signals. Without a preference it would be half.")

    if by_location:
        draw_outputs(folder / "location.png", by_location, "By location: the two shapes to the left, and the two to the right")
        sentences = [f"{each.after()} the held-out error of the net \"{each.title}\" is {each.held_out_loss:.3f}." for each in by_location]
        show("Positions", "![Held-out signals, by location](location.png)",
             "In this task the groups are the two leftmost shapes and the two rightmost shapes. Attention compares the content at two "
             "positions, not the positions. It needs additional channels that hold the position, here its bits. " + " ".join(sentences))

    curves = by_kind + by_location
    if len(curves) > 1:
        draw_curves(folder / "curves.png", curves)
        epochs = min(12, *(each.epochs for each in curves))
        rows = [f"| {each.title} | {loss_after(each, epochs):.2f} | {each.held_out_loss:.3f} | {each.epochs} "
                f"| {float(each.results['seconds']):.1f} |" for each in curves]
        best, worst = (choose(curves, key=lambda each: loss_after(each, epochs)) for choose in (min, max))
        show("All curves", "![The curves](curves.png)",
             f"After {epochs} epochs the net \"{best.title}\" has the smallest held-out error, {loss_after(best, epochs):.2f}, and \"{worst.title}\" the "
             f"largest, {loss_after(worst, epochs):.2f}. If a net does not see far enough, or needs positions and has none, it soon "
             "improves only slowly. The other nets continue to improve.",
             f"| net | held-out error after epoch {epochs} | at the end | epochs | s / epoch |\n| --- | --- | --- | --- | --- |\n"
             + "\n".join(rows))

    if heads:
        cells = [(f"head {head + 1}", heads.samples[0]["input"], heads.shapes[0], weights)
                 for head, weights in enumerate(heads.maps[0])]
        draw_maps(folder / "heads.png", cells, "Four heads, one signal")
        show("Several heads", "![The maps of four heads](heads.png)",
             f"This is the attention net with four heads, scaled scores and GELU. {heads.after()} its held-out error is "
             f"{heads.held_out_loss:.3f}. Each head has a quarter of the channels and its own map.")
    return page


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python3 plot.py FOLDER (the output folder of attention_series)")
    folder = Path(sys.argv[1])
    experiments = {name: Experiment(folder / name, color) for name, color in COLOR_OF.items()
                   if (folder / name / "results.csv").is_file()}
    if not experiments:
        sys.exit(f"plot.py: {folder} has no results; run attention_series --output {folder}")
    (folder / "series.md").write_text("\n\n".join(story(folder, experiments)) + "\n")
    print(folder / "series.md")


if __name__ == "__main__":
    main()
