# SPDX-License-Identifier: MIT
"""Configures a small project that includes files of cmake/, for the tests in this folder."""

import os
import pathlib
import subprocess

CMAKE_FILES = pathlib.Path(__file__).resolve().parents[2] / "cmake"

# With these options CMake does not search the PATH. It then needs the name of `make`, though nothing is built.
NO_PATH = ["-DCMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH=OFF", "-DCMAKE_MAKE_PROGRAM=make"]

# With these options CMake searches no folder and finds no Python.
NO_PYTHON = ["-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF", *NO_PATH]


def start(folder, lines, *options, **environment):
    """Starts CMake on a project of these lines in `folder` and returns the process. None unsets a variable."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(test LANGUAGES NONE)\n"
        f'list(APPEND CMAKE_MODULE_PATH "{CMAKE_FILES}")\n' + lines
    )
    merged = {**os.environ, **environment}
    return subprocess.Popen(
        [os.environ.get("ATTEND_CMAKE", "cmake"), "-S", folder, "-B", folder / "build", *options],
        env={name: str(value) for name, value in merged.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    """Waits for the process. Returns the exit status and the output, in which every white space is one space."""
    output, _ = process.communicate()
    return process.returncode, " ".join(output.split())


def configure(folder, lines, *options, **environment):
    return finish(start(folder, lines, *options, **environment))
