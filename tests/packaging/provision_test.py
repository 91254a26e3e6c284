# SPDX-License-Identifier: MIT
"""Tests attendProvision.cmake: it makes, shares and repairs virtual environments, or stops with one error.

Nothing is downloaded: the list of packages is empty, or the package index is a closed port of this machine.
"""

import hashlib
import os
import pathlib
import shutil
import sys
import tarfile
import tempfile
import unittest

from configure import NO_PYTHON, configure, finish, start

PROJECT = """
include(attendProvision)
message("python=${ATTEND_PYTHON}.")
"""
MADE = "a virtual environment is made now"
CLOSED_PORT = "http://127.0.0.1:9"


class Provision(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name).resolve()
        self.cache = self.folder / "cache"
        self.requirements = self.folder / "requirements.txt"
        self.requirements.touch()
        # -S hides the packages of this machine's Python.
        self.python = self.program("python3", f'exec "{os.path.realpath(sys.executable)}" -S "$@"')
        self.environment = {"ATTEND_CACHE_DIR": self.cache, "PYTHONPATH": None, "PIP_CONFIG_FILE": os.devnull}

    def program(self, name, line):
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
        return path

    def module(self, name, text):
        """Writes a module that replaces the one of the same name in Python's library."""
        path = self.folder / "modules" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.environment["PYTHONPATH"] = self.folder / "modules"

    def quick_environments(self):
        """Makes environments that have only an interpreter, and a pip that installs nothing."""
        self.module("pip.py", "")
        self.module("venv.py", """if __name__ == "__main__":
            import os, sys
            python = os.path.realpath(sys.executable)
            os.makedirs(f"{sys.argv[1]}/bin")
            os.symlink(python, f"{sys.argv[1]}/bin/python")
            with open(f"{sys.argv[1]}/pyvenv.cfg", "w") as file:
                print("home =", os.path.dirname(python), file=file)""")

    def arguments(self, tree, *options, lines=PROJECT):
        options = (f"-DATTEND_PROVISION_REQUIREMENTS={self.requirements}", "-DATTEND_PROVISION_GIGABYTES=0", *options)
        if not any("Python3_EXECUTABLE" in option for option in options):
            options = (f"-DPython3_EXECUTABLE={self.python}", *options)
        return (self.folder / tree, lines, *options)

    def configure(self, tree, *options, lines=PROJECT, **environment):
        return configure(*self.arguments(tree, *options, lines=lines), **{**self.environment, **environment})

    def assert_one_error(self, status, output, *messages):
        self.assertNotEqual(status, 0, output)
        self.assertEqual(output.count("CMake Error"), 1, output)
        for message in messages:
            self.assertIn(message, output)

    def assert_nothing_left(self):
        self.assertEqual([path.name for path in self.cache.glob("*") if path.suffix != ".lock"], [])

    # ---- Success

    def test_build_trees_share_one_environment_and_an_interrupted_installation_is_repeated(self):
        status, output = self.configure("first")
        self.assertEqual(status, 0, output)
        self.assertIn(MADE, output)
        (environment,) = self.cache.glob("python-*[!.lock]")
        self.assertIn(f"python={environment}/bin/python.", output)

        with self.subTest("a second build tree uses the environment"):
            status, output = self.configure("second")
            self.assertEqual(status, 0, output)
            self.assertNotIn(MADE, output)
            self.assertIn(f"python={environment}/bin/python.", output)

        with self.subTest("an environment without its marker was interrupted"):
            (environment / "complete").unlink()
            (environment / "rest").touch()
            status, output = self.configure("third")
            self.assertEqual(status, 0, output)
            self.assertIn(f"an installation was interrupted; removing {environment}", output)
            self.assertTrue((environment / "complete").exists())
            self.assertFalse((environment / "rest").exists())

    def test_two_build_trees_at_the_same_time_make_one_environment(self):
        both = [start(*self.arguments(tree), **self.environment) for tree in ("first", "second")]
        results = [finish(process) for process in both]
        self.assertEqual([status for status, _ in results], [0, 0], results)
        self.assertEqual(sum(MADE in output for _, output in results), 1, results)
        self.assertEqual(sum("waiting for another build" in output for _, output in results), 1, results)

    def everything(self, torch):
        """Gives every Python of this test torch of this version, numpy and matplotlib."""
        for name in ("torch", "numpy", "matplotlib"):
            self.module(f"{name}.py", "")
        for information in (self.folder / "modules").glob("torch-*"):
            shutil.rmtree(information)
        information = self.folder / f"modules/torch-{torch}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Name: torch\nVersion: {torch}\n")

    def test_a_python_with_all_packages_is_used_as_it_is(self):
        fitting = {"2.7.1": "", "2.11.0+cpu": "", "2.15.0": "", "2.9.0+cu130": "2.9.0"}
        for number, (torch, option) in enumerate(fitting.items()):
            with self.subTest(torch=torch, option=option):
                self.everything(torch)
                status, output = self.configure(str(number), f"-DATTEND_PROVISION_TORCH={option}")
                self.assertEqual(status, 0, output)
                self.assertNotIn(MADE, output)
                self.assert_nothing_left()

    def test_a_python_with_another_version_of_torch_is_not_used(self):
        self.quick_environments()
        expected = {("2.6.0", ""): "torch 2.7 to 2.15", ("2.16.0", ""): "torch 2.7 to 2.15",
                    ("2.15.0", "2.11.0"): "torch 2.11.0"}
        for number, ((torch, option), wanted) in enumerate(expected.items()):
            with self.subTest(torch=torch, option=option):
                self.everything(torch)
                status, output = self.configure(str(number), f"-DATTEND_PROVISION_TORCH={option}",
                                                ATTEND_CACHE_DIR=self.folder / f"cache-{number}")
                self.assertEqual(status, 0, output)
                self.assertIn(f"found no Python with {wanted}, numpy and matplotlib, so {MADE}", output)

    def test_a_python_that_lacks_only_matplotlib_is_named(self):
        self.quick_environments()
        self.everything("2.15.0")
        (self.folder / "modules" / "matplotlib.py").unlink()
        status, output = self.configure("tree")
        self.assertEqual(status, 0, output)
        self.assertIn("which has torch 2.15.0 and lacks only matplotlib: interrupt this", output)

    def environments(self):
        """The requirements of each environment."""
        return sorted(path.read_text() for path in self.cache.glob("python-*/requirements.txt"))

    def test_attend_provision_torch_selects_the_version_of_torch(self):
        self.quick_environments()
        self.requirements.write_text("# torch==@ATTEND_PROVISION_TORCH@")
        for tree, option in {"chosen": "", "same": "2.15.0", "older": "2.11.0"}.items():
            status, output = self.configure(tree, f"-DATTEND_PROVISION_TORCH={option}")
            self.assertEqual(status, 0, output)
            self.assertEqual(MADE in output, tree != "same", output)
        self.assertEqual(self.environments(), ["# torch==2.11.0", "# torch==2.15.0"])

    def test_python_3_10_gets_torch_2_14_1(self):
        self.quick_environments()
        self.requirements.write_text("# torch==@ATTEND_PROVISION_TORCH@")
        old = self.program("old", f"""case "$2" in
            *importlib.metadata*) printf '3.10.5\\n%s\\nhome\\ntorch\\n0\\n' "$0" ;;
            *) exec "{self.python}" "$@" ;;
            esac""")
        status, output = self.configure("tree", f"-DPython3_EXECUTABLE={old}")
        self.assertEqual(status, 0, output)
        self.assertEqual(self.environments(), ["# torch==2.14.1"])

    def test_an_environment_of_an_older_attend_is_not_used(self):
        self.quick_environments()
        self.requirements.write_text("# older")
        path = f"{self.python.parent}:{os.environ['PATH']}"
        options = ("-DPython3_EXECUTABLE=",)
        self.assertEqual(self.configure("tree", *options, PATH=path)[0], 0)
        self.everything("2.11.0")  # as that environment has
        self.requirements.write_text("# newer")
        status, output = self.configure("tree", *options, PATH=path)
        self.assertEqual(status, 0, output)
        self.assertEqual(self.environments(), ["# newer", "# older"])
        (newer,) = (path.parent for path in self.cache.glob("python-*/requirements.txt") if "newer" in path.read_text())
        self.assertIn(f"python={newer}/bin/python.", output)
        with self.subTest("a new run uses the newer environment"):
            status, output = self.configure("tree", *options, PATH=path)
            self.assertNotIn(MADE, output)
            self.assertIn(f"python={newer}/bin/python.", output)

    # ---- Errors

    def test_an_invalid_attend_provision_torch_is_refused(self):
        for version in ("latest", "2.6.0", ">=2.9"):
            with self.subTest(version):
                status, output = self.configure("tree", f"-DATTEND_PROVISION_TORCH={version}")
                self.assert_one_error(status, output, f"ATTEND_PROVISION_TORCH is {version}.", "2.7 or newer")
                self.assert_nothing_left()

    def test_without_a_python_the_error_names_the_option(self):
        status, output = self.configure("tree", "-DPython3_EXECUTABLE=", *NO_PYTHON)
        self.assert_one_error(status, output, "Python 3.10 or newer is needed", "none is on the PATH", "-DPython3_EXECUTABLE=")

    def test_a_python_that_does_not_exist_is_refused(self):
        status, output = self.configure("tree", "-DPython3_EXECUTABLE=/nowhere/python")
        self.assert_one_error(status, output, "/nowhere/python cannot be run")

    def test_an_old_python_is_refused_with_its_version(self):
        old = self.program("old", "echo 3.8.10")
        status, output = self.configure("tree", f"-DPython3_EXECUTABLE={old}")
        self.assert_one_error(status, output, f"{old} is version 3.8.10", "-DPython3_EXECUTABLE=")

    def test_a_python_without_venv_or_ensurepip_is_refused(self):
        for name in ("venv", "ensurepip"):
            with self.subTest(name):
                self.module(f"{name}.py", "raise ImportError")
                status, output = self.configure(name)
                self.assert_one_error(status, output, "its module venv or ensurepip is missing", "python3-venv")
                (self.folder / "modules" / f"{name}.py").unlink()

    def test_too_little_disk_space_is_an_error_before_the_installation(self):
        status, output = self.configure("tree", "-DATTEND_PROVISION_GIGABYTES=1000000")
        self.assert_one_error(status, output, "need 1000000 GB while", "ATTEND_CACHE_DIR")
        self.assert_nothing_left()

    def test_a_disk_that_becomes_full_is_an_error_and_leaves_no_files(self):
        self.quick_environments()
        self.module("pip.py", "raise SystemExit('ERROR: [Errno 28] No space left on device')")
        status, output = self.configure("tree")
        self.assert_one_error(status, output, "the disk became full", "ATTEND_CACHE_DIR")
        self.assert_nothing_left()

    def test_without_network_the_error_says_so(self):
        self.requirements.write_text("attend-has-no-such-package==1\n")
        status, output = self.configure(
            "tree", PIP_INDEX_URL=CLOSED_PORT, PIP_EXTRA_INDEX_URL=None, PIP_FIND_LINKS=None, PIP_NO_INDEX=None,
            PIP_RETRIES=1, no_proxy="127.0.0.1")
        self.assert_one_error(status, output, "pip could not reach its package index", "-DATTEND_PROVISION=OFF")
        self.assert_nothing_left()

    def test_another_failure_of_pip_is_shown(self):
        self.requirements.write_text("this is no requirement\n")
        status, output = self.configure("tree")
        self.assert_one_error(status, output, "could not install torch 2.15.0 and the packages", "Invalid requirement")
        self.assert_nothing_left()

    # ---- Header-only libraries

    def headers(self, tree, url, sha256):
        """Requests a library that no system has, with an apt-get that fails at once."""
        self.program("apt-get", "exit 1")
        lines = f"""{PROJECT}
            attend_provision_headers(library::library FOLDER library INCLUDE library-1/include
                                     DEBIAN_PACKAGE library-dev URL {url} SHA256 {sha256})
            get_target_property(include library::library INTERFACE_INCLUDE_DIRECTORIES)
            message("include=${{include}}.")"""
        everything = self.program("everything", "printf '3.11.7\\npython\\nhome\\n\\n2.11.0\\n'")
        return self.configure(tree, f"-DPython3_EXECUTABLE={everything}", lines=lines,
                              PATH=f"{everything.parent}:{os.environ['PATH']}")

    def test_headers_come_from_an_archive_with_the_right_hash(self):
        archive = self.folder / "archive.tar.gz"
        (self.folder / "library.h").touch()
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(self.folder / "library.h", "library-1/include/library.h")
        sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()

        status, output = self.headers("wrong", archive.as_uri(), "0" * 64)
        self.assert_one_error(status, output, "has another SHA-256 hash than the one that attend knows")
        self.assert_nothing_left()

        status, output = self.headers("right", archive.as_uri(), sha256)
        self.assertEqual(status, 0, output)
        self.assertIn(f"include={self.cache}/library/include.", output)
        self.assertTrue((self.cache / "library/include/library.h").exists())

        archive.unlink()  # no longer needed
        status, output = self.headers("again", archive.as_uri(), sha256)
        self.assertEqual(status, 0, output)

    def test_headers_that_cannot_be_downloaded_are_an_error(self):
        status, output = self.headers("tree", CLOSED_PORT, "0" * 64)
        self.assert_one_error(status, output, "neither as the system's package nor from", "library-dev")
        self.assert_nothing_left()


if __name__ == "__main__":
    unittest.main()
