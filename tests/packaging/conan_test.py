# SPDX-License-Identifier: MIT
"""Tests packaging/conan: `conan create` packages attend, and test_package finds LibTorch by CMAKE_PREFIX_PATH."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

PROJECT = pathlib.Path(__file__).resolve().parents[2]

if shutil.which("conan") is None:
    print("there is no conan on the PATH")
    sys.exit(77)


class Conan(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def conan(self, *arguments):
        """Runs conan and returns its output. All its files are in the temporary folder, and it uses no network."""
        environment = {**os.environ, "CONAN_HOME": str(self.folder / "home"), "CXX": os.environ["ATTEND_COMPILER"],
                       "CMAKE_PREFIX_PATH": os.environ["ATTEND_TORCH_ROOT"]}
        result = subprocess.run(["conan", *arguments], env=environment, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)
        self.assertEqual(result.returncode, 0, result.stdout)
        return result.stdout

    def test_conan_create_makes_a_package_that_a_program_can_use(self):
        self.conan("profile", "detect")
        settings = ["-s", "compiler.cppstd=20"]
        for option in (f"tools.cmake:cmake_program={os.environ['ATTEND_CMAKE']}",
                       f"tools.cmake.cmake_layout:test_folder={self.folder}/test"):
            settings += ["-c", option]
        if shutil.which("ninja"):
            settings += ["-c", "tools.cmake.cmaketoolchain:generator=Ninja"]
        output = self.conan("create", str(PROJECT / "packaging/conan"), "--no-remote", *settings)
        self.assertIn("attend works: [1, 2, 16, 8]", output)

        (package,) = [path.parents[2] for path in (self.folder / "home/p").rglob("include/attend/attend.h")
                      if path.parents[2].name == "p"]  # the others are copies of the sources
        headers = {path.relative_to(PROJECT) for path in (PROJECT / "include").rglob("*") if path.is_file()}
        self.assertEqual({path.relative_to(package) for path in (package / "include").rglob("*") if path.is_file()},
                         headers)
        self.assertTrue((package / "licenses/LICENSE").is_file())


if __name__ == "__main__":
    unittest.main()
