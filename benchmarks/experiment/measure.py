#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How long does the notebook's program take in Python, and how long with attend? python3 measure.py PROGRAM

PROGRAM is the program that CMake built from main.cpp. The notebook (notebook.py) and PROGRAM in float32 and in bfloat16
train the same two nets in turn, epoch by epoch. Writes experiment.md, .csv and .png, on a GPU experiment_cuda.md, .csv
and .png. Needs numpy, and torch of the same version as PROGRAM. Without matplotlib it writes no figure.
"""

import argparse
import csv
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

try:
    import plot
except ModuleNotFoundError as error:
    if error.name != "matplotlib":
        raise
    plot = None

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import machine  # noqa: E402
from digits import rounded  # noqa: E402

RESULTS = Path(__file__).resolve().parents[1] / "results"
NETS = ("convolution", "attention")
SIZE, BATCH_SIZE, KERNEL = 100, 32, 5
LAST = 10  # epochs over which held-out losses are averaged, because those of single epochs vary

PAGE = """# The experiment

How long does the program of the notebook take in Python, and how long does it take with attend, on the same machine{device}?

`benchmarks/experiment/measure.py` lets the programs train the same two nets in turn, epoch by epoch: {samples:,} samples,
batches of {batch_size}, Adam, {epochs} epochs of each net. "The notebook" is the Python notebook "Attention intuition". It
computes in float32. All rows of attend are compared with it, also those in bfloat16. After each epoch the nets are
evaluated on {held_out:,} held-out samples, with the clock stopped.{steps}

- "s / epoch" is the median of the seconds of the epochs.
- "Ratio" is the median of the ratios of the epochs; above 1, attend is faster.
- "Goal" is the ratio that was required before the program was written.

![Seconds per epoch, and held-out loss over time](experiment{suffix}.png)

{epochs_table}
{about_columns}Losses are those of the last epoch; the last column is a mean over the last {last} epochs. Initial weights, samples and
their order are random and differ between Python and C++. The losses of two attention nets can therefore differ by a
third or more.

## The whole program

Seconds from the start of the process to the last loss. The training samples are made once. The seconds exclude the
held-out samples and the evaluation; the peak memory includes them.

{programs_table}
{bfloat16}## The data

Time to make the training samples and the held-out samples. The notebook makes one sample after another, in Python and
numpy. attend uses `attend::ShapeDataset`.

{data_table}
{machine}, {threads} threads{gpu}; {compiler}, {libtorch}; {python}, torch {torch}.
"""

STEPS = """ attend runs its steps as: {}. Each epoch is a separate fit, which captures its steps anew."""

SHARE = """A step of {batch_size} samples takes {step_convolution:.2f} GFLOP for the convolution net and {step_attention:.2f} for the attention net.
This counts the forward pass and the gradients of inputs and weights, without products with padding. "Of torch's
products" compares the throughput of a program with that of torch's product of two matrices of 1,024², in the same dtype
and run. It can be above 100 %, where attend's own products are faster. torch's product reaches {rate:.0f} GFLOP/s{rate_bfloat16}.

