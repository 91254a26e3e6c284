#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Tests benchmarks/gpu.sh without a GPU: the packed folder is complete, and the script ends in time with a reason.

Nothing is compiled. ATTEND_TEST_HEADERS names the folders of the headers of doctest and CLI11, separated by a colon.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
STAGES = ["Configure", "Build the tests on the GPU", "Tests on the GPU", "Build the example and the experiment",
          "The example, five epochs", "The experiment, five epochs", "Build the rest of the tests",
          "The rest of the tests"]

# Programs that do nothing, in place of programs that take minutes. The build takes $BUILD_SECONDS.
FAKE_PROGRAMS = {
    "cmake": """case "$1" in
        -S) mkdir -p "$4/benchmarks"; printf '#!/bin/sh\\n' > "$4/conv_vs_attention"; chmod +x "$4/conv_vs_attention" ;;
        --build) case "$*" in *tests/all*) sleep "$BUILD_SECONDS" ;; esac ;;
        esac; echo "cmake $*" """,
    "ctest": """echo "ctest $*"; case "$*" in *--label-regex*) exit "$GPU_STATUS" ;; esac""",
    "ninja": "exit 0",
    "nvcc": "echo a compiler",
    "python": """if [ "$1" = - ]; then printf '%s\\n' "$0" /torch 90 False; else echo "python $*"; fi""",
}


