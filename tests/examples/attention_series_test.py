#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs examples/attention_series as a user does: experiments, files, continued runs, errors."""

import csv
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

PROGRAM = os.environ["ATTEND_EXAMPLE_PROGRAM"]
PLOT = Path(__file__).parents[2] / "examples" / "attention_series" / "plot.py"
SMALL = ["--samples", "200", "--held-out", "4", "--batch", "50", "--device", "cpu", "--threads", "2"]
NAMES = ("conv", "attention", "location", "location_positions", "heads")


def run(*arguments, folder=None):
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, cwd=folder)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read_map(path):
    with open(path) as file:
        return [[float(x) for x in line.split(",")] for line in file]


def without_seconds(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


class AttentionSeries(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name) / "new" / "output"

    def test_a_run_of_all_five_experiments_writes_files_figures_and_page(self):
        result = run(*SMALL, "--epochs", "1", "--output", self.folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        parameters = dict(zip(NAMES, ("62,337", "54,081", "54,081", "56,321", "54,081")))
        for name in NAMES:
            self.assertRegex(result.stdout, f"(?m)^{name}: .*, {parameters[name]} parameters$")
            folder = self.folder / name
            (results,) = rows(folder / "results.csv")
            self.assertEqual(results["epochs"], "1")
            history = rows(folder / "history.csv")
            self.assertEqual(list(history[0]), ["epoch", "train_loss", "last_batch_loss", "validation_loss",
                                                "learning_rate", "seconds"])
            self.assertEqual(results["held_out_loss"], history[-1]["validation_loss"])
            samples, shapes = rows(folder / "samples.csv"), rows(folder / "shapes.csv")
            self.assertEqual(len(samples), 4 * 100)
            self.assertEqual(len(shapes), 4 * 4)
            maps = sorted(path.name for path in folder.glob("map_*.csv"))
            heads = {"conv": 0, "heads": 4}.get(name, 1)
            self.assertEqual(maps, sorted(f"map_{i}_{head}.csv" for i in range(4) for head in range(heads)))
            for path in maps:
                for row in read_map(folder / path):
                    self.assertAlmostEqual(sum(row), 1, places=4)
        drawn = subprocess.run(result.stdout.splitlines()[-1], shell=True, capture_output=True, text=True)
        self.assertEqual(drawn.returncode, 0, drawn.stderr)
        page = (self.folder / "series.md").read_text()
        for figure in ("data_example", "loss", "predictions", "attention_map", "location", "curves", "heads"):
            self.assertGreater((self.folder / f"{figure}.png").stat().st_size, 5000, figure)
            self.assertIn(f"]({figure}.png)", page)

    def test_held_out_loss_and_own_share_agree_with_samples_and_maps(self):
        self.assertEqual(run(*SMALL, "--epochs", "2", "--experiment", "attention", "--output", self.folder).returncode, 0)
        folder = self.folder / "attention"
        (results,) = rows(folder / "results.csv")
        samples = rows(folder / "samples.csv")  # all four held-out samples
        loss = sum((float(row["output"]) - float(row["target"])) ** 2 for row in samples) / len(samples)
        self.assertAlmostEqual(loss / float(results["held_out_loss"]), 1, places=4)

        shares = []
        for i in range(4):
            weights = read_map(folder / f"map_{i}_0.csv")
            shapes = [row for row in rows(folder / "shapes.csv") if row["sample"] == str(i)]
            for queried in shapes:
                on = {"triangle": 0, "rectangle": 0}
                for shape in shapes:
                    for key in range(100):
                        if abs(key - float(shape["centre"])) < float(shape["width"]) / 2:
                            on[shape["kind"]] += weights[math.floor(float(queried["centre"]) + 0.5)][key]
                shares.append(on[queried["kind"]] / sum(on.values()))
        self.assertAlmostEqual(sum(shares) / len(shares), float(results["own_share"]), places=4)

    def checkpoints(self, *more):
        return ["--checkpoint-dir", self.folder.parent / "checkpoints", "--resume", *more]

    def test_a_run_in_two_parts_gives_the_numbers_of_one_run(self):
        options = [*SMALL, "--experiment", "location_positions"]
        self.assertEqual(run(*options, "--epochs", "4", "--output", self.folder / "whole").returncode, 0)
        for epochs in ("2", "4"):
            result = run(*options, *self.checkpoints(), "--epochs", epochs, "--output", self.folder / "parts")
            self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("2 epochs trained before", result.stdout)
        for name in ("history.csv", "samples.csv"):
            whole, parts = (rows(self.folder / folder / "location_positions" / name) for folder in ("whole", "parts"))
            self.assertEqual(without_seconds(whole), without_seconds(parts))

        # all epochs are done
        again = run(*options, *self.checkpoints(), "--epochs", "4", "--output", self.folder / "parts")
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertIn("4 epochs trained before", again.stdout)
        self.assertEqual(rows(self.folder / "parts" / "location_positions" / "samples.csv"), parts)

    def interrupted_run(self, line_before, *options):
        """Starts a long run and ends it with Ctrl-C after a line that matches `line_before`."""
        process = subprocess.Popen([PROGRAM, *options, "--epochs", "100000", "--output", self.folder],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   # a shell starts background jobs with SIGINT ignored, which is inherited
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        for line in process.stdout:
            if re.match(line_before, line):
                break
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        return output

    def test_ctrl_c_writes_the_results_so_far_and_the_next_run_continues_with_the_same_numbers(self):
        options = [*SMALL, "--experiment", "conv", *self.checkpoints()]
        self.assertIn("--resume continues", self.interrupted_run("epoch +2/", *options))
        history = rows(self.folder / "conv" / "history.csv")
        self.assertGreaterEqual(len(history), 2)
        (results,) = rows(self.folder / "conv" / "results.csv")
        self.assertEqual(results["epochs"], str(len(history)))
        self.assertAlmostEqual(float(results["held_out_loss"]), float(history[-1]["validation_loss"]), places=5)
        drawn = subprocess.run([sys.executable, PLOT, self.folder], capture_output=True, text=True)
        self.assertEqual(drawn.returncode, 0, drawn.stderr)

        epochs = str(len(history) + 1)
        result = run(*options, "--epochs", epochs, "--output", self.folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout, "[0-9]+ epochs trained before")
        whole = run(*SMALL, "--experiment", "conv", "--epochs", epochs, "--output", self.folder / "whole")
        self.assertEqual(whole.returncode, 0, whole.stderr)
        self.assertEqual(without_seconds(rows(self.folder / "conv" / "history.csv")),
                         without_seconds(rows(self.folder / "whole" / "conv" / "history.csv")))

    def test_quick_runs_six_epochs_of_conv_and_attention(self):
        result = run(*SMALL, "--quick", "--output", self.folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), ["attention", "conv"])
        for name in ("conv", "attention"):
            self.assertEqual(len(rows(self.folder / name / "history.csv")), 6)
        drawn = subprocess.run([sys.executable, PLOT, self.folder], capture_output=True, text=True)
        self.assertEqual(drawn.returncode, 0, drawn.stderr)

    def test_positions_each_kind_trains_and_another_kind_needs_another_folder(self):
        options = [*SMALL, "--experiment", "location_positions", "--epochs", "1"]
        for positions, parameters in (("linear", "54,401"), ("binary", "56,321"), ("sinusoidal", "56,321"), ("learned", "57,021")):
            with self.subTest(positions):
                result = run(*options, "--checkpoint-dir", self.folder.parent / positions, "--positions", positions,
                             "--output", self.folder)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertIn(f", {parameters} parameters", result.stdout)
        result = run(*options, "--checkpoint-dir", self.folder.parent / "linear", "--resume", "--output", self.folder)
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stderr, "That run: seed 1, .*, linear positions. This run: seed 1, .*, float32. Choose")

    def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(self):
        options = [*SMALL, "--experiment", "conv", "--output", self.folder, *self.checkpoints()]
        self.assertEqual(run(*options, "--epochs", "2").returncode, 0)
        *_, before, newest = sorted((self.folder.parent / "checkpoints" / "conv").glob("checkpoint-*.safetensors"))
        newest.write_bytes(newest.read_bytes()[:1000])
        result = run(*options, "--epochs", "3")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn(f"{newest}: ", result.stderr)
        self.assertIn("1 epochs trained before", result.stdout)

    def test_a_run_with_other_settings_or_without_resume_is_refused_in_the_same_folder(self):
        options = [*SMALL, "--experiment", "conv", "--epochs", "1", "--output", self.folder, *self.checkpoints()]
        self.assertEqual(run(*options).returncode, 0)
        folder = self.folder.parent / "checkpoints" / "conv"
        before = {path: path.read_bytes() for path in folder.iterdir()}
        result = run(*options, "--seed", "2")
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stderr, "conv has a run with other settings. That run: seed 1, 200 training .*. This run: seed 2, 200 "
                                        "training .*. Choose another --checkpoint-dir, or delete the folder")
        options.remove("--resume")
        result = run(*options)
        self.assertEqual(result.returncode, 1)
        self.assertIn("conv has a training; continue it with --resume, or choose another --checkpoint-dir", result.stderr)
        self.assertEqual({path: path.read_bytes() for path in folder.iterdir()}, before)

    def test_invalid_arguments_give_status_2_with_the_rule_and_the_value(self):
        self.folder.parent.mkdir()
        blocked = self.folder.parent / "file"
        blocked.write_text("")
        cases = {
            ("--experiment", "cnn"): "--experiment: cnn not in {all,conv,attention,location,location_positions,heads}",
            ("--epochs", "0"): "--epochs: Value 0 must be a whole number from 1 to 1000000000",
            ("--batch", "-1"): "--batch: Value -1 must be a whole number from 1",
            ("--rate", "fast"): "--rate: Value fast must be a number above 0",
            ("--samples", "1"): "--samples: Value 1 must be a whole number from 2",
            ("--held-out", "3"): "--held-out: Value 3 must be a whole number from 4",
            ("--seed", "1.5"): "--seed: Value 1.5 must be a whole number from 0",
            ("--dtype", "float16"): "--dtype: float16 not in {",
            ("--positions", "none"): "--positions: none not in {binary,learned,linear,sinusoidal}",
            ("--device", "tpu"): "--device: tpu must be auto, cpu, cuda or cuda:N",
            ("--resume",): "--resume requires --checkpoint-dir",
            ("--output", str(blocked / "x")): f"--output: cannot write to the folder {blocked}/x",
        }
        for arguments, message in cases.items():
            with self.subTest(arguments):
                result = run(*arguments, folder=self.folder.parent)
                self.assertEqual(result.returncode, 2)
                self.assertIn(message, result.stderr)

    def test_plot_names_missing_results(self):
        self.folder.mkdir(parents=True)
        result = subprocess.run([sys.executable, PLOT, self.folder], capture_output=True, text=True)
        self.assertEqual(result.returncode, 1)
        self.assertIn(f"{self.folder} has no results", result.stderr)


if __name__ == "__main__":
    unittest.main()
