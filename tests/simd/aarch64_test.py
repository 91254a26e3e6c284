# SPDX-License-Identifier: MIT
"""Compiles the tests that include no LibTorch for aarch64, and runs them under qemu: on a processor with all features,
and on one without products of bfloat16."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77
SYSTEM = "/usr/aarch64-linux-gnu"
TESTS = pathlib.Path(__file__).resolve().parents[1]
COMPILER = "aarch64-linux-gnu-g++"


def main():
    for tool, package in [(COMPILER, "g++-aarch64-linux-gnu"), ("qemu-aarch64", "qemu-user")]:
        if not shutil.which(tool):
            print(f"skipped: this machine lacks {tool} ({package})")
            return SKIPPED

    options = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{TESTS.parent}/include", f"-I{TESTS}"]
    options += [f"-isystem{folder}" for folder in os.environ["ATTEND_TEST_HEADERS"].split(":")]
    ccache = [shutil.which("ccache")] if shutil.which("ccache") else []
    with tempfile.TemporaryDirectory() as folder:
        objects = []
        for i, source in enumerate(os.environ["ATTEND_TEST_SOURCES"].split(":")):
            objects.append(f"{folder}/{i}.o")
            subprocess.run(ccache + [COMPILER] + options + ["-c", TESTS / source, "-o", objects[-1]], check=True)
        program = f"{folder}/tests"
        subprocess.run([COMPILER, "-pthread"] + objects + ["-o", program], check=True)
        for cpu in ["max", "cortex-a72"]:
            print(f"---- {cpu}", flush=True)
            few_calls = {**os.environ, "ATTEND_TEST_CONFIGURATION": "0-7"}
            subprocess.run(["qemu-aarch64", "-L", SYSTEM, "-cpu", cpu, program], env=few_calls, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
