# SPDX-License-Identifier: MIT
"""attendProvision.cmake: what it makes, shares and repairs, and the one message that it gives when it cannot.

Nothing is downloaded: the list of packages is empty, or the package index is a closed port of this machine.
"""

import hashlib
import os
import pathlib
import subprocess
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
        # -S hides the packages that this machine's Python may have.
        self.python = self.program("python3", f'exec "{os.path.realpath(sys.executable)}" -S "$@"')
        self.environment = {"ATTEND_CACHE_DIR": self.cache, "PYTHONPATH": None, "PIP_CONFIG_FILE": os.devnull}

    def program(self, name, line):
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
        return path

    def module(self, name, text):
        """Puts a module before the one of Python's own that has the same name."""
        path = self.folder / "modules" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.environment["PYTHONPATH"] = self.folder / "modules"

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

    # ---- What works

    def test_build_trees_share_one_environment_and_an_interrupted_one_is_made_again(self):
        status, output = self.configure("first")
        self.assertEqual(status, 0, output)
        self.assertIn(MADE, output)
        (environment,) = self.cache.glob("python-*[!.lock]")
        self.assertIn(f"python={environment}/bin/python.", output)

        with self.subTest("a second build tree takes what is there"):
            status, output = self.configure("second")
            self.assertEqual(status, 0, output)
            self.assertNotIn(MADE, output)
            self.assertIn(f"python={environment}/bin/python.", output)

        with self.subTest("without its marker it is the rest of an interrupted installation"):
            (environment / "complete").unlink()
            (environment / "rest").touch()
            status, output = self.configure("third")
            self.assertEqual(status, 0, output)
            self.assertIn(f"an installation was interrupted; removing {environment}", output)
            self.assertTrue((environment / "complete").exists())
            self.assertFalse((environment / "rest").exists())

    def test_two_build_trees_at_once_make_one_environment(self):
        both = [start(*self.arguments(tree), **self.environment) for tree in ("first", "second")]
        results = [finish(process) for process in both]
        self.assertEqual([status for status, _ in results], [0, 0], results)
        self.assertEqual(sum(MADE in output for _, output in results), 1, results)
        self.assertEqual(sum("waiting for another build" in output for _, output in results), 1, results)

    def test_a_python_that_has_everything_is_taken_as_it_is(self):
        for name in ("torch", "numpy", "matplotlib"):
            self.module(f"{name}.py", "")
        (self.folder / "modules/torch-2.11.0+cpu.dist-info").mkdir()
        (self.folder / "modules/torch-2.11.0+cpu.dist-info/METADATA").write_text("Name: torch\nVersion: 2.11.0+cpu\n")
        status, output = self.configure("tree")
        self.assertEqual(status, 0, output)
        self.assertNotIn(MADE, output)
        self.assert_nothing_left()

    # ---- What cannot work, and what is said

    def test_no_python(self):
        status, output = self.configure("tree", "-DPython3_EXECUTABLE=", *NO_PYTHON)
        self.assert_one_error(status, output, "Python 3.10 or newer is needed", "none is on the PATH", "-DPython3_EXECUTABLE=")

    def test_a_python_that_is_not_there(self):
        status, output = self.configure("tree", "-DPython3_EXECUTABLE=/nowhere/python")
        self.assert_one_error(status, output, "/nowhere/python cannot be run")

    def test_an_old_python(self):
        old = self.program("old", "echo 3.8.10")
        status, output = self.configure("tree", f"-DPython3_EXECUTABLE={old}")
        self.assert_one_error(status, output, f"{old} is version 3.8.10", "-DPython3_EXECUTABLE=")

    def test_a_python_that_cannot_make_environments(self):
        for name in ("venv", "ensurepip"):
            with self.subTest(name):
                self.module(f"{name}.py", "raise ImportError")
                status, output = self.configure(name)
                self.assert_one_error(status, output, "its module venv or ensurepip is missing", "python3-venv")
                (self.folder / "modules" / f"{name}.py").unlink()

    def test_too_little_space(self):
        status, output = self.configure("tree", "-DATTEND_PROVISION_GIGABYTES=1000000")
        self.assert_one_error(status, output, "need 1000000 GB while", "ATTEND_CACHE_DIR")
        self.assert_nothing_left()

    def test_the_disk_becomes_full(self):
        self.module("pip.py", "raise SystemExit('ERROR: [Errno 28] No space left on device')")
        status, output = self.configure("tree")
        self.assert_one_error(status, output, "the disk became full", "ATTEND_CACHE_DIR")
        self.assert_nothing_left()

    def test_no_network(self):
        self.requirements.write_text("attend-has-no-such-package==1\n")
        status, output = self.configure(
            "tree", PIP_INDEX_URL=CLOSED_PORT, PIP_EXTRA_INDEX_URL=None, PIP_FIND_LINKS=None, PIP_NO_INDEX=None,
            PIP_RETRIES=1, no_proxy="127.0.0.1")
        self.assert_one_error(status, output, "pip could not reach its package index", "-DATTEND_PROVISION=OFF")
        self.assert_nothing_left()

    def test_pip_fails_for_another_reason(self):
        self.requirements.write_text("this is no requirement\n")
        status, output = self.configure("tree")
        self.assert_one_error(status, output, "could not install the packages", "Invalid requirement")
        self.assert_nothing_left()

    # ---- Header-only libraries

    def headers(self, tree, url, sha256):
        """Asks for a library that no system has, where apt-get fails at once."""
        self.program("apt-get", "exit 1")
        lines = f"""{PROJECT}
            attend_provision_headers(library::library FOLDER library INCLUDE library-1/include
                                     DEBIAN_PACKAGE library-dev URL {url} SHA256 {sha256})
            get_target_property(include library::library INTERFACE_INCLUDE_DIRECTORIES)
            message("include=${{include}}.")"""
        everything = self.program("everything", "printf '3.11.7\\npython\\nhome\\n\\n2.11.0\\n'")
        return self.configure(tree, f"-DPython3_EXECUTABLE={everything}", lines=lines,
                              PATH=f"{everything.parent}:{os.environ['PATH']}")

    def test_headers_from_an_archive(self):
        archive = self.folder / "archive.tar.gz"
        (self.folder / "library.h").touch()
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(self.folder / "library.h", "library-1/include/library.h")
        sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()

        status, output = self.headers("wrong", archive.as_uri(), "0" * 64)
        self.assert_one_error(status, output, "is not the one that attend knows")
        self.assert_nothing_left()

        status, output = self.headers("right", archive.as_uri(), sha256)
        self.assertEqual(status, 0, output)
        self.assertIn(f"include={self.cache}/library/include.", output)
        self.assertTrue((self.cache / "library/include/library.h").exists())

        archive.unlink()  # not needed any more
        status, output = self.headers("again", archive.as_uri(), sha256)
        self.assertEqual(status, 0, output)

    def test_headers_from_nowhere(self):
        status, output = self.headers("tree", CLOSED_PORT, "0" * 64)
        self.assert_one_error(status, output, "neither as the system's package nor from", "library-dev")
        self.assert_nothing_left()


if __name__ == "__main__":
    unittest.main()
