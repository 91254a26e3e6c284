#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the page gpu.md from the files of a run of gpu.sh: python3 gpu_page.py FOLDER

Reads stages.csv, attention.csv, and experiment_cuda.md (in a rehearsal experiment.md) in FOLDER. If one of the last two
is missing, the page says that nothing was measured.
"""

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from digits import rounded  # noqa: E402

PAGE = """# attend on a GPU

Which tests pass on a GPU, and how fast are attend's CUDA kernels there?

`benchmarks/gpu.sh` has run these stages on this machine: {card}. Date: {date}.
`benchmarks/gpu_page.py` has written this page from the files of the run.
{rehearsal}
## Tests and measurements

{stages}
"Random calls" are those by which the harness tests the kernels on the host: every option and dtype, compared with a
loop in float64. memcheck and racecheck are tools of compute-sanitizer, which got two calls of each test.

## Attention

attend's kernels (`attend::cuda::backend()`) and a peer ran in one process, in turn, with the same inputs in bfloat16.

- Times are medians, measured with CUDA events. The backward pass is timed alone.
- "Ratio" is the median of the peer's time divided by attend's; above 1, attend is faster.
- "Goal" is the ratio that was required before the kernels were written.
- TFLOP/s count two products of the forward pass and five of the backward pass, without masked scores.
- "Difference" is the largest difference of a result from the peer's, relative to the largest value of that tensor. It
  was checked before the measurement. For the window it is the difference from the dense formula.

{attention}
## Decoding

One query, {heads} heads, N 1. G is the number of key heads and S the number of keys. The calls of several layers are
one CUDA graph. The keys and values of all layers do not fit into the GPU's cache. GB/s count keys and values.

{decoding}
## The experiment

The program of the notebook and attend each train two nets for five epochs.{experiment_link} Seconds from the start of
the process to the last loss:

{experiment}
{software}.
"""

NOTHING = "Nothing was measured: see the stages above.\n"
REHEARSAL = """
**This was a rehearsal without a GPU. It shows that the script works; the numbers mean nothing.**
"""


def read_stages(path):
    """The facts about the machine, and the rows."""
    lines = path.read_text().splitlines()
    facts = {}
    for line in lines:
        if line.startswith("# "):
            name, _, value = line[2:].partition(" ")
            facts.setdefault(name, []).append(value)
    return ({name: ", ".join(values) for name, values in facts.items()},
            list(csv.DictReader(line for line in lines if not line.startswith("# "))))


def table(columns, rows):
    escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in (columns, ["---"] * len(columns), *rows))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in escaped) + "\n"


def number(text, digits=None):
    if not text:
        return ""
    return rounded(float(text)) if digits is None else f"{float(text):.{digits}f}"


def attention(rows):
    reached = [float(row["ratio"]) >= float(row["goal"]) for row in rows if row["ratio"] and row["goal"]]
    goals = sum(bool(row["goal"]) for row in rows)
    return f"{sum(reached)} of {goals} goals were reached.\n\n" + table(
        ["case", "pass", "N", "L", "D", "attend (ms)", "peer", "peer (ms)", "ratio", "goal", "TFLOP/s", "of the peer",
         "difference"],
        [[row["case"], row["pass"], row["N"], f"{int(row['L']):,}", row["D"], number(row["attend_ms"]), row["peer"],
          number(row["peer_ms"]), number(row["ratio"], 2), row["goal"], number(row["tflops"]),
          number(row["peer_tflops"]), row["note"] or f"{float(row['difference']):.0e}"] for row in rows])


def decoding(rows):
    return table(
        ["G", "S", "D", "attend (ms)", "SDPA (ms)", "ratio", "GB/s", "difference"],
        [[row["G"], f"{int(row['S']):,}", row["D"], number(row["attend_ms"]), number(row["peer_ms"]),
          number(row["ratio"], 2), number(row["gb_per_s"]), row["note"] or f"{float(row['difference']):.0e}"]
         for row in rows])


def experiment(page):
    """The table of the whole program."""
    section = page.split("## The whole program")[1].split("\n## ")[0]
    return "".join(line + "\n" for line in section.splitlines() if line.startswith("|"))


def page(folder):
    facts, stages = read_stages(folder / "stages.csv")
    parts = {}
    rows = []
    if (folder / "attention.csv").is_file():
        with open(folder / "attention.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    is_decoding = [row["case"] == "decoding" for row in rows]
    for name, function, wanted in (("attention", attention, False), ("decoding", decoding, True)):
        chosen = [row for row, decodes in zip(rows, is_decoding) if decodes == wanted]
        parts[name] = function(chosen) if chosen else NOTHING
    parts["heads"] = next((row["H"] for row in rows), "16")
    pages = (folder / name for name in ("experiment_cuda.md", "experiment.md"))
    results = next((path for path in pages if path.is_file()), None)
    parts["experiment"] = experiment(results.read_text()) if results else NOTHING
    parts["experiment_link"] = f" [{results.name}]({results.name}) has all results." if results else ""
    return PAGE.format(
        card=facts["card"], date=facts["date"], rehearsal=REHEARSAL if facts["card"] == "no GPU" else "",
        stages=table(["stage", "seconds", "result"], [list(row.values()) for row in stages]),
        software="; ".join(facts[name] for name in ("software", "compiler", "nvcc", "source") if name in facts),
        **parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    (folder / "gpu.md").write_text(page(folder))
    print(f"Wrote {folder / 'gpu.md'}.")


if __name__ == "__main__":
    main()