class Gpu(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = pathlib.Path(temporary.name).resolve()
        cls.carried = cls.folder / "carried"
        headers = os.environ["ATTEND_TEST_HEADERS"].split(":")
        subprocess.run(["bash", ROOT / "benchmarks/gpu.sh", "pack", cls.carried, *headers], check=True,
                       stdout=subprocess.DEVNULL)

    def setUp(self):
        shutil.rmtree(self.folder / "carried-build", ignore_errors=True)
        self.programs = self.folder / self.id()
        self.programs.mkdir()

    def fake(self, *names, **programs):
        """Writes these programs into a folder at the front of the PATH."""
        for name, text in {**{name: FAKE_PROGRAMS[name] for name in names}, **programs}.items():
            path = self.programs / name
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)

    def without(self, name):
        """A PATH with all programs of this machine except one."""
        folder = self.programs / "all"
        folder.mkdir()
        for path in os.environ["PATH"].split(":"):
            for program in pathlib.Path(path).glob("*"):
                if program.name != name and not (folder / program.name).exists():
                    (folder / program.name).symlink_to(program)
        return str(folder)

    def run_there(self, *options, folder=None, path=None, **environment):
        """Runs the packed script outside of this checkout. Returns status, output and seconds."""
        environment = {**os.environ, "PYTHON": sys.executable, "PATH": f"{self.programs}:{path or os.environ['PATH']}",
                       **environment}
        script = self.carried / "source/benchmarks/gpu.sh"
        begin = time.monotonic()
        process = subprocess.run(["bash", script, "run", folder or self.carried, self.programs / "out", *options],
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/", env=environment)
        return process.returncode, process.stdout, time.monotonic() - begin

    def assert_stages(self, output, stages):
        found = [line[5:].split(", at most")[0] for line in output.splitlines()
                 if line.startswith("==== ") and ", at most" in line]
        self.assertEqual(found, stages, output)

    # ---- Success

    def test_pack_copies_everything_that_the_stages_need(self):
        status, output, _ = self.run_there("--rehearse", "--check")
        self.assertEqual(status, 0, output)
        self.assertIn("==== Done", output)
        tests = [int(line.split()[-1]) for line in output.splitlines() if line.startswith("Total Tests:")]
        self.assertEqual(len(tests), 2, output)
        self.assertGreaterEqual(tests[0], 1)  # gpu/gpu, which needs neither CUDA's headers nor its compiler
        self.assertGreaterEqual(tests[1], 60)
        self.assertEqual((self.programs / "out/log.txt").read_text()[-200:], output[-200:])
        cache = (self.folder / "carried-build/CMakeCache.txt").read_text()
        self.assertNotIn(f"{ROOT}/", cache)
        for package in ("doctest", "CLI11"):
            self.assertIn(f"{package}_DIR:PATH={self.carried}/packages/{package}\n", cache)

    def run_all_stages(self, *options, build_seconds=0, gpu_status=0):
        self.fake("cmake", "ctest", "ninja", "nvcc", "python")
        return self.run_there("--rehearse", *options, PYTHON=f"{self.programs}/python",
                              BUILD_SECONDS=str(build_seconds), GPU_STATUS=str(gpu_status))

    def test_run_executes_the_stages_in_order(self):
        status, output, _ = self.run_all_stages()
        self.assertEqual(status, 0, output)
        self.assert_stages(output, STAGES)
        self.assertIn("--exclude-regex ^examples/", output)  # matplotlib is missing

    def test_after_a_failed_stage_the_others_run_and_the_script_fails(self):
        status, output, _ = self.run_all_stages(gpu_status=8)
        self.assertEqual(status, 1, output)
        self.assert_stages(output, STAGES)
        self.assertTrue(output.endswith("\nTests on the GPU: status 8\n"), output)

    def test_compilers_are_stopped_during_measurements_and_continue_afterwards(self):
        # As under ninja, the compiler has its own process group. The example prints the state of the compiler.
        child = self.programs / "child"
        self.fake("ctest", "ninja", "nvcc", "python", cmake=f"""case "$1" in
            -S) mkdir -p "$4/benchmarks"
                printf '#!/bin/sh\ncut -d " " -f 3 "/proc/$(cat {child})/stat"\n' > "$4/conv_vs_attention"
                chmod +x "$4/conv_vs_attention" ;;
            --build) case "$*" in *tests/all*) bash -c 'set -m; sleep 2 & echo $! > {child}; wait' ;; esac ;;
            esac""")
        status, output, _ = self.run_there("--rehearse", PYTHON=f"{self.programs}/python", GPU_STATUS="0")
        self.assertEqual(status, 0, output)
        self.assertRegex(output, r"==== The example, five epochs, .*\nT\n")
        self.assert_stages(output, STAGES)

    # ---- Time limit

    def test_seconds_limits_the_run_and_the_output_names_the_stages_that_were_cut(self):
        status, output, seconds = self.run_all_stages("--seconds", "18", build_seconds=100)
        self.assertEqual(status, 1, output)
        self.assertLess(seconds, 18)
        self.assert_stages(output, STAGES[:-1])
        self.assertRegex(output, "\nBuild the rest of the tests: cut after [1-7] s\n"
                                 "The rest of the tests: cut before it began\n$")

    # ---- Missing programs

    def assert_stops_at_once(self, result, sentence):
        status, output, _ = result
        self.assertEqual(status, 1, output)
        self.assertRegex(output.splitlines()[-1], f"^benchmarks/gpu.sh: {sentence}$")
        self.assertEqual(output.count("benchmarks/gpu.sh:"), 1, output)
        self.assertNotIn("==== Configure", output)

    def test_a_folder_that_was_not_packed_is_refused(self):
        self.assert_stops_at_once(self.run_there("--rehearse", folder=self.programs),
                                  f"{self.programs} was not made by 'benchmarks/gpu.sh pack'")

    def test_a_missing_program_is_named(self):
        for name in ("c++", "cmake", "ninja"):
            with self.subTest(name):
                self.programs = self.folder / f"without_{name}"
                self.programs.mkdir()
                self.assert_stops_at_once(self.run_there("--rehearse", path=self.without(name)),
                                          f"{re.escape(name)} is missing on this machine")

    def test_a_missing_python_is_named(self):
        self.assert_stops_at_once(self.run_there("--rehearse", PYTHON="/nowhere/python"),
                                  "/nowhere/python is missing on this machine")

    def test_a_python_without_torch_is_named(self):
        self.fake(bare=f'exec "{os.path.realpath(sys.executable)}" -S "$@"')
        self.assert_stops_at_once(self.run_there("--rehearse", PYTHON=f"{self.programs}/bare", PYTHONPATH=""),
                                  ".* has no package torch; set the environment variable PYTHON to another Python")

    def test_a_machine_without_a_gpu_is_refused(self):
        self.fake("nvcc")
        self.assert_stops_at_once(self.run_there(CUDA_VISIBLE_DEVICES=""),
                                  "torch .* cannot use a GPU of this machine")


if __name__ == "__main__":
    unittest.main()
