#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs examples/digits as a user does: files, accuracy, early stop, figures, errors."""

import csv
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

PROGRAM = os.environ["ATTEND_EXAMPLE_PROGRAM"]
PLOT = Path(__file__).parents[2] / "examples" / "digits" / "plot.py"


def run(*arguments):
    return subprocess.run([PROGRAM, "--threads", "2", *arguments], capture_output=True, text=True)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class Digits(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name) / "new" / "output"

    def test_a_short_run_learns_and_its_figures_are_drawn(self):
        result = run("--epochs", "12", "--output", self.folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("1350 images for training, 150 for the early stop, 297 held out", result.stdout)
        answers = rows(self.folder / "answers.csv")
        self.assertEqual(len(answers), 297)
        share = sum(row["digit"] == row["answer"] for row in answers) / 297
        self.assertIn(f"{100 * share:.1f} % of 297 held-out images", result.stdout)
        self.assertGreater(share, 0.8)
        plot = subprocess.run([sys.executable, PLOT, self.folder], capture_output=True, text=True)
        self.assertEqual(plot.returncode, 0, plot.stderr)
        for name in ("confusion.png", "loss.png"):
            self.assertGreater((self.folder / name).stat().st_size, 5000)

    def test_the_training_ends_when_the_validation_loss_no_longer_falls(self):
        self.assertEqual(run("--rate", "5", "--patience", "1", "--output", self.folder).returncode, 0)
        losses = [float(row["validation_loss"]) for row in rows(self.folder / "history.csv")]
        self.assertLess(len(losses), 100)
        self.assertGreaterEqual(losses[-1], min(losses[:-1]))

    def test_the_same_seed_gives_the_same_answers(self):
        texts = []
        for name in ("a", "b"):
            self.assertEqual(run("--epochs", "1", "--output", self.folder / name).returncode, 0)
            texts.append((self.folder / name / "answers.csv").read_text())
        self.assertEqual(*texts)

    def test_missing_data_is_an_error_that_says_what_to_do(self):
        result = run("--data", self.folder / "none.csv", "--output", self.folder)
        self.assertEqual(result.returncode, 1)
        self.assertIn("build the target digits_data, or pass --data", result.stderr)

    def test_a_file_that_is_not_whole_is_an_error(self):
        for text, count in [("", 0), ("1,2,3\n", 3), (65 * "1,", 65)]:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "part.csv").write_text(text)
            result = run("--data", self.folder / "part.csv", "--output", self.folder)
            self.assertEqual(result.returncode, 1)
            self.assertIn(f"expected 1797 lines of 65 numbers, got {count} numbers", result.stderr)


if __name__ == "__main__":
    unittest.main()
