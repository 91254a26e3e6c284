#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the benchmark accuracy and writes its page: python3 measure.py PROGRAM [options of the program]

PROGRAM is the program that CMake built from main.cpp. Writes NAME.csv and NAME.md.
"""

import argparse
import csv
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import machine  # noqa: E402

RESULTS = Path(__file__).resolve().parents[1] / "results"
DTYPES = {"Float": "float32", "BFloat16": "bfloat16", "Half": "float16"}
NAMES = ("output", "lse", "dq", "dk", "dv")
BACKENDS = ("kAuto", "kCpu", "kSdpa")
COLUMNS = ("median", "90 %", "99 %", "worst", "above 1", "above 2")

PAGE = """# Accuracy

How large are the errors of `attention_with_lse()` compared with the dense formula?

`benchmarks/accuracy/measure.py` computes every call three times from the same inputs, which are rounded to the dtype:

1. with attend in the dtype;
2. with the dense formula in the dtype;
3. with the dense formula in float64, which counts as exact.

A ratio is the error of attend divided by the error of the dense formula. Below 1, attend is more accurate.

- **Dense formula**: `(q.matmul(kᵀ) * scale).softmax(-1).matmul(v)` with torch's operators in the dtype of the call, and
  torch's own gradients. Softcap and ALiBi are applied before the softmax. A mask is a `masked_fill` with a large
  negative number. Grouped heads are a `repeat_interleave`. `lse` is the `logsumexp`.
- **Calls**: 13 pairs of lengths (L, S) and 11 head dimensions D from FlashAttention's tests. L × S: 1×147, 1×239,
  3×799, 113×203, 128×217, 113×211, 108×256, 256×512, 512×256, 1024×1024, 1023×1024, 1024×1023, 2048×2048. D: 32, 40,
  59, 64, 96, 111, 128, 160, 192, 224, 256. N is 2 and H is 6. For L ≥ 512, N is 1 and H is 2.
- **Options**: none; causal; a window of S/4 keys to the left and S/8 to the right; softcap 3 with q times 4; ALiBi with
  slopes between 0 and 0.3; half as many key heads; three packed sequences with N 1.
- **Dtypes**: float32 with every combination of lengths, D and option; bfloat16 and float16 with every fourth one.
- **Inputs**: normally distributed random numbers with standard deviation 1, drawn again for each call. The backward
  pass starts from a gradient of the output; `lse` gets no gradient.
