#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the example as a user does: its options, its files, its errors, Ctrl-C."""

import csv
import os
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

PROGRAM = os.environ["ATTEND_EXAMPLE_PROGRAM"]
PLOT = Path(__file__).parents[2] / "examples" / "conv_vs_attention" / "plot.py"
SMALL = ["--samples", "64", "--held-out", "8", "--size", "40", "--device", "cpu", "--threads", "1"]


def run(*arguments):
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def plot(folder):
    return subprocess.run([sys.executable, PLOT, folder], capture_output=True, text=True)


class ConvVsAttention(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name) / "new" / "output"

    def test_help_names_every_option(self):
        result = run("--help")
        self.assertEqual(result.returncode, 0)
        for option in ("epochs", "batch", "rate", "samples", "held-out", "size", "height", "noise", "seed", "device",
                       "threads", "output"):
            self.assertRegex(result.stdout, f"--{option}[ =]")

    def test_a_run_prints_what_the_notebook_prints_and_a_table(self):
        result = run(*SMALL, "--epochs", "11", "--output", self.folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        for text in ("62,337 and 54,081 parameters", "Training with convolution model", "Training with attention model",
                     "Epoch: 0, Loss: ", "Epoch: 10, Loss: ", "held-out loss", "plot.py"):
            self.assertIn(text, result.stdout)
        self.assertEqual(result.stdout.count("Epoch: "), 4)
        table = [line.split() for line in result.stdout.splitlines() if line.startswith(("convolution ", "attention "))]
        self.assertEqual([row[:2] for row in table], [["convolution", "62,337"], ["attention", "54,081"]])
        for name, row in zip(("convolution", "attention"), table):
            history = rows(self.folder / name / "history.csv")
            self.assertEqual([line["epoch"] for line in history], [str(epoch) for epoch in range(11)])
            self.assertAlmostEqual(float(row[2]), float(history[-1]["train_loss"]), places=5)
            self.assertAlmostEqual(float(row[3]), float(history[-1]["validation_loss"]), places=5)

    def test_predictions_and_maps_are_whole_and_can_be_drawn(self):
        self.assertEqual(run(*SMALL, "--epochs", "1", "--output", self.folder).returncode, 0)
        samples = rows(self.folder / "samples.csv")
        self.assertEqual(len(samples), 4 * 40)
        self.assertEqual(list(samples[0]),
                         ["sample", "position", "height", "input", "target", "convolution", "attention"])
        for i in range(4):
            with open(self.folder / "attention" / f"map_{i}.csv") as file:
                weights = [[float(x) for x in line.split(",")] for line in file]
            self.assertEqual([len(row) for row in weights], [40] * 40)
            for row in weights:
                self.assertAlmostEqual(sum(row), 1, places=4)
        drawn = plot(self.folder)
        self.assertEqual(drawn.returncode, 0, drawn.stderr)
        for figure in ("loss", "data_example", "predictions", "attention_map", "overview"):
            self.assertGreater((self.folder / f"{figure}.png").stat().st_size, 5000, figure)

    def test_the_same_seed_gives_the_same_numbers(self):
        losses = []
        for seed in ("1", "1", "2"):
            run(*SMALL, "--epochs", "2", "--seed", seed, "--output", self.folder)
            losses.append([row["validation_loss"] for row in rows(self.folder / "attention" / "history.csv")])
        self.assertEqual(losses[0], losses[1])
        self.assertNotEqual(losses[0], losses[2])

    def test_a_new_run_leaves_nothing_of_the_run_before(self):
        (self.folder / "attention").mkdir(parents=True)
        (self.folder / "attention" / "map_0.csv").write_text("old")
        self.interrupted_run()
        self.assertFalse((self.folder / "attention" / "map_0.csv").exists())

    def interrupted_run(self):
        """Starts a long run and ends it with Ctrl-C after the first epoch; what it printed."""
        process = subprocess.Popen([PROGRAM, *SMALL, "--epochs", "100000", "--output", self.folder],
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in process.stdout:
            if line.startswith("Epoch: 0,"):
                break
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        return output

    def test_ctrl_c_ends_the_run_after_the_batch_with_everything_written(self):
        output = self.interrupted_run()
        self.assertIn("Stopped by a signal; what was trained so far is in", output)
        self.assertGreaterEqual(len(rows(self.folder / "convolution" / "history.csv")), 1)
        self.assertEqual(list(rows(self.folder / "samples.csv")[0]),
                         ["sample", "position", "height", "input", "target", "convolution"])
        drawn = plot(self.folder)
        self.assertEqual(drawn.returncode, 0, drawn.stderr)

    def test_bad_arguments_end_with_status_2_and_name_the_rule_and_the_value(self):
        self.folder.parent.mkdir()
        blocked = self.folder.parent / "file"
        blocked.write_text("")
        cases = {
            ("--epochs", "0"): "--epochs: Value 0 must be a number of at least 1",
            ("--epochs", "1.5"): "--epochs",
            ("--batch", "-1"): "--batch: Value -1 must be a number of at least 1",
            ("--rate", "0"): "--rate: Value 0 must be a number above 0",
            ("--rate", "fast"): "--rate: Value fast must be a number above 0",
            ("--samples", "0"): "--samples: Value 0 must be a number of at least 1",
            ("--held-out", "3"): "--held-out: Value 3 must be a number of at least 4",
            ("--size", "17"): "--size: Value 17 must be a number of at least 18",
            ("--height", "5"): "--height: Value 5 must be a number of at least 6",
            ("--height", "9999999"): "attend::ShapeDataset: max_height (9999999) must be at most",
            ("--noise", "-0.1"): "--noise: Value -0.1 must be a number of at least 0",
            ("--noise", "inf"): "--noise: Value inf must be a number of at least 0",
            ("--threads", "-1"): "--threads: Value -1 must be a number of at least 0",
            ("--device", "tpu"): "--device: tpu must be auto, cpu, cuda or cuda:N",
            ("--device", "cuda:99"): "--device: cuda:99 is not there: this machine has",
            ("--output", str(blocked / "x")): f"--output: cannot write to the folder {blocked}/x",
            ("--frobnicate",): "not expected: --frobnicate",
        }
        for arguments, message in cases.items():
            with self.subTest(arguments):
                result = run(*arguments)
                self.assertEqual(result.returncode, 2)
                self.assertIn(message, result.stderr)
                self.assertEqual(result.stderr.count("\n"), 2)  # one line, and where to find the options

    def test_a_failed_run_ends_with_status_1_before_any_training(self):
        (self.folder / "attention" / "history.csv").mkdir(parents=True)
        result = run(*SMALL, "--epochs", "1", "--output", self.folder)
        self.assertEqual(result.returncode, 1)
        self.assertIn("attend::CsvLog: cannot write", result.stderr)
        self.assertNotIn("Epoch", result.stdout)

    def test_plot_says_what_is_missing(self):
        result = plot("nowhere")
        self.assertEqual(result.returncode, 1)
        self.assertIn("nowhere has no samples.csv", result.stderr)


if __name__ == "__main__":
    unittest.main()
