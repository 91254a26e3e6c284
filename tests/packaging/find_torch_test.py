# SPDX-License-Identifier: MIT
"""attendTorch.cmake: which LibTorch is taken, and what is said when there is none that will do."""

import os
import pathlib
import tempfile
import unittest

from configure import NO_PYTHON, configure

REAL = pathlib.Path(os.environ["ATTEND_TORCH_ROOT"])
PROJECT = """
include(attendTorch)
if(attend_TORCH_ERROR)
  message(FATAL_ERROR "${attend_TORCH_ERROR}")
endif()
include(attendTorch) # twice does no harm
get_target_property(libraries attend::torch INTERFACE_LINK_LIBRARIES)
get_target_property(includes attend::torch INTERFACE_SYSTEM_INCLUDE_DIRECTORIES)
message("root=${attend_TORCH_ROOT} version=${attend_TORCH_VERSION} libraries=${libraries} includes=${includes}")
"""


class FindTorch(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name).resolve()

    def torch(self, name, version):
        """A folder that looks like LibTorch of this version."""
        root = self.folder / name
        api = root / "include/torch/csrc/api/include/torch"
        api.mkdir(parents=True)
        (root / "lib").mkdir()
        (root / "lib/libtorch.so").touch()
        names = zip(("MAJOR", "MINOR", "PATCH"), version.split("."))
        (api / "version.h").write_text("".join(f"#define TORCH_VERSION_{name} {number}\n" for name, number in names))
        return root

    def python(self, name, root):
        """A Python that says that its package torch is in `root`."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\necho '{root}'\n")
        path.chmod(0o755)
        return path

    def configure(self, *options, lines=PROJECT, **environment):
        return configure(self.folder / "project", lines, *options, **environment)

    def test_each_way_to_name_it_finds_it(self):
        root = self.torch("torch", "2.11.1")
        package = f"{root}/share/cmake"
        ways = {
            "the folder of LibTorch": ([f"-DCMAKE_PREFIX_PATH={root}"], {}),
            "what torch.utils.cmake_prefix_path prints": ([f"-DCMAKE_PREFIX_PATH=/nowhere;{package}"], {}),
            "the variable of the environment": ([], {"CMAKE_PREFIX_PATH": f"/nowhere:{package}"}),
            "Torch_DIR": ([f"-DTorch_DIR={package}/Torch"], {}),
            "Python3_EXECUTABLE": ([f"-DPython3_EXECUTABLE={self.python('snake', root)}"], {}),
            "Python on the PATH": ([], {"PATH": f"{self.python('python3', root).parent}:{os.environ['PATH']}"}),
        }
        for number, (way, (options, environment)) in enumerate(ways.items()):
            with self.subTest(way):
                status, output = configure(self.folder / str(number), PROJECT, *options, **environment)
                self.assertEqual(status, 0, output)
                self.assertIn(f"attend: LibTorch 2.11.1 in {root}", output)
                self.assertIn(f"{root}/lib/libtorch.so", output)

    def test_what_the_user_names_beats_python(self):
        named = self.torch("named", "2.12.0")
        python = self.python("python3", self.torch("other", "2.11.0"))
        status, output = self.configure(f"-DPython3_EXECUTABLE={python}", f"-DCMAKE_PREFIX_PATH={named}")
        self.assertIn(f"attend: LibTorch 2.12.0 in {named}", output)

    def test_a_target_named_torch_beats_everything(self):
        lines = "add_library(torch INTERFACE IMPORTED)\n" + PROJECT
        status, output = self.configure(f"-DCMAKE_PREFIX_PATH={self.torch('torch', '2.11.0')}", lines=lines)
        self.assertEqual(status, 0, output)
        self.assertIn("libraries=torch includes=includes-NOTFOUND", output)

    def test_an_old_target_named_torch_is_refused(self):
        lines = "set(Torch_VERSION 2.3.0)\nadd_library(torch INTERFACE IMPORTED)\n" + PROJECT
        status, output = self.configure(lines=lines)
        self.assert_one_error(status, output, "LibTorch 2.11 or newer, but the target `torch` of this build is version 2.3.0")

    def test_an_old_libtorch_is_refused(self):
        root = self.torch("torch", "2.3.1")
        status, output = self.configure(f"-DCMAKE_PREFIX_PATH={root}")
        self.assert_one_error(status, output, f"attend needs LibTorch 2.11 or newer, but found version 2.3.1 in {root}")

    def test_none_found_says_the_three_ways(self):
        status, output = self.configure(*NO_PYTHON, CMAKE_PREFIX_PATH=None)
        for part in ("found none", "-DCMAKE_PREFIX_PATH=", "-DTorch_DIR=", "-DPython3_EXECUTABLE="):
            self.assert_one_error(status, output, part)

    def test_a_hint_that_leads_nowhere_is_an_error(self):
        other = f"-DCMAKE_PREFIX_PATH={self.torch('torch', '2.11.0')}"
        status, output = self.configure(other, "-DTorch_DIR=/nowhere/share/cmake/Torch")
        self.assert_one_error(status, output, "there is no LibTorch around it: /nowhere/share/cmake/Torch")

    def test_a_python_without_torch_is_named(self):
        python = self.python("python3", "/nowhere")
        status, output = self.configure(f"-DPython3_EXECUTABLE={python}", CMAKE_PREFIX_PATH=None)
        self.assert_one_error(status, output, f"Python was asked, and has no package torch: {python}")

    def test_the_real_one_takes_its_libraries_and_headers_and_nothing_else(self):
        status, output = self.configure(f"-DCMAKE_PREFIX_PATH={REAL}")
        self.assertIn(f"includes={REAL}/include;{REAL}/include/torch/csrc/api/include", output)
        for library in ("torch", "torch_cpu", "c10"):
            self.assertIn(f"{REAL}/lib/lib{library}.", output)

    def assert_one_error(self, status, output, message):
        self.assertNotEqual(status, 0)
        self.assertEqual(output.count("CMake Error"), 1, output)
        self.assertIn(message, output)


if __name__ == "__main__":
    unittest.main()
