# SPDX-License-Identifier: MIT
"""Tests two shared libraries that use attend in one program: what they share, and what each has separately."""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
HEADERS = HERE.parents[1] / "include"
COMPILER = os.environ["ATTEND_COMPILER"]
TORCH = os.environ["ATTEND_TORCH_ROOT"]


class TwoLibraries(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        cls.compile("main.cpp", "main", "-ldl")

        # "newer" is another version, in which one function differs. "changed" is the same with the old version number.
        shutil.copytree(HEADERS, cls.folder / "newer")
        cls.replace("newer/attend/version.h", "_VERSION_PATCH [0-9]+", "_VERSION_PATCH 999")
        cls.replace("newer/attend/attention/backend.h", '"kReference"', '"newer kReference"')
        shutil.copytree(cls.folder / "newer", cls.folder / "changed")
        shutil.copy(HEADERS / "attend/version.h", cls.folder / "changed/attend/version.h")

        cls.library("ours", HEADERS)
        cls.library("hidden", HEADERS, "-fvisibility=hidden")
        cls.library("newer", cls.folder / "newer")
        cls.library("changed", cls.folder / "changed")

    @classmethod
    def compile(cls, source, name, *options):
        command = [COMPILER, "-std=c++20", HERE / "two_libraries" / source, "-o", cls.folder / f"{name}", *options]
        subprocess.run(command, check=True)

    @classmethod
    def library(cls, name, headers, *options):
        cls.compile("library.cpp", f"{name}.so", f"-I{headers}", "-isystem", f"{TORCH}/include", "-isystem",
                    f"{TORCH}/include/torch/csrc/api/include", "-shared", "-fPIC", *options, f"-L{TORCH}/lib",
                    "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{TORCH}/lib")

    @classmethod
    def replace(cls, file, old, new):
        path = cls.folder / file
        text, count = re.subn(old, new, path.read_text())
        assert count == 1, (file, old, count)
        path.write_text(text)

    def run_with(self, first, second):
        """The name of kReference in both libraries, and whether a BackendGuard of the first applies to each of them."""
        command = [self.folder / "main", self.folder / f"{first}.so", self.folder / f"{second}.so"]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        return lines[:2], [line == "1" for line in lines[2:]]

    def test_two_versions_of_attend_use_their_own_functions(self):
        self.assertEqual(self.run_with("ours", "newer")[0], ["kReference", "newer kReference"])
        self.assertEqual(self.run_with("newer", "ours")[0], ["newer kReference", "kReference"])
        with self.subTest("with the same version number they would share the function"):
            self.assertEqual(self.run_with("ours", "changed")[0], ["kReference", "kReference"])

    def test_a_backend_guard_applies_only_to_libraries_of_the_same_version_with_default_visibility(self):
        for second, reached in {"changed": True, "hidden": False, "newer": False}.items():
            with self.subTest(second):
                self.assertEqual(self.run_with("ours", second)[1], [True, reached])

    def test_every_exported_name_of_attend_contains_the_version(self):
        symbols = subprocess.run(["nm", "-DC", "--defined-only", self.folder / "newer.so"], check=True,
                                 capture_output=True, text=True).stdout
        names = re.findall(r"attend::(\w+)", symbols)
        self.assertGreater(len(names), 3)
        self.assertEqual({name for name in names if not re.fullmatch(r"v\d+_\d+_999", name)}, set())

    def test_every_header_opens_the_namespace_of_the_version(self):
        opened = [(header, line) for header in sorted([*HEADERS.rglob("*.h"), *HEADERS.rglob("*.cuh")])
                  for line in header.read_text().splitlines() if re.match(r"\s*(inline )?namespace attend\b", line)]
        self.assertGreater(len(opened), 50)
        for header, line in opened:
            self.assertIn("namespace attend::inline ATTEND_VERSION_NAMESPACE", line, header)


if __name__ == "__main__":
    unittest.main()
