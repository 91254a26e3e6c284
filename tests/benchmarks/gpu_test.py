#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Tests benchmarks/gpu.sh without a GPU: the packed folder is complete, and the script ends in time with a reason. Also
tests gpu_attention/measure.py by its rehearsal, and gpu_page.py.

Nothing is compiled. ATTEND_TEST_HEADERS names the folders of the headers of doctest and CLI11, separated by a colon.
"""

import csv
import itertools
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
SANITIZED = ["Random calls with memcheck", "Random calls with racecheck"]
STAGES = ["Configure", "Kernels and harness", "Random calls", *SANITIZED, "Tests with LibTorch", "The experiment",
          "Attention", "The page"]

# Programs that do nothing, in place of programs that take minutes. The build takes $BUILD_SECONDS.
FAKE_PROGRAMS = {
    "cmake": """case "$1" in
        --build) touch "$BUILDING"; sleep "$BUILD_SECONDS"; rm "$BUILDING" ;;
        -S) mkdir -p "$4" ;;
        esac; echo "cmake $*" """,
    "ctest": """echo "ctest $*"; exit "$TEST_STATUS" """,
    "compute-sanitizer": """echo "compute-sanitizer $*, calls $ATTEND_TEST_CONFIGURATION"; exit "$SANITIZER_STATUS" """,
    "ninja": "exit 0",
    "nvcc": "echo a compiler",
    "python": """if [ "$1" = - ]; then printf '%s\\n' "$0" /torch 90; echo '# card a card' > "$3"; else
        [ -e "$BUILDING" ] && echo "while building"; echo "python $*"; fi""",
}

# In place of nvcc, when the programs are packed: they exit with $PROGRAM_STATUS.
FAKE_COMPILER = """for output; do :; done
printf '#!/bin/sh\\nsleep 0.2; test -e "$BUILDING" && echo while building
        echo "calls $ATTEND_TEST_CONFIGURATION"; exit "$PROGRAM_STATUS"\\n' > "$output"
