#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compares the speed of attend::ShapeDataset with the same rules in Python: python3 compare.py PROGRAM

PROGRAM is the program that CMake built from main.cpp. In Python, the notebook's rule draws one sample after another with
numpy, and the handout's rule draws thousands at a time with torch. The programs run in turn. Prints the medians as a
Markdown table.
"""

import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "attention_series"))

import handout
import numpy as np

SAMPLES, SIZE, MAX_HEIGHT, NOISE = 10_000, 100, 50, 0.3


def sample():
    """One sample by the notebook's rule: input and target, each with noise and scaled to [0, 1]."""
    shapes, offset = [], 0
    while offset < SIZE:
        base, width = random.randrange(offset, offset + 10), random.randrange(3, 10)
        if base + width > SIZE:
            break
        shapes.append((base, width, random.randrange(5, MAX_HEIGHT), random.random() < 0.5))
        offset = base + width + 10
    heights = {kind: [h for _, _, h, k in shapes if k == kind] for kind in (False, True)}
    signals = []
    for use_mean in (False, True):
        signal = np.zeros(SIZE)
        for base, width, height, is_triangle in shapes:
            if use_mean:
                height = np.mean(heights[is_triangle])
            if is_triangle:
                top = (2 * base + width) // 2
                signal[base : top] = np.linspace(0, height, top - base, endpoint=False, dtype=int)
                signal[top : base + width] = np.linspace(height, 0, base + width - top, endpoint=False, dtype=int)
            else:
                signal[base : base + width] = height
        signal += np.random.normal(0, NOISE, SIZE)
        signals.append(((signal - signal.min()) / (signal.max() - signal.min())).astype(np.float32)[None])
    return signals


def notebook_data():
    inputs, targets = zip(*(sample() for _ in range(SAMPLES)))
    return np.stack(inputs), np.stack(targets)


def milliseconds(make):
    begin = time.perf_counter()
    make()
    return 1000 * (time.perf_counter() - begin)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    rules = {
        "the notebook's, 10,000 samples": notebook_data,
        "the handout's, 26,000 samples": lambda: handout.make_data(26_000, by_location=False),
    }
    rounds = []
    for _ in range(5):
        ours = [float(line) for line in subprocess.run(sys.argv[1], capture_output=True, check=True, text=True).stdout.split()]
        rounds.append([(each, milliseconds(make)) for each, make in zip(ours, rules.values())])
    print("| rule | attend (ms) | Python (ms) | ratio |\n| --- | --- | --- | --- |")
    for name, pairs in zip(rules, zip(*rounds)):
        a, b = (statistics.median(column) for column in zip(*pairs))
        print(f"| {name} | {a:.0f} | {b:.0f} | {b / a:.0f} |")


if __name__ == "__main__":
    main()