"""


@dataclasses.dataclass(frozen=True, eq=False)
class Who:
    """One of the programs."""

    name: str
    dtype: str
    to_reach: dict  # the required ratios on the CPU: by net, and of the whole program


PEER = Who("notebook", "float32", {})
OURS = Who("attend", "float32", {"convolution": 1.5, "attention": 1.8, "whole": 1.7})
HALF = Who("attend, bfloat16", "bfloat16", {"convolution": 2.5, "attention": 2.5, "whole": 2.5})
DATA_TO_REACH = 100
WHOLE_TO_REACH_ON_A_GPU = 10


class Program:
    """A running program that answers requests."""

    def __init__(self, who, settings, *more):
        self.who = who
        command = [settings.program] if who != PEER else [sys.executable, Path(__file__).with_name("notebook.py")]
        command += ["--drive", "--device", settings.device, "--dtype", who.dtype, "--samples", str(settings.samples),
                    *more]
        if settings.threads:
            command += ["--threads", str(settings.threads)]
        if settings.workers and who == PEER:
            command += ["--workers", str(settings.workers)]
        begin = time.perf_counter()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.ready = self._answer()
        except BaseException:
            self.end(is_killed=True)
            raise
        self.seconds_to_start = time.perf_counter() - begin - self.ready["data_seconds"]

    def ask(self, *words):
        try:
            self.process.stdin.write(" ".join(map(str, words)) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the program has ended, so there is no answer
        return self._answer()

    def end(self, is_killed=False):
        if is_killed:
            self.process.kill()
        self.process.communicate()  # closes its standard input, which ends the program

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:  # the program has printed why
            raise SystemExit(f"measure.py: the program of {self.who.name} ended with status {self.process.wait()}")
        return json.loads(line)


class Programs:
    """All programs that are compared. All are ended with the scope."""

    def __init__(self, everyone, settings):
        self.everyone, self.settings, self.running = everyone, settings, []

    def __enter__(self):
        try:
            for who in self.everyone:
                Program(who, dataclasses.replace(self.settings, samples=BATCH_SIZE)).end()  # warm-up: reads its files from the disk
                self.running.append(Program(who, self.settings))
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self.running

    def __exit__(self, error, *_):
        for program in self.running:
            program.end(is_killed=error is not None)


@dataclasses.dataclass(frozen=True)
class Settings:
    program: str
    epochs: int
    samples: int
    held_out: int
    threads: int
    workers: int
    device: str


def rest():
    """Waits until idle threads stop spinning, which would slow down the next process."""
    time.sleep(0.02)


def operations(net):
    """Floating-point operations of one sample in training: the multiplications and additions of the layers.

    The forward pass, the gradient of the inputs and the gradient of the weights have the same number of products. The
    first layer needs no gradient of its inputs. Products with padding, biases, activations and the softmax are not
    counted.
    """
    reach = KERNEL // 2

    def convolution(in_channels, out_channels):
        return 2 * in_channels * out_channels * (KERNEL * SIZE - reach * (reach + 1))

    first, middle, last = convolution(1, 64), convolution(64, 64), convolution(64, 1)
    if net == "convolution":
        forward = first + 3 * middle + last
    else:
        projections = 3 * 2 * SIZE * 64 * 64  # queries, keys, values
        products = 2 * 2 * SIZE * SIZE * 64  # of queries and keys, and of weights and values
        forward = first + middle + projections + products + middle + last
    return 3 * forward - first


def measure(programs, settings):
    """Rows for each program, net and epoch; then by program the throughput in GFLOP/s, the seconds for data, the memory."""
    rates, held_out_seconds = {}, {}

    def take_rates():
        for program in programs:
            if program.who != PEER:
                rest()
                rates[program.who] = max(rates.get(program.who, 0), program.ask("rate")["gflops"])

    for program in programs:
        held_out_seconds[program.who] = program.ask("held_out", settings.held_out)["seconds"]
    rows = []
    for net in NETS:
        take_rates()
        for epoch in range(settings.epochs):
            start = epoch % len(programs)
            answers = {}
            for program in programs[start:] + programs[:start]:
                rest()
                answers[program] = program.ask("epoch", net)
            for program in programs:
                rows.append({"who": program.who.name, "net": net, "epoch": epoch, **answers[program],
                             **program.ask("evaluate", net)})
            print(f"{net}, epoch {epoch}: " + "; ".join(
                f"{row['who']} {row['seconds']:.2f} s, held-out loss {row['held_out_loss']:.5f}"
                for row in rows[-len(programs):]), flush=True)
    take_rates()
    ends = {program.who: {**program.ask("memory"), **({} if program.who == PEER else program.ask("steps"))}
            for program in programs}
    return rows, rates, held_out_seconds, ends


def table(columns, rows):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)) + "\n"


def number(value, digits=2):
    return "" if value is None else f"{value:,.{digits}f}"


def plain(value):
    return "" if value is None else f"{value:g}"


class Results:
    """Computes the tables and the page from the measurements."""

    def __init__(self, programs, settings, rows, rates, held_out_seconds, memory):
        self.programs, self.settings, self.rates, self.memory = programs, settings, rates, memory
        self.everyone = [program.who for program in programs]
        self.rows = {(who, net): [row for row in rows if (row["who"], row["net"]) == (who.name, net)]
                     for who in self.everyone for net in NETS}
        self.is_cpu = settings.device == "cpu"
        self.data_ms = {program.who: 1000 * program.ready["data_seconds"] for program in programs}
        self.held_out_ms = {who: 1000 * seconds for who, seconds in held_out_seconds.items()}

    def column(self, who, net, name):
        return [row[name] for row in self.rows[who, net]]

    def ratio(self, who, net):
        pairs = zip(self.column(PEER, net, "seconds"), self.column(who, net, "seconds"), strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def share_of_products(self, who, net):
        """The throughput relative to that of torch's matrix product on this machine, in the same dtype."""
        rate = self.rates[who if who != PEER else OURS]
        gflop = 1e-9 * operations(net) * self.settings.samples
        return gflop / statistics.median(self.column(who, net, "seconds")) / rate

    def held_out_loss(self, who, net):
        return statistics.mean(self.column(who, net, "held_out_loss")[-LAST:])

    def epochs_table(self):
        columns = ["net", "program", "s / epoch", "ratio", "goal", "of torch's products", "training loss",
                   "held-out loss", f"held-out, mean of {self.last()}"]
        lines = []
        for net in NETS:
            for who in self.everyone:
                line = [net, who.name, rounded(statistics.median(self.column(who, net, "seconds"))),
                        "" if who == PEER else number(self.ratio(who, net)),
                        plain(who.to_reach.get(net) if self.is_cpu else None),
                        f"{100 * self.share_of_products(who, net):.0f} %",
                        *(number(self.column(who, net, name)[-1], 5) for name in ("training_loss", "held_out_loss")),
                        number(self.held_out_loss(who, net), 5)]
                lines.append(line)
        if not self.is_cpu:  # torch uses other number formats on a GPU, so the share says nothing
            place = columns.index("of torch's products")
            for line in (columns, *lines):
                del line[place]
        return table(columns, lines)

    def last(self):
        return min(LAST, self.settings.epochs)

    def totals(self, program):
        """Seconds: to start, for the data, for each net, and in total."""
        parts = [program.seconds_to_start, program.ready["data_seconds"],
                 *(sum(self.column(program.who, net, "seconds")) for net in NETS)]
        return [*parts, sum(parts)]

    def programs_table(self):
        with_device = any("device_mib" in memory for memory in self.memory.values())
        columns = ["program", "start", "data", *NETS, "total", "ratio", "goal", "peak memory (MiB)",
                   *(["of the GPU (MiB)"] if with_device else [])]
        totals = {program.who: self.totals(program) for program in self.programs}
        lines = []
        for who, seconds in totals.items():
            to_reach = who.to_reach.get("whole")
            if to_reach and not self.is_cpu:
                to_reach = WHOLE_TO_REACH_ON_A_GPU
            memory = self.memory[who]
            lines.append([who.name, *map(rounded, seconds),
                          "" if who == PEER else number(totals[PEER][-1] / seconds[-1]), plain(to_reach),
                          number(memory.get("peak_mib"), 0),
                          *([number(memory.get("device_mib"), 1)] if with_device else [])])
        return table(columns, lines)

    def bfloat16(self):
        if HALF not in self.everyone:
            return ""
        parts = []
        for net in NETS:
            share = self.held_out_loss(HALF, net) / self.held_out_loss(OURS, net) - 1
            parts.append(f"{100 * share:+.1f} % for the {net} net")
        return (f"Held-out loss in bfloat16 relative to float32, as a mean over the last {self.last()} epochs: "
                + ",\n".join(parts) + ". The goal was to stay within 5 %.\n\n")

    def data_table(self):
        return table(["samples", "notebook (ms)", "attend (ms)", "ratio", "goal"],
                     [[f"{count:,}", rounded(ms[PEER]), rounded(ms[OURS]), f"{ms[PEER] / ms[OURS]:.0f}", to_reach]
                      for count, ms, to_reach in ((self.settings.samples, self.data_ms, str(DATA_TO_REACH)),
                                                  (self.settings.held_out, self.held_out_ms, ""))])

    def share(self):
        steps = {net: 1e-9 * BATCH_SIZE * operations(net) for net in NETS}
        half = f"; in bfloat16 {self.rates[HALF]:.0f} GFLOP/s" if HALF in self.rates else ""
        return SHARE.format(batch_size=BATCH_SIZE, step_convolution=steps["convolution"],
                            step_attention=steps["attention"], rate=self.rates[OURS], rate_bfloat16=half)

    def page(self):
        peer, ours = (next(program for program in self.programs if program.who == who) for who in (PEER, OURS))
        return PAGE.format(
            device="" if self.is_cpu else " with a GPU", steps="" if self.is_cpu else STEPS.format(self.memory[OURS]["steps"]), samples=self.settings.samples, batch_size=BATCH_SIZE,
            epochs=self.settings.epochs, held_out=self.settings.held_out, suffix=suffix(self.settings),
            epochs_table=self.epochs_table(), about_columns=self.share() if self.is_cpu else "", last=self.last(),
            programs_table=self.programs_table(), bfloat16=self.bfloat16(), data_table=self.data_table(),
            machine=machine.describe(), threads=f"{ours.ready['threads']:g}",
            gpu=f", {peer.ready['gpu']}" if "gpu" in peer.ready else "", compiler=ours.ready["compiler"],
            libtorch=f"LibTorch {ours.ready['torch']}", python=peer.ready["compiler"], torch=peer.ready["torch"])


