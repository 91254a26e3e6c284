# SPDX-License-Identifier: MIT
"""Tests attendTorch.cmake: which LibTorch is used, and the error if none is suitable."""

import os
import pathlib
import re
import tempfile
import unittest

from configure import CMAKE_FILES, NO_PATH, NO_PYTHON, configure

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

    def torch(self, name, version, lib="lib", package="share/cmake/Torch", libraries=("torch", "torch_cpu", "c10")):
        """Makes a folder like LibTorch of this version, with the layout of the wheel or that of `lib` and `package`."""
        root = self.folder / name
        api = root / "include/torch/csrc/api/include/torch"
        for folder in (api, root / lib, root / package):
            folder.mkdir(parents=True)
        for library in libraries:
            (root / lib / f"lib{library}.so").touch()
        (root / package / "TorchConfig.cmake").touch()
        names = zip(("MAJOR", "MINOR", "PATCH"), version.split("."))
        (api / "version.h").write_text("".join(f"#define TORCH_VERSION_{name} {number}\n" for name, number in names))
        return root

    def python(self, name, root):
        """Makes a Python which answers that its package torch is in `root`."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\necho '{root}'\n")
        path.chmod(0o755)
        return path

    def configure(self, *options, lines=PROJECT, **environment):
        return configure(self.folder / "project", lines, *options, **environment)

    def test_each_way_to_name_libtorch_finds_it(self):
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
                self.assertNotIn("Warning", output)

    def test_libraries_are_found_in_the_layout_of_each_distribution(self):
        for lib in ("lib", "lib64", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu"):
            root = self.torch(lib.replace("/", "-"), "2.13.0", lib, f"{lib}/cmake/Torch")
            ways = (f"-DCMAKE_PREFIX_PATH={root}", f"-DCMAKE_PREFIX_PATH={root}/{lib}/cmake",
                    f"-DTorch_DIR={root}/{lib}/cmake/Torch", f"-DCMAKE_SYSTEM_PREFIX_PATH=/nowhere;{root}")
            for number, way in enumerate(ways):
                with self.subTest(way):
                    # CMake itself sets CMAKE_SYSTEM_PREFIX_PATH. Without a Python, it is the only place to search.
                    lines = f'set(CMAKE_SYSTEM_PREFIX_PATH "/nowhere;{root}")\n' if "SYSTEM" in way else ""
                    options = ["-DATTEND_PYTHON=/nowhere/python", *NO_PATH] if lines else [way]
                    status, output = configure(self.folder / f"{root.name}-{number}", lines + PROJECT, *options,
                                               CMAKE_PREFIX_PATH=None)
                    self.assertEqual(status, 0, output)
                    self.assertIn(f"attend: LibTorch 2.13.0 in {root}", output)
                    for library in ("torch", "torch_cpu", "c10"):
                        self.assertIn(f"{root}/{lib}/lib{library}.so", output)

    def test_the_architecture_of_the_compiler_selects_one_of_two_libraries(self):
        root = self.torch("torch", "2.13.0", "lib/aarch64-linux-gnu")
        (root / "lib/x86_64-linux-gnu").mkdir()
        for library in ("torch_cpu", "c10"):
            (root / f"lib/x86_64-linux-gnu/lib{library}.so").touch()
        lines = "set(CMAKE_LIBRARY_ARCHITECTURE x86_64-linux-gnu)\n" + PROJECT
        status, output = self.configure(f"-DCMAKE_PREFIX_PATH={root}", lines=lines)
        self.assertEqual(status, 0, output)
        self.assertIn(f"{root}/lib/x86_64-linux-gnu/libtorch_cpu.so", output)
        self.assertNotIn("lib/aarch64-linux-gnu/", output)

    def test_headers_without_libraries_are_refused(self):
        for number, libraries in enumerate([(), ("torch", "torch_cpu"), ("torch", "c10")]):
            with self.subTest(libraries):
                root = self.torch(str(number), "2.13.0", libraries=libraries)
                status, output = configure(self.folder / f"project-{number}", PROJECT, f"-DCMAKE_PREFIX_PATH={root}")
                headers = f"found the headers of LibTorch 2.13.0 in {root}, but not its libraries"
                self.assert_one_error(status, output, headers)
                self.assertIn(f"both libtorch_cpu.so and libc10.so: {root}/lib64, {root}/lib.", output)

    def test_cmake_prefix_path_has_priority_over_python(self):
        named = self.torch("named", "2.12.0")
        python = self.python("python3", self.torch("other", "2.11.0"))
        status, output = self.configure(f"-DPython3_EXECUTABLE={python}", f"-DCMAKE_PREFIX_PATH={named}")
        self.assertIn(f"attend: LibTorch 2.12.0 in {named}", output)

    def test_a_python_with_torch_has_priority_over_the_system_prefixes(self):
        system = self.torch("system", "2.12.0")
        root = self.torch("torch", "2.13.0")
        lines = f'set(CMAKE_SYSTEM_PREFIX_PATH "{system}")\n' + PROJECT
        path = f"{self.python('python3', root).parent}:{os.environ['PATH']}"
        options = {"named": [f"-DPython3_EXECUTABLE={self.python('snake', root)}"], "path": []}
        for name, arguments in options.items():
            with self.subTest(name):
                status, output = configure(self.folder / name, lines, *arguments, PATH=path, CMAKE_PREFIX_PATH=None)
                self.assertIn(f"attend: LibTorch 2.13.0 in {root}", output)

    def test_without_torch_in_python_the_system_prefixes_are_searched_unless_the_user_named_that_python(self):
        system = self.torch("system", "2.12.0")
        python = self.python("snake", "/nowhere")
        lines = f'set(CMAKE_SYSTEM_PREFIX_PATH "{system}")\n'
        found = f'set(Python3_EXECUTABLE "{python}") # as find_package(Python3) sets it\n'
        status, output = configure(self.folder / "found", lines + found + PROJECT, *NO_PATH, CMAKE_PREFIX_PATH=None)
        self.assertIn(f"attend: LibTorch 2.12.0 in {system}", output)
        status, output = configure(self.folder / "named", lines + PROJECT, f"-DPython3_EXECUTABLE={python}",
                                   CMAKE_PREFIX_PATH=None)
        self.assert_one_error(status, output, f"This Python has no package torch: {python}")

    def test_a_parent_of_an_unrelated_prefix_is_not_searched(self):
        root = self.torch("torch", "2.12.0")
        (root / "stow/other").mkdir(parents=True)
        status, output = self.configure(f"-DCMAKE_PREFIX_PATH={root}/stow/other", *NO_PYTHON)
        self.assert_one_error(status, output, "found none")

    def test_a_target_named_torch_has_priority(self):
        lines = "add_library(torch INTERFACE IMPORTED)\n" + PROJECT
        status, output = self.configure(f"-DCMAKE_PREFIX_PATH={self.torch('torch', '2.11.0')}", lines=lines)
        self.assertEqual(status, 0, output)
        self.assertIn("libraries=torch includes=includes-NOTFOUND", output)

    def test_an_old_target_named_torch_is_refused(self):
        lines = "set(Torch_VERSION 2.3.0)\nadd_library(torch INTERFACE IMPORTED)\n" + PROJECT
        status, output = self.configure(lines=lines)
        old = "LibTorch 2.7 or newer, but the target `torch` of this build is version 2.3.0"
        self.assert_one_error(status, output, old)

    def test_a_version_newer_than_the_newest_tested_one_gives_one_warning(self):
        def options(version):
            return [f"-DCMAKE_PREFIX_PATH={self.torch(version, version)}"], ""

        def target(version):
            return [], f"set(Torch_VERSION {version})\nadd_library(torch INTERFACE IMPORTED)\n"

        for make in (options, target):
            for version, warnings in {"2.15.0": 0, "2.15.9": 0, "2.16.0": 1, "3.0.0": 1}.items():
                with self.subTest(make=make.__name__, version=version):
                    arguments, lines = make(version)
                    folder = self.folder / f"{make.__name__}-{version}"
                    status, output = configure(folder, lines + PROJECT, *arguments)
                    self.assertEqual(status, 0, output)
                    self.assertEqual(output.count("CMake Warning"), warnings, output)
                    for text in (f"not tested with LibTorch {version}.", "The newest tested version is 2.15, so the build "
                                 "may fail", "pip install torch==2.15.*"):
                        self.assertEqual(output.count(text), warnings, output)

    def test_an_old_libtorch_is_refused(self):
        for number, version in enumerate(("2.3.1", "2.6.0")):
            root = self.torch(str(number), version)
            status, output = configure(self.folder / version, PROJECT, f"-DCMAKE_PREFIX_PATH={root}")
            old = f"attend needs LibTorch 2.7 or newer, but found version {version} in {root}"
            self.assert_one_error(status, output, old)

    def test_the_old_libtorch_of_debian_12_is_refused_with_its_version(self):
        package = "lib/x86_64-linux-gnu/cmake/Torch"  # its header has 1.13.0, but the release is 1.13.1
        root = self.torch("usr", "1.13.0", "lib/x86_64-linux-gnu", package)
        status, output = self.configure(f"-DTorch_DIR={root}/{package}")
        self.assert_one_error(status, output, f"attend needs LibTorch 2.7 or newer, but found version 1.13.0 in {root}")

    def test_a_libtorch_without_a_version_is_refused(self):
        for number, text in enumerate(("", "#define TORCH_VERSION_MAJOR 2\n")):
            root = self.torch(str(number), "2.13.0")
            (root / "include/torch/csrc/api/include/torch/version.h").write_text(text)
            status, output = configure(self.folder / f"project-{number}", PROJECT, f"-DCMAKE_PREFIX_PATH={root}")
            self.assert_one_error(status, output, f"found LibTorch in {root}, but its file version.h gives no version")

    def test_if_none_is_found_the_error_names_three_ways(self):
        status, output = self.configure(*NO_PYTHON, CMAKE_PREFIX_PATH=None)
        for part in ("found none", "-DCMAKE_PREFIX_PATH=", "-DTorch_DIR=", "-DPython3_EXECUTABLE="):
            self.assert_one_error(status, output, part)

    def test_a_torch_dir_without_libtorch_is_an_error(self):
        other = f"-DCMAKE_PREFIX_PATH={self.torch('torch', '2.11.0')}"
        status, output = self.configure(other, "-DTorch_DIR=/nowhere/share/cmake/Torch")
        self.assert_one_error(status, output, "there is no LibTorch around it: /nowhere/share/cmake/Torch")

    def test_the_error_names_a_python_without_torch(self):
        python = self.python("python3", "/nowhere")
        status, output = self.configure(f"-DPython3_EXECUTABLE={python}", CMAKE_PREFIX_PATH=None)
        self.assert_one_error(status, output, f"This Python has no package torch: {python}")

    def test_the_installed_libtorch_gives_its_libraries_and_headers_only(self):
        status, output = self.configure(f"-DCMAKE_PREFIX_PATH={REAL}")
        self.assertIn(f"includes={REAL}/include;{REAL}/include/torch/csrc/api/include", output)
        for library in ("torch", "torch_cpu", "c10"):
            self.assertIn(f"{REAL}/lib/lib{library}.", output)

    def test_the_installed_libtorch_is_a_tested_version(self):
        status, output = self.configure(f"-DCMAKE_PREFIX_PATH={REAL}")
        self.assertEqual(status, 0, output)
        self.assertNotIn("Warning", output)

    def test_all_files_give_the_same_versions(self):
        repository = CMAKE_FILES.parent

        def read(file, pattern):
            found = re.search(pattern, (repository / file).read_text(), re.MULTILINE)
            self.assertIsNotNone(found, f"{file} has no {pattern}")
            return found.group(1)

        oldest = read("cmake/attendTorch.cmake", r"^set\(attend_TORCH_MINIMUM (.+)\)")
        newest = read("cmake/attendTorch.cmake", r"^set\(attend_TORCH_NEWEST_TESTED (.+)\)")
        self.assertTrue(read("cmake/attendProvision.cmake", r"^    set\(torch ([0-9.]+)\)").startswith(f"{newest}."))
        versions = re.findall(r"^([0-9]+\.[0-9]+)\.", (repository / "tests/conformance/versions.txt").read_text(), re.M)
        self.assertEqual((versions[0], versions[-1]), (oldest, newest), "tests/conformance/versions.txt")
        # An installed attend, and the project that tests it.
        installed = read("cmake/attendConfig.cmake.in", r"CMAKE_VERSION VERSION_LESS ([0-9.]+)\)")
        for file in ("tests/packaging/consumer/CMakeLists.txt", "tests/packaging/configure.py"):
            self.assertEqual(read(file, r"cmake_minimum_required\(VERSION ([0-9.]+)\)"), installed, file)
        source = read("CMakeLists.txt", r"^cmake_minimum_required\(VERSION ([0-9.]+)\)")
        readme = " ".join((repository / "README.md").read_text().split())
        for words in (f"LibTorch {oldest}", newest, f"CMake {installed}", source):
            self.assertTrue(words in readme, f"README.md does not say {words}")

    def assert_one_error(self, status, output, message):
        self.assertNotEqual(status, 0)
        self.assertEqual(output.count("CMake Error"), 1, output)
        self.assertIn(message, output)


if __name__ == "__main__":
    unittest.main()