- **Backends**: `kCpu`, and `kSdpa` (ATen's fused kernel) for the calls that it can run. The rows "`kAuto`" have the
  results of the backend that `kAuto` uses for each call.

{machine}, {threads} threads; {compiler}, {libtorch}. {instructions}

## Largest errors

The largest error of each result, divided by the largest error of the dense formula. If a result has few elements, both
errors vary much by chance. For example, `lse` has 12 elements if L is 1. The columns "90 %" and "99 %" are percentiles
of the ratios. The last two columns count the calls with a ratio above 1 and above 2.

{largest}

## Root mean square errors

The same ratio for root mean square errors over all elements of a result. These errors vary little by chance.

{mean}

## Root mean square errors, float32, by length

`kAuto`: the median ratio over all head dimensions and options, with the worst ratio in parentheses.

{lengths}

## Root mean square errors, float32, by option

`kAuto`: the median ratio over all lengths and head dimensions, with the worst ratio in parentheses.

{options}

## Few queries

float32, N 2, H 6, D 64, no gradients. The column "q times" is a factor by which q is multiplied. The other columns are
ratios of the largest errors of the output: the mean over {draws} draws of the inputs, with the worst ratio in
parentheses.

{few}
"""


def ratio(row, name):
    """The ratio of two errors. 0 / 0 is 1, because both are exact."""
    ours, dense = float(row[name]), float(row[f"dense_{name}"])
    return ours / dense if dense else 1.0 if not ours else float("inf")


def distribution(ratios):
    """The columns of the tables, without the number of calls."""
    ordered = sorted(ratios)
    quantile = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
    return (quantile(0.5), quantile(0.9), quantile(0.99), ordered[-1],
            sum(value > 1 for value in ratios), sum(value > 2 for value in ratios))


def by(backend, rows):
    return [row for row in rows if (row["is_auto"] == "yes" if backend == "kAuto" else row["backend"] == backend)]


def distributions(rows, error):
    """(dtype, backend, result, number of calls, distribution) for each combination that occurs."""
    for dtype, dtype_name in DTYPES.items():
        for backend in BACKENDS:
            for name in NAMES:
                some = [row for row in by(backend, rows) if row["dtype"] == dtype and row["result"] == name]
                if some:
                    yield dtype_name, backend, name, len(some), distribution([ratio(row, error) for row in some])


def table(rows, error):
    lines = ["| dtype | backend | result | calls | " + " | ".join(COLUMNS) + " |", "| --- " * (4 + len(COLUMNS)) + "|"]
    for dtype, backend, name, count, (*quantiles, above_1, above_2) in distributions(rows, error):
        lines.append(f"| {dtype} | `{backend}` | {name} | {count:,} | " + " | ".join(f"{q:.2f}" for q in quantiles) +
                     f" | {above_1} | {above_2} |")
    return "\n".join(lines)


def table_by(rows, head, key):
    """One line for each key of a row, one column for each result."""
    ratios = defaultdict(lambda: defaultdict(list))
    for row in by("kAuto", rows):
        if row["dtype"] == "Float":
            ratios[key(row)][row["result"]].append(ratio(row, "rms"))
    lines = [f"| {head} | " + " | ".join(NAMES) + " |", "| --- " * (1 + len(NAMES)) + "|"]
    for name, of in ratios.items():
        lines.append(f"| {name} | " + " | ".join(
            f"{distribution(of[result])[0]:.2f} ({max(of[result]):.2f})" for result in NAMES) + " |")
    return "\n".join(lines)


def table_of_few(rows):
    ratios = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["result"] == "output":
            ratios[row["L"], row["S"], row["query_factor"]][row["backend"]].append(ratio(row, "max"))
    lines = ["| L | S | q times | `kCpu` | `kSdpa` |", "| --- " * 5 + "|"]
    for (queries, keys, factor), of in ratios.items():
        lines.append(f"| {queries} | {int(keys):,} | {factor} | " + " | ".join(
            f"{sum(of[backend]) / len(of[backend]):.2f} ({max(of[backend]):.2f})" for backend in ("kCpu", "kSdpa")) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # the program's own options are passed on
    parser.add_argument("program", help="the program built from main.cpp")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results (default: benchmarks/results)")
    parser.add_argument("--name", default="accuracy", help="NAME of the files, for example accuracy_avx2 (default: accuracy)")
    parser.add_argument("--rows", type=Path, help="CSV file for the errors of every call (default: not written)")
    settings, options = parser.parse_known_args()

    text = subprocess.run([settings.program, *options], stdout=subprocess.PIPE, text=True, check=True).stdout
    if settings.rows:
        settings.rows.write_text(text)
    lines = text.splitlines()
    facts = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# "))
    rows = list(csv.DictReader(line for line in lines if not line.startswith("# ")))
    listed = [row for row in rows if row["list"] == "lengths and widths"]
    few = [row for row in rows if row["list"] == "few queries"]

    settings.output.mkdir(parents=True, exist_ok=True)
    with open(settings.output / f"{settings.name}.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("error", "dtype", "backend", "result", "calls", *COLUMNS))
        for error in ("max", "rms"):
            for *first, (*quantiles, above_1, above_2) in distributions(listed, error):
                writer.writerow((error, *first, *(f"{value:.3f}" for value in quantiles), above_1, above_2))
    (settings.output / f"{settings.name}.md").write_text(PAGE.format(
        largest=table(listed, "max"), mean=table(listed, "rms"),
        lengths=table_by(listed, "L × S", lambda row: f"{int(row['L']):,} × {int(row['S']):,}"),
        options=table_by(listed, "option", lambda row: row["option"]),
        few=table_of_few(few), machine=machine.describe(), **facts))


if __name__ == "__main__":
    main()