def suffix(settings):
    return "" if settings.device == "cpu" else "_cuda"


def write(results, rows, settings, folder):
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"experiment{suffix(settings)}"
    with open(f"{stem}.csv", "w", newline="") as file:
        for program in results.programs:
            file.write(f"# {program.who.name}: {program.ready['compiler']}; torch {program.ready['torch']}; threads: "
                       f"{program.ready['threads']:g}; seconds to start: {program.seconds_to_start:.3f}; for data: "
                       f"{program.ready['data_seconds']:.4f}\n")
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
                         for row in rows)
    Path(f"{stem}.md").write_text(results.page())
    if plot is None:
        print(f"Wrote {stem}.md and .csv, but no figure, because matplotlib is missing.")
        return
    with open(f"{stem}.csv", newline="") as file:
        plot.draw(plot.read_rows(file), f"{stem}.png")
    print(f"Wrote {stem}.md, .csv and .png.")


def positive(text):
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="the program built from main.cpp")
    parser.add_argument("--output", type=Path, help="folder for the results (default: benchmarks/results)")
    parser.add_argument("--epochs", type=positive, help="epochs of each net (default: 50)")
    parser.add_argument("--threads", type=positive, default=0, help="threads of each program (default: chosen by torch)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load the batches of the notebook (default: none)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to train on (default: cpu)")
    parser.add_argument("--only-float32", action="store_true", help="do not measure attend in bfloat16")
    parser.add_argument("--quick", action="store_true",
                        help="500 samples and three epochs, in less than a minute; needs --output")
    options = parser.parse_args()
    if options.quick and not options.output:
        parser.error("--quick needs --output, because it must not overwrite benchmarks/results")

    settings = Settings(options.program, options.epochs or (3 if options.quick else 50),
                        500 if options.quick else 10_000, 200 if options.quick else 2000, options.threads,
                        options.workers, options.device)
    machine.warn_if_busy()
    with Programs([PEER, OURS] if options.only_float32 else [PEER, OURS, HALF], settings) as programs:
        versions = {program.ready["torch"] for program in programs}
        if len(versions) > 1:
            raise SystemExit(f"measure.py: the programs use different versions of torch: {' and '.join(sorted(versions))}")
        if len({program.ready["threads"] for program in programs}) > 1:
            raise SystemExit("measure.py: the programs use different numbers of threads; set --threads")
        measured = measure(programs, settings)
    rows = measured[0]
    if any(not math.isfinite(row["held_out_loss"]) for row in rows):
        raise SystemExit("measure.py: a loss is not finite, so nothing is written")
    results = Results(programs, settings, *measured)
    print(f"\n{results.epochs_table()}\n{results.share() if results.is_cpu else ''}\n{results.programs_table()}\n"
          f"{results.bfloat16()}{results.data_table()}")
    for program in programs:
        steps = results.memory[program.who].get("steps", "")
        if not results.is_cpu and program.who != PEER and steps.count("CUDA graph of the whole step") != len(NETS):
            raise SystemExit(f"measure.py: the steps of {program.who.name} must be CUDA graphs, but ran as: {steps}")
    write(results, rows, settings, options.output or RESULTS)


if __name__ == "__main__":
    main()
