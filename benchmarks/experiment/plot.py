#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draws the figure of a table that measure.py wrote: python3 plot.py TABLE.csv FIGURE.png

Needs matplotlib.
"""

import csv
import itertools
import statistics
import sys

import matplotlib

matplotlib.use("Agg")  # draws into files, needs no display
import matplotlib.pyplot as plt
import matplotlib.ticker

NETS = ("convolution", "attention")
COLORS = {"notebook": "#d1495b", "attend": "#00798c", "attend, bfloat16": "#edae49"}


def read_rows(lines):
    """The rows of the table as dictionaries, numbers as numbers."""
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return [{name: value if name in ("who", "net") else float(value) for name, value in row.items()} for row in rows]


def of(rows, who, net, name):
    return [row[name] for row in rows if (row["who"], row["net"]) == (who, net)]


def draw(rows, path):
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (bars, *curves) = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    curves[1].sharey(curves[0])
    everyone = list(dict.fromkeys(row["who"] for row in rows))
    width = 0.8 / len(everyone)
    for i, who in enumerate(everyone):
        color = COLORS[who]
        for j, net in enumerate(NETS):
            # A bar for the median, and a dot for each epoch.
            seconds = of(rows, who, net, "seconds")
            place = j + (i - (len(everyone) - 1) / 2) * width
            median = statistics.median(seconds)
            bars.bar(place, median, 0.92 * width, color=color, alpha=0.55, label=who if j == 0 else None)
            places = [place + width * (0.2 + 0.6 * (0.618 * k % 1) - 0.5) for k in range(len(seconds))]
            bars.plot(places, seconds, ".", color=color, ms=3.5, mew=0)
            curves[j].plot(list(itertools.accumulate(seconds)), of(rows, who, net, "held_out_loss"), "-",
                           color=color, lw=1.6, marker=".", ms=4, label=who)
    bars.set(title="One epoch", ylabel="seconds", xticks=range(len(NETS)), xticklabels=NETS, ylim=(0, None))
    bars.tick_params(axis="x", length=0)
    for axes, net in zip(curves, NETS):
        axes.set(title=f"{net.capitalize()} net", xlabel="seconds of training", yscale="log", xlim=(0, None))
        axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    curves[0].set_ylabel("held-out loss")
    for axes in (bars, *curves):
        axes.grid(axis="y" if axes is bars else "both", which="both" if axes is not bars else "major", alpha=0.25)
        axes.set_axisbelow(True)
    curves[0].legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], newline="") as file:
        draw(read_rows(file), sys.argv[2])


if __name__ == "__main__":
    main()