chmod +x "$output" """


def write_program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


class Gpu(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = pathlib.Path(temporary.name).resolve()
        cls.carried = cls.folder / "carried"
        headers = os.environ["ATTEND_TEST_HEADERS"].split(":")
        compiler = cls.folder / "compiler/nvcc"
        compiler.parent.mkdir()
        write_program(compiler, FAKE_COMPILER)
        subprocess.run(["bash", ROOT / "benchmarks/gpu.sh", "pack", cls.carried, *headers], check=True,
                       stdout=subprocess.DEVNULL,
                       env={**os.environ, "PATH": f"{compiler.parent}:{os.environ['PATH']}"})

    def setUp(self):
        shutil.rmtree(self.folder / "carried-build", ignore_errors=True)
        self.programs = self.folder / self.id()
        self.programs.mkdir()

    def fake(self, *names, **programs):
        """Writes these programs into a folder at the front of the PATH."""
        for name, text in {**{name: FAKE_PROGRAMS[name] for name in names}, **programs}.items():
            write_program(self.programs / name, text)

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
                 if line.startswith("==== ") and re.search(r", at most \d", line)]
        self.assertEqual(found, stages, output)

    # ---- Success

    def test_pack_copies_everything_that_the_stages_need(self):
        status, output, _ = self.run_there("--rehearse", "--check")
        self.assertEqual(status, 0, output)
        self.assertIn("==== Done", output)
        tests = [int(line.split()[-1]) for line in output.splitlines() if line.startswith("Total Tests:")]
        self.assertEqual(len(tests), 1, output)
        self.assertGreaterEqual(tests[0], 1)  # gpu/gpu, which needs neither CUDA's headers nor its compiler
        self.assertEqual((self.programs / "out/log.txt").read_text()[-200:], output[-200:])
        cache = (self.folder / "carried-build/CMakeCache.txt").read_text()
        self.assertNotIn(f"{ROOT}/", cache)
        for package in ("doctest", "CLI11"):
            self.assertIn(f"{package}_DIR:PATH={self.carried}/packages/{package}\n", cache)

    def run_all_stages(self, *options, is_rehearsal=True, without=(), build_seconds=0, test_status=0, program_status=0,
                       sanitizer_status=0):
        self.fake(*(name for name in FAKE_PROGRAMS if name not in without))
        return self.run_there(*(["--rehearse"] if is_rehearsal else []), *options, PYTHON=f"{self.programs}/python",
                              BUILD_SECONDS=str(build_seconds), BUILDING=str(self.programs / "building"),
                              TEST_STATUS=str(test_status), PROGRAM_STATUS=str(program_status),
                              SANITIZER_STATUS=str(sanitizer_status))

    def result_of(self, stage):
        """The result of a stage on the page."""
        lines = (self.programs / "out/stages.csv").read_text().splitlines()
        return next(line.split(",")[2] for line in lines if line.startswith(f"{stage},"))

    def test_run_executes_the_stages_in_order(self):
        for is_rehearsal in (True, False):
            with self.subTest(is_rehearsal=is_rehearsal):
                self.programs = self.folder / f"rehearsal_{is_rehearsal}"
                self.programs.mkdir()
                status, output, _ = self.run_all_stages(is_rehearsal=is_rehearsal)
                self.assertEqual(status, 0, output)
                self.assert_stages(output, STAGES)
                for program in (ROOT / "tests/cuda/calls").glob("*.cu"):
                    path = f"{self.carried}/programs/calls/{program.stem}"
                    for tool in ("memcheck", "racecheck"):
                        self.assertIn(f"compute-sanitizer --tool {tool} --error-exitcode 1 {path}, calls 0-1\n", output)
                    self.assertIn(f"---- {program.stem}\ncalls \n", output)  # all of them
                for program in (ROOT / "tests/cuda").glob("*.cu"):
                    self.assertIn(f"---- {program.stem}\n", output)
                self.assertEqual(self.result_of("The experiment"), "passed")
                self.assertEqual(is_rehearsal, "--rehearse" in output)

    def test_after_a_failed_stage_the_others_run_and_the_script_fails(self):
        status, output, _ = self.run_all_stages(test_status=8)
        self.assertEqual(status, 1, output)
        self.assert_stages(output, STAGES)
        self.assertTrue(output.endswith("\nTests with LibTorch: status 8\n"), output)
        self.assertEqual(self.result_of("Tests with LibTorch"), "status 8")

    def test_programs_that_need_a_gpu_are_skipped_in_a_rehearsal_only(self):
        status, output, _ = self.run_all_stages(program_status=77)
        self.assertEqual(status, 0, output)
        self.assertEqual(self.result_of("Kernels and harness"), "skipped")
        status, output, _ = self.run_all_stages(is_rehearsal=False, program_status=77)
        self.assertEqual(status, 1, output)
        self.assert_stages(output, STAGES)
        self.assertIn("\nRandom calls: status 77\n", output)

    def test_a_program_that_fails_under_compute_sanitizer_fails_the_script_after_the_others_have_run(self):
        status, output, _ = self.run_all_stages(sanitizer_status=1)
        self.assertEqual(status, 1, output)
        self.assertEqual(output.count("compute-sanitizer --tool"), 2 * len([*(ROOT / "tests/cuda/calls").glob("*.cu")]))
        self.assertTrue(output.endswith("\nRandom calls with memcheck: status 1\nRandom calls with racecheck: status 1\n"))

    def test_without_compute_sanitizer_the_other_stages_run_and_the_script_fails(self):
        if shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin"):
            self.skipTest("this machine has compute-sanitizer")
        status, output, _ = self.run_all_stages(is_rehearsal=False, without=["compute-sanitizer"])
        self.assertEqual(status, 1, output)
        self.assert_stages(output, [stage for stage in STAGES if stage not in SANITIZED])
        for stage in SANITIZED:
            self.assertIn(f"\n{stage}: compute-sanitizer is missing\n", output)

    def test_the_rest_is_built_while_kernels_run_and_nothing_is_built_during_measurements(self):
        status, output, _ = self.run_all_stages(build_seconds=3)
        self.assertEqual(status, 0, output)
        kernels, measurements = output.split("==== Build,")
        self.assertIn("while building", kernels)
        self.assertNotIn("while building", measurements)

    # ---- Time limit

    def test_the_limits_of_the_stages_leave_time_for_attention_within_ten_minutes(self):
        _, output, _ = self.run_all_stages()
        limits = {name: int(seconds)
                  for name, seconds in re.findall(r"^==== (.*), at most (\d+) s", output, re.MULTILINE)}
        script = (ROOT / "benchmarks/gpu.sh").read_text()
        build, = (int(seconds) for seconds in re.findall(r"set_most (\d+)\n", script))
        while_built = sum(limits[stage] for stage in STAGES[1:-4])
        others = sum(limits[stage] for stage in STAGES if stage in ("Configure", *STAGES[-4:]) and stage != "Attention")
        self.assertLessEqual(others + max(while_built, build) + 120, 590)

    def test_seconds_limits_the_run_and_the_output_names_the_stages_that_were_cut(self):
        status, output, seconds = self.run_all_stages("--seconds", "18", build_seconds=100)
        self.assertEqual(status, 1, output)
        self.assertLess(seconds, 18)
        self.assert_stages(output, STAGES)
        self.assertRegex(output, r"==== Failed or cut .* ====\nBuild: cut\n$")

    def test_a_stage_that_takes_too_long_is_cut(self):
        self.fake("cmake", "ctest", "ninja", "nvcc", "compute-sanitizer",
                  python=FAKE_PROGRAMS["python"] + '; case "$*" in *gpu_attention*) sleep 100 ;; esac')
        status, output, _ = self.run_there("--rehearse", "--seconds", "18", PYTHON=f"{self.programs}/python",
                                           BUILD_SECONDS="0", BUILDING=str(self.programs / "building"),
                                           TEST_STATUS="0", PROGRAM_STATUS="0", SANITIZER_STATUS="0")
        self.assertEqual(status, 1, output)
        self.assert_stages(output, STAGES)
        self.assertRegex(output, r"====\nAttention: cut after \d+ s\n$")

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
        self.fake("nvcc")  # which may be missing
        self.assert_stops_at_once(self.run_there(CUDA_VISIBLE_DEVICES=""),
                                  "torch .* cannot use a GPU of this machine")


class Calls(unittest.TestCase):
    def test_every_file_with_random_calls_of_the_cuda_kernels_is_in_tests_cuda_calls(self):
        included = "".join(path.read_text() for path in (ROOT / "tests/cuda/calls").glob("*.cu"))
        files = [path for path in (ROOT / "tests/kernels/cuda").glob("*_test.cpp")
                 if re.search("kernels/support/cuda_(forward|backward).h", path.read_text())]
        self.assertGreater(len(files), 5)
        for path in files:
            self.assertIn(f'#include "kernels/cuda/{path.name}"', included)


class Measurements(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def run_script(self, script, *arguments, **environment):
        return subprocess.run([sys.executable, ROOT / "benchmarks" / script, *arguments], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment})

    def write(self, name, text):
        (self.folder / name).write_text(text)

    def page(self):
        result = self.run_script("gpu_page.py", self.folder)
        self.assertEqual(result.returncode, 0, result.stdout)
        return (self.folder / "gpu.md").read_text()

    def test_gpu_attention_says_that_there_is_no_gpu(self):
        result = self.run_script("gpu_attention/measure.py", "none.so", "--output", self.folder,
                                 CUDA_VISIBLE_DEVICES="")
        self.assertEqual(result.returncode, 77)
        self.assertEqual(result.stdout, "measure.py: this machine has no GPU that torch can use\n")

    def test_the_rehearsal_of_gpu_attention_measures_every_case_and_the_page_shows_them(self):
        result = self.run_script("gpu_attention/measure.py", "--rehearse", "--rounds", "1", "--output", self.folder)
        self.assertEqual(result.returncode, 0, result.stdout)
        with open(self.folder / "attention.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual({(row["case"], row["pass"]) for row in rows},
                         {*itertools.product(("plain", "causal", "window 24", "a user's score with a table",
                                              "a user's score with tanh"), ("forward", "backward")),
                          ("decoding", "forward")})
        for row in rows:
            self.assertGreater(float(row["ratio"]), 0)
            self.assertLess(float(row["difference"]), 0.02)
        self.write("stages.csv", "# date 2026-12-01\n# card no GPU\n# software torch 2.11\nstage,seconds,result\n")
        page = self.page()
        self.assertIn("rehearsal without a GPU", page)
        self.assertEqual(page.count("\n| plain |"), sum(row["case"] == "plain" for row in rows))
        self.assertIn("One query, 2 heads", page)

    def test_gpu_attention_does_not_time_a_case_with_a_difference_or_an_error(self):
        script = self.folder / "wrong.py"
        script.write_text(f"""import sys
