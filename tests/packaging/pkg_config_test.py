# SPDX-License-Identifier: MIT
"""Tests attend.pc: installs the headers, moves them, and compiles a program with the flags of pkg-config."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
CMAKE = os.environ["ATTEND_CMAKE"]
TORCH = os.environ["ATTEND_TORCH_ROOT"]

if shutil.which("pkg-config") is None:
    print("there is no pkg-config on the PATH")
    sys.exit(77)


class PkgConfig(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name).resolve()

    def install(self, *options):
        """Installs attend without LibTorch into a folder, and renames the folder to `moved`."""
        build, first, moved = (self.folder / name for name in ("build", "first", "moved"))
        subprocess.run([CMAKE, "-S", PROJECT, "-B", build, "-DATTEND_FIND_TORCH=OFF", "-DCMAKE_PREFIX_PATH=",
                        f"-DCMAKE_CXX_COMPILER={os.environ['ATTEND_COMPILER']}", *options],
                       check=True, stdout=subprocess.DEVNULL)
        subprocess.run([CMAKE, "--install", build, "--prefix", first], check=True, stdout=subprocess.DEVNULL)
        first.rename(moved)
        return moved

    def pkg_config(self, pc, *options):
        environment = {**os.environ, "PKG_CONFIG_PATH": str(pc.parent)}
        return subprocess.run(["pkg-config", *options, pc.stem], check=True, env=environment, capture_output=True,
                              text=True).stdout.split()

    def test_cflags_name_the_headers_after_the_installation_was_moved(self):
        pc = self.install() / "share/pkgconfig/attend.pc"
        (flag,) = self.pkg_config(pc, "--cflags")
        self.assertEqual(flag[:2], "-I")
        self.assertEqual(pathlib.Path(flag[2:]).resolve(), self.folder / "moved/include")
        self.assertEqual(self.pkg_config(pc, "--libs"), [])

        (version,) = self.pkg_config(pc, "--modversion")
        numbers = [line.split()[2] for line in (PROJECT / "include/attend/version.h").read_text().splitlines()
                   if line.startswith("#define ATTEND_VERSION_M") or line.startswith("#define ATTEND_VERSION_P")]
        self.assertEqual(version.split("."), numbers)

        program = self.folder / "program"
        subprocess.run([os.environ["ATTEND_COMPILER"], "-std=c++20", HERE / "consumer/small.cpp", "-o", program, flag,
                        f"-I{TORCH}/include", f"-I{TORCH}/include/torch/csrc/api/include", f"-L{TORCH}/lib",
                        "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{TORCH}/lib"], check=True)
        subprocess.run([program], check=True, stdout=subprocess.DEVNULL)

    def test_flags_of_attend_kernels_build_a_program_without_libtorch(self):
        pc = self.install() / "share/pkgconfig/attend-kernels.pc"
        program = self.folder / "program"
        consumer = HERE / "kernels_consumer"
        subprocess.run([os.environ["ATTEND_COMPILER"], "-std=c++20", consumer / "main.cpp", consumer / "second.cpp", "-o",
                        program, *self.pkg_config(pc, "--cflags", "--libs")], check=True)
        subprocess.run([program], check=True, stdout=subprocess.DEVNULL)

    def test_cflags_follow_cmake_install_includedir(self):
        moved = self.install("-DCMAKE_INSTALL_INCLUDEDIR=headers/cxx", "-DCMAKE_INSTALL_DATADIR=data")
        (flag,) = self.pkg_config(moved / "data/pkgconfig/attend.pc", "--cflags")
        self.assertTrue((pathlib.Path(flag[2:]) / "attend/attend.h").is_file())


if __name__ == "__main__":
    unittest.main()
