# SPDX-License-Identifier: MIT
"""Configures a project of a few lines that includes files of cmake/, for the tests beside this file."""

import os
import pathlib
import subprocess

CMAKE_FILES = pathlib.Path(__file__).resolve().parents[2] / "cmake"

# Options with which CMake does not look at the PATH. So it must be told of `make`, though nothing is built.
NO_PATH = ["-DCMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH=OFF", "-DCMAKE_MAKE_PROGRAM=make"]

# Options with which CMake finds no Python: it looks nowhere.
NO_PYTHON = ["-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF", *NO_PATH]


def start(folder, lines, *options, **environment):
    """Starts CMake on a project made of `lines` in `folder`, and returns the process. A value of None unsets."""
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
    """Waits, and returns the exit status and everything printed, with CMake's line breaks undone."""
    output, _ = process.communicate()
    return process.returncode, " ".join(output.split())


def configure(folder, lines, *options, **environment):
    return finish(start(folder, lines, *options, **environment))