sys.path.insert(0, {str(ROOT / "benchmarks/gpu_attention")!r})
import measure, peers
formula = peers.formula
def wrong(case, device):
    if case.kind == "table":
        raise MemoryError  # without a message
    right = formula(case, device)
    factor = 1.1 if case.kind == "causal" else float("nan") if case.kind == "decode" else 1
    return lambda q, k, v: factor * right(q, k, v)
peers.formula = wrong
sys.argv[1:] = ["--rehearse", "--rounds", "1", "--output", {str(self.folder)!r}]
measure.main()
""")
        result = self.run_script(script)
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertIn("measure.py: 10 cases were not timed", result.stdout)
        with open(self.folder / "attention.csv", newline="") as file:
            for row in csv.DictReader(file):
                reason = {"causal": "not timed: the results differ", "decoding": "not timed: the results differ",
                          "a user's score with a table": "not timed: MemoryError"}.get(row["case"], "")
                self.assertEqual(row["note"], reason)
                self.assertEqual(row["ratio"] == "", reason != "")

    def test_the_page_shows_ratios_beside_goals_and_what_is_missing(self):
        self.write("stages.csv", "# date 2026-12-01\n# card NVIDIA H200, driver 580, CUDA 13.0\n# software torch 2.11\n"
                                 "# source packed\n# source abc\nstage,seconds,result\nConfigure,12,passed\n"
                                 "The experiment,70,cut after 70 s\n")
        columns = ("case,pass,N,H,G,L,S,D,peer,difference,attend_ms,peer_ms,ratio,goal,tflops,peer_tflops,gb_per_s,"
                   "note")
        self.write("attention.csv", columns + "\n"
                   'plain,forward,1,16,16,16384,16384,64,"SDPA, flash",0.004,2.5,2,0.8,0.6,440,550,,\n'
                   'plain,backward,1,16,16,16384,16384,64,"SDPA, flash",0.004,10,4,0.4,0.5,275,687,,\n'
                   'causal,forward,1,16,16,16384,16384,64,"SDPA, flash",0.5,,,,0.6,,,,not timed: the results differ\n'
                   'decoding,forward,1,16,2,1,65536,128,"SDPA, flash",0.001,0.05,0.06,1.2,,,,1342,\n')
        page = self.page()
        self.assertIn(": NVIDIA H200, driver 580, CUDA 13.0. Date: 2026-12-01.", page)
        self.assertNotIn("rehearsal without", page)
        self.assertIn("| Configure | 12 | passed |\n| The experiment | 70 | cut after 70 s |\n", page)
        self.assertIn("1 of 3 goals were reached.", page)
        self.assertIn("| plain | forward | 1 | 16,384 | 64 | 2.50 | SDPA, flash | 2.00 | 0.80 | 0.6 | 440 | 550 | "
                      "4e-03 |\n", page)
        self.assertIn("| causal | forward | 1 | 16,384 | 64 |  | SDPA, flash |  |  | 0.6 |  |  | "
                      "not timed: the results differ |\n", page)
        self.assertIn("| 2 | 65,536 | 128 | 0.0500 | 0.0600 | 1.20 | 1,342 | 1e-03 |\n", page)
        self.assertIn("to the last loss:\n\nNothing was measured: see the stages above.\n", page)
        self.assertTrue(page.endswith("torch 2.11; packed, abc.\n"), page)

    def test_the_page_shows_the_whole_program_of_the_experiment(self):
        self.write("stages.csv", "# date 2026-12-01\n# card a card\n# software torch 2.11\nstage,seconds,result\n")
        table = "| program | ratio | goal |\n| --- | --- | --- |\n| attend | 12 | 10 |\n"
        self.write("experiment_cuda.md", f"| net |\n| --- |\n\n## The whole program\n\nSeconds.\n\n{table}\n"
                                         "## The data\n\n| samples |\n| --- |\n")
        page = self.page()
        self.assertIn("[experiment_cuda.md](experiment_cuda.md) has all results.", page)
        self.assertIn(f"last loss:\n\n{table}\ntorch", page)


if __name__ == "__main__":
    unittest.main()
