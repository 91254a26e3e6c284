#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs examples/conv_vs_attention as a user does: options, files, errors, Ctrl-C."""

import csv
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

PROGRAM = os.environ["ATTEND_EXAMPLE_PROGRAM"]
PLOT = Path(__file__).parents[2] / "examples" / "conv_vs_attention" / "plot.py"
SMALL = ["--samples", "64", "--held-out", "8", "--size", "40", "--device", "cpu", "--threads", "1"]


def run(*arguments, folder=None):
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, cwd=folder)


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
                       "dtype", "threads", "output", "checkpoint-dir", "resume"):
            self.assertRegex(result.stdout, f"--{option}[ =]")

    def test_a_run_prints_the_lines_of_the_notebook_and_a_table(self):
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

    def test_threads_1_uses_one_thread(self):
        begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        self.assertEqual(run("--samples", "2000", "--device", "cpu", "--threads", "1", "--epochs", "2", "--output", self.folder).returncode, 0)
        seconds, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        on_processors = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.assertLess(on_processors, 1.15 * seconds)

    def test_dtype_bfloat16_learns_as_float32_does(self):
        losses = {}
        for dtype in ("float32", "bfloat16"):
            result = run(*SMALL, "--epochs", "6", "--dtype", dtype, "--output", self.folder)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual("in bfloat16" in result.stdout, dtype == "bfloat16")
            losses[dtype] = [float(rows(self.folder / name / "history.csv")[-1]["train_loss"])
                             for name in ("convolution", "attention")]
        self.assertNotEqual(losses["float32"], losses["bfloat16"])
        for in_float32, in_bfloat16 in zip(*losses.values()):
            self.assertAlmostEqual(in_bfloat16 / in_float32, 1, delta=0.1)

    def test_predictions_and_maps_are_complete_and_plot_draws_them(self):
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

    def test_seed_determines_the_numbers(self):
        losses = []
        for seed in ("1", "1", "2"):
            run(*SMALL, "--epochs", "2", "--seed", seed, "--output", self.folder)
            losses.append([row["validation_loss"] for row in rows(self.folder / "attention" / "history.csv")])
        self.assertEqual(losses[0], losses[1])
        self.assertNotEqual(losses[0], losses[2])

    def test_a_new_run_removes_the_files_of_the_previous_run(self):
        (self.folder / "attention").mkdir(parents=True)
        (self.folder / "attention" / "map_0.csv").write_text("old")
        self.interrupted_run()
        self.assertFalse((self.folder / "attention" / "map_0.csv").exists())

    def interrupted_run(self, epochs=100000, net="convolution"):
        """Starts a run and ends it with Ctrl-C after the first epoch of a net. Returns the output from then on."""
        process = subprocess.Popen([PROGRAM, *SMALL, "--epochs", str(epochs), "--output", self.folder],
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                   # a shell starts background jobs with SIGINT ignored, which is inherited
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        is_training = False
        for line in process.stdout:
            is_training |= line.startswith(f"Training with {net}")
            if is_training and line.startswith("Epoch: 0,"):
                break
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        return output

    def test_ctrl_c_ends_the_run_after_the_batch_and_writes_all_files(self):
        output = self.interrupted_run()
        self.assertIn("Stopped by a signal. The results so far are in", output)
        self.assertGreaterEqual(len(rows(self.folder / "convolution" / "history.csv")), 1)
        self.assertEqual(list(rows(self.folder / "samples.csv")[0]),
                         ["sample", "position", "height", "input", "target", "convolution"])
        drawn = plot(self.folder)
        self.assertEqual(drawn.returncode, 0, drawn.stderr)

    def test_ctrl_c_in_the_second_net_keeps_the_results_of_both(self):
        output = self.interrupted_run(epochs=300, net="attention")
        self.assertIn("Stopped by a signal", output)
        self.assertEqual(len(rows(self.folder / "convolution" / "history.csv")), 300)
        self.assertLess(len(rows(self.folder / "attention" / "history.csv")), 300)
        self.assertEqual(list(rows(self.folder / "samples.csv")[0])[-2:], ["convolution", "attention"])
        self.assertTrue((self.folder / "attention" / "map_3.csv").exists())

    def test_a_run_in_two_parts_gives_the_numbers_of_one_run(self):
        checkpoints = ["--checkpoint-dir", self.folder.parent / "checkpoints", "--resume"]
        self.assertEqual(run(*SMALL, "--epochs", "3", "--output", self.folder / "whole").returncode, 0)
        for epochs in ("1", "3"):
            result = run(*SMALL, *checkpoints, "--epochs", epochs, "--output", self.folder / "parts")
            self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout.count("1 epochs trained before"), 2)
        for net in ("convolution", "attention"):
            whole, parts = (rows(self.folder / folder / net / "history.csv") for folder in ("whole", "parts"))
            for row in (*whole, *parts):
                del row["seconds"]
            self.assertEqual(whole, parts)
        self.assertEqual(rows(self.folder / "whole" / "samples.csv"), rows(self.folder / "parts" / "samples.csv"))
        other = run(*SMALL, *checkpoints, "--noise", "0.1", "--output", self.folder / "parts")
        self.assertEqual(other.returncode, 1)
        self.assertRegex(other.stderr, "That run: .*noise 0.3.* This run: .*noise 0.1")

    def test_the_last_line_of_the_output_is_the_plot_command(self):
        result = run(*SMALL, "--epochs", "1", "--output", self.folder)
        command = result.stdout.splitlines()[-1]
        self.assertEqual(subprocess.run(command, shell=True, capture_output=True).returncode, 0, command)

    def test_refused_arguments_do_not_change_earlier_results(self):
        self.folder.mkdir(parents=True)
        (self.folder / "samples.csv").write_text("precious")
        self.assertEqual(run("--height", "9999999", "--output", self.folder).returncode, 2)
        self.assertEqual((self.folder / "samples.csv").read_text(), "precious")

    def test_invalid_arguments_give_status_2_with_the_rule_and_the_value(self):
        self.folder.parent.mkdir()
        blocked = self.folder.parent / "file"
        blocked.write_text("")
        cases = {
            ("--epochs", "0"): "--epochs: Value 0 must be a whole number from 1 to 1000000000",
            ("--epochs", "1.5"): "--epochs: Value 1.5 must be a whole number from 1",
            ("--batch", "-1"): "--batch: Value -1 must be a whole number from 1",
            ("--rate", "0"): "--rate: Value 0 must be a number above 0",
            ("--rate", "fast"): "--rate: Value fast must be a number above 0",
            ("--samples", "0"): "--samples: Value 0 must be a whole number from 1",
            ("--held-out", "3"): "--held-out: Value 3 must be a whole number from 4",
            ("--size", "17"): "--size: Value 17 must be a whole number from 18",
            ("--height", "5"): "--height: Value 5 must be a whole number from 6",
            ("--height", "9999999"): "attend::ShapeDataset: max_height (9999999) must be at most",
            ("--noise", "-0.1"): "--noise: Value -0.1 must be a number of at least 0",
            ("--noise", "inf"): "--noise: Value inf must be a number of at least 0",
            ("--noise", "1e308"): "attend::ShapeDataset: noise_std (1e+308) must be between 0 and",
            ("--seed", "1.5"): "--seed: Value 1.5 must be a whole number from 0",
            ("--threads", "-1"): "--threads: Value -1 must be a whole number from 0 to 1024",
            ("--dtype", "float16"): "--dtype: float16 not in {",
            ("--device", "tpu"): "--device: tpu must be auto, cpu, cuda or cuda:N",
            ("--device", "cuda:99"): "--device: cuda:99 does not exist: this machine has",
            ("--output", str(blocked / "x")): f"--output: cannot write to the folder {blocked}/x",
            ("--resume",): "--resume requires --checkpoint-dir",
            ("--frobnicate",): "not expected: --frobnicate",
        }
        for arguments, message in cases.items():
            with self.subTest(arguments):
                result = run(*arguments, folder=self.folder.parent)
                self.assertEqual(result.returncode, 2)
                self.assertIn(message, result.stderr)
                self.assertEqual(result.stderr.count("\n"), 2)  # the error, and a line about --help

    def test_a_file_that_cannot_be_written_gives_status_1_before_training(self):
        (self.folder / "attention" / "history.csv").mkdir(parents=True)
        result = run(*SMALL, "--epochs", "1", "--output", self.folder)
        self.assertEqual(result.returncode, 1)
        self.assertIn("attend::CsvLog: cannot write", result.stderr)
        self.assertNotIn("Epoch", result.stdout)

    def test_plot_names_missing_results(self):
        self.folder.mkdir(parents=True)
        for _ in range(2):
            result = plot(self.folder)
            self.assertEqual(result.returncode, 1)
            self.assertIn(f"{self.folder} has no results in samples.csv", result.stderr)
            (self.folder / "samples.csv").write_text("")  # as a killed run leaves it


if __name__ == "__main__":
    unittest.main()
