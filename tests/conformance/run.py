#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compiles and runs the conformance program with every LibTorch of versions.txt and every installed compiler.

Prints the table that docs/versions.md shows.

    run.py                        all entries
    run.py --ci                   the entries of CI, all of which are required
    run.py --only 2.15.0 nvcc     some entries; --list prints all names

The exit status is 0 if every entry that ran is right and has no warnings, and every required entry ran. LibTorch is
downloaded with pip into the user's cache folder of attend, without its CUDA part: about 500 MB per version.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
INCLUDE = ROOT / "include"
HOST = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())

COMPILERS = ["g++-11", "g++-12", "g++-13", "g++-14", "clang++-14", "clang++-15", "clang++-16", "clang++-17",
             "clang++-18", "clang++-19"]
NEWEST_CLANG = "clang++-19"
LAST_BEFORE_MANGLING = "2.11.0"  # clang 18 and newer mangle const_data_ptr differently from its compiler

WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion"]
GLIBC = ["2_28", "2_27", "2_26", "2_25", "2_24", "2_17"]  # pip does not know that a newer one includes the older ones
WHEELS_PYTHON = "3.12"  # a wheel's C++ part is the same for every Python
SECONDS_TO_RUN = 900  # the program takes 3 seconds, and 100 times as long under an emulator


class NotHere(Exception):
    """This machine lacks a program or a package, which the message names."""


class Wrong(Exception):
    """A check of attend failed. The message is for the log."""


# ---- Commands --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Finished:
    status: int
    output: str  # both streams
    seconds: float  # of CPU


def run(command, environment=None, limit=None):
    """Runs a command and waits for its end, or kills it after `limit` seconds."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=subprocess.STDOUT,
                                   env={**os.environ, **(environment or {})})
        timer = threading.Timer(limit or 10**6, process.kill)
        timer.daemon = True
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        return Finished(process.returncode, output.read(), usage.ru_utime + usage.ru_stime)


def find(program):
    """The path of a program, on the PATH or in CUDA's default folder."""
    path = shutil.which(program) or shutil.which(program, path="/usr/local/cuda/bin")
    if not path:
        raise NotHere(f"{program} is not installed")
    return path


def describe_compiler(path):
    """For example: g++ 12.2.0."""
    text = run([path, "--version"]).output
    kind = "nvcc" if "nvcc" in Path(path).name else "clang++" if "clang" in text else "g++"
    version = re.search(r"release (\d+\.\d+)" if kind == "nvcc" else r"(\d+\.\d+\.\d+)", text)
    return f"{kind} {version[1] if version else 'of unknown version'}"


def with_ccache(command):
    ccache = shutil.which("ccache")
    return [ccache, *command] if ccache else command


# Warnings are counted by their English name.
COMPILING = {"CCACHE_BASEDIR": str(ROOT), "CCACHE_NOHASHDIR": "1", "LC_ALL": "C"}


# ---- LibTorch ----------------------------------------------------------------------------------------------------


def cache_folder():
    """The folder that cmake/attendProvision.cmake uses."""
    if "ATTEND_CACHE_DIR" in os.environ:
        return Path(os.environ["ATTEND_CACHE_DIR"])
    if "XDG_CACHE_HOME" in os.environ:
        return Path(os.environ["XDG_CACHE_HOME"], "attend")
    return Path.home() / ".cache" / "attend"


def needed_libraries(path):
    """The names of the shared libraries that an ELF file (64-bit, little-endian) needs."""
    with open(path, "rb") as file:
        header = file.read(64)
        offset, size, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
        file.seek(offset)
        segments = [struct.unpack_from("<IIQQQQQQ", file.read(size)) for _ in range(count)]
        loaded = [segment for segment in segments if segment[0] == 1]
        dynamic = next(segment for segment in segments if segment[0] == 2)
        file.seek(dynamic[2])
        entries = [struct.unpack("<qQ", file.read(16)) for _ in range(dynamic[5] // 16)]
        strings = dict(entries)[5]
        place = next(s[2] + strings - s[3] for s in loaded if s[3] <= strings < s[3] + s[5])

        def name_at(position):
            file.seek(place + position)
            return file.read(256).split(b"\0")[0].decode()

        return [name_at(value) for tag, value in entries if tag == 1]


def download(requirement, architecture, folder):
    """The wheel of a package for Linux on an architecture."""
    platforms = [f"--platform=manylinux_{glibc}_{architecture}" for glibc in GLIBC]
    finished = run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--no-input",
                    "--disable-pip-version-check", "--only-binary=:all:", f"--python-version={WHEELS_PYTHON}",
                    *platforms, f"--platform=manylinux2014_{architecture}", "--dest", folder, requirement],
                   {"TMPDIR": str(folder)})
    wheels = list(folder.glob("*.whl"))
    if finished.status != 0 or not wheels:
        last = (finished.output.strip().splitlines() or ["pip said nothing"])[-1].removeprefix("ERROR: ")
        raise NotHere(f"{requirement} for {architecture} could not be downloaded: {last}")
    return wheels[0]


def unpack(archive, name, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as packed, open(path, "wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, 1 << 20)


def fill(folder, version, architecture):
    """Unpacks the headers, libtorch_cpu, libc10 and the libraries that these two need."""
    temporary, libraries = folder / "temporary", folder / "lib"
    temporary.mkdir(parents=True)
    wheel = download(f"torch=={version}", architecture, temporary)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for name in names:
            if name.startswith("torch/include/") and not name.endswith("/"):
                unpack(archive, name, folder / name.removeprefix("torch/"))
        missing = ["libtorch_cpu.so", "libc10.so"]
        while missing:
            name = missing.pop()
            if f"torch/lib/{name}" in names and not (libraries / name).exists():
                unpack(archive, f"torch/lib/{name}", libraries / name)
                missing += needed_libraries(libraries / name)
    wheel.unlink()

    # libtorch_cpu of a wheel with CUDA cannot be loaded without these two small libraries.
    packages = {"libcudart": "nvidia-cuda-runtime", "libcupti": "nvidia-cuda-cupti"}
    for library in needed_libraries(libraries / "libtorch_cpu.so"):
        short, _, major = library.partition(".so.")
        if short not in packages:
            continue
        package = packages[short]
        requirement = f"{package}-cu{major}" if int(major) < 13 else f"{package}=={major}.*"
        wheel = download(requirement, architecture, temporary)
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if Path(name).name == library)
            unpack(archive, name, libraries / library)
        wheel.unlink()
    shutil.rmtree(temporary)
    (folder / "complete").touch()


def libtorch(version, architecture, at_hand):
    """The folder with include/ and lib/ of a LibTorch: one of `at_hand`, or a downloaded one in the cache."""
    if (version, architecture) in at_hand:
        return at_hand[version, architecture]
    folder = cache_folder() / f"libtorch-{version}-{architecture}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            try:
                fill(folder, version, architecture)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    return folder


def version_of(root):
    """The LibTorch version of the headers in a folder."""
    for header in ("torch/headeronly/version.h", "torch/csrc/api/include/torch/version.h"):
        path = root / "include" / header
        if path.exists():
            numbers = re.findall(r"#define TORCH_VERSION_(?:MAJOR|MINOR|PATCH) +(\d+)", path.read_text())
            if len(numbers) == 3:
                return ".".join(numbers)
    raise SystemExit(f"run.py: {root} has no LibTorch")


def newest_on_the_index():
    """The newest version of torch that pip can find, or None."""
    finished = run([sys.executable, "-m", "pip", "index", "versions", "torch", "--disable-pip-version-check"], limit=60)
    found = re.search(r"^torch \((\d+\.\d+\.\d+)", finished.output, re.MULTILINE)
    return found[1] if finished.status == 0 and found else None


def by_number(version):
    return tuple(int(part) for part in version.split("."))


# ---- Entries of the table -------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Row:
    """A row of the table, or the reason why it was not tested."""
    entry: str
    version: str
    compiler: str
    architecture: str = HOST
    result: str = ""
    warnings: int = 0
    is_right: bool = True
    why_not_tested: str = ""
    log: str = ""
    compile_seconds: float = 0.0  # of CPU
    run_seconds: float = 0.0


@dataclasses.dataclass
class Settings:
    build: Path
    at_hand: dict
    optimize: str

    def includes(self, root):
        return ["-I", INCLUDE, "-isystem", root / "include", "-isystem", root / "include/torch/csrc/api/include"]

    def folder(self, entry):
        folder = self.build / entry
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def compile(self, row, command, what):
        """Compiles and counts the warnings."""
        finished = run(with_ccache(command), COMPILING)
        row.compile_seconds += finished.seconds
        found = len(re.findall(r"\bwarning(?::| #)", finished.output))
        row.warnings += found
        if found or finished.status != 0:
            row.log += f"{what}:\n{finished.output}"
        if finished.status != 0:
            raise Wrong(f"{what} does not compile")


def link_options(root):
    library = root / "lib"
    return ["-L", library, f"-Wl,-rpath,{library}", f"-Wl,-rpath-link,{library}", "-ltorch_cpu", "-lc10"]


def what_is_wrong(output):
    """The wrong checks with their reasons, or the last lines if the program ended early."""
    lines = output.splitlines(keepends=True)
    if not re.search(r"checks are right$", output.strip()):
        return "".join(lines[-10:])
    return "".join(line for line in lines if line.endswith("WRONG\n") or line.startswith("  "))


def test_program(row, settings, compiler, runner=None, environment=None):
    """Compiles, links and runs the conformance program."""
    path = find(compiler)
    row.compiler = describe_compiler(path)
    root = libtorch(row.version, row.architecture, settings.at_hand)
    folder = settings.folder(row.entry)
    settings.compile(row, [path, "-std=c++20", settings.optimize, *WARNINGS, *settings.includes(root), "-c",
                           HERE / "main.cpp", "-o", folder / "main.o"], "the program")
    program = folder / "conformance"
    linked = run([path, folder / "main.o", "-o", program, *link_options(root)])
    if linked.status != 0:
        row.log += linked.output
        raise Wrong("the program does not link")
    command = [program]
    if runner:
        try:
            command = [*runner(settings, root), program]
        except NotHere as reason:
            row.result = f"builds; not run: {reason}"
            return
    finished = run(command, {"OMP_WAIT_POLICY": "passive", **(environment or {})}, SECONDS_TO_RUN)
    row.run_seconds = finished.seconds
    counts = re.search(r"^(\d+) of (\d+) checks are right$", finished.output, re.MULTILINE)
    row.result = f"{counts[1]} of {counts[2]}" if counts else "ended early"
    if f"LibTorch {row.version}\n" not in finished.output:
        raise Wrong(f"the program does not use LibTorch {row.version}")
    if finished.status != 0 or not counts or counts[1] != counts[2] or counts[2] == "0":
        row.log += what_is_wrong(finished.output)
        raise Wrong(f"the program ended with status {finished.status}")


# LibTorch for aarch64 reads the processor type from these files of Linux, and fails without them. A user-mode emulator
# does not have them, so they are laid over the system's files.
CPUINFO = "".join(f"""processor\t: {number}
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

""" for number in range(2))
MIDR_OF_NEOVERSE_N1 = "0x00000000413fd0c1\n"


def emulator(settings, root):
    """The command that runs a program for aarch64."""
    qemu = find("qemu-aarch64") if shutil.which("qemu-aarch64") else find("qemu-aarch64-static")
    system = Path("/usr/aarch64-linux-gnu")
    overlay = settings.folder("aarch64") / "system"
    shutil.rmtree(overlay, ignore_errors=True)
    files = {"proc/cpuinfo": CPUINFO, "sys/devices/system/cpu/possible": "0-1\n",
             "sys/devices/system/cpu/present": "0-1\n"}
    for number in range(2):
        files[f"sys/devices/system/cpu/cpu{number}/regs/identification/midr_el1"] = MIDR_OF_NEOVERSE_N1
    for name, text in files.items():
        path = overlay / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (overlay / "lib").symlink_to(system / "lib")
    return [qemu, "-cpu", "neoverse-n1", "-L", overlay]


def test_aarch64(row, settings):
    test_program(row, settings, "aarch64-linux-gnu-g++", emulator)


def umbrellas():
    """The headers in include/attend that only include other headers."""
    def rest(path):
        return re.sub(r"//.*|#pragma once|#include <[^>]+>", "", path.read_text()).strip()
    return sorted(path for path in (INCLUDE / "attend").glob("*.h") if not rest(path))


CUDA_SOURCE = """// An example of a user's .cu file.
#include <attend/{name}>
#include <attend/attention.h>

#include <torch/types.h>

#include <cstdio>

__global__ void twice(float* x) {{ x[threadIdx.x] *= 2.0f; }}

int main() {{
  const torch::Tensor x = torch::ones({{1, 2, 8, 4}});
  const torch::Tensor y = attend::attention(x, x, x, attend::AttentionOptions().is_causal(true));
  const double error = (y - x).abs().max().item<double>();  // an average of ones
  std::printf("error %g\\n", error);
  return error < 1e-6 ? 0 : 1;
}}
"""


def test_nvcc(row, settings):
    """Compiles every umbrella header in a .cu file that calls attention()."""
    path = find("nvcc")
    row.compiler = describe_compiler(path)
    root = libtorch(row.version, row.architecture, settings.at_hand)
    folder = settings.folder(row.entry)
    right = 0
    headers = umbrellas()
    for header in headers:
        source, program = folder / f"{header.stem}.cu", folder / header.stem
        text = CUDA_SOURCE.format(name=header.name)
        if not source.exists() or source.read_text() != text:
            source.write_text(text)
        settings.compile(row, [path, "-std=c++20", settings.optimize, "-Xcompiler=-Wall,-Wextra",
                               *settings.includes(root), "-c", source, "-o", f"{program}.o"], header.name)
        library = root / "lib"
        linked = run([path, f"{program}.o", "-o", program, "-L", library, f"-Xlinker=-rpath,{library}",
                      f"-Xlinker=-rpath-link,{library}", "-ltorch_cpu", "-lc10"])
        finished = run([program], limit=SECONDS_TO_RUN) if linked.status == 0 else linked
        row.run_seconds += finished.seconds
        if finished.status == 0:
            right += 1
        else:
            row.log += f"{header.name}:\n{finished.output}"
    row.result = f"{right} of {len(headers)} umbrella headers"
    if right != len(headers) or not headers:
        raise Wrong("a .cu file is wrong")


def test_headers(row, settings, jobs):
    """Compiles every header alone."""
    path = find("g++")
    row.compiler = describe_compiler(path)
    root = libtorch(row.version, row.architecture, settings.at_hand)
    folder = settings.folder(row.entry)
    cuda = Path("/usr/local/cuda/include")
    headers = [header for header in sorted(INCLUDE.rglob("*.h")) if header.name != "cuda_graph.h" or cuda.exists()]
    lock, right = threading.Lock(), []

    def one(header):
        name = header.relative_to(INCLUDE).as_posix()
        source = folder / (name.replace("/", "-") + ".cpp")
        text = f"#include <{name}>\n"
        if not source.exists() or source.read_text() != text:
            source.write_text(text)
        alone = Row(row.entry, row.version, row.compiler)
        with contextlib.suppress(Wrong):
            settings.compile(alone, [path, "-std=c++20", "-O0", *WARNINGS, *settings.includes(root), "-isystem", cuda,
                                     "-c", source, "-o", "/dev/null" if not shutil.which("ccache") else f"{source}.o"],
                             name)
            right.append(name)
        with lock:
            row.warnings += alone.warnings
            row.log += alone.log
            row.compile_seconds += alone.compile_seconds

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, headers))
    row.result = f"{len(right)} of {len(headers)} headers alone"
    if len(right) != len(headers) or not headers:
        raise Wrong("a header does not compile alone")


def entries_of(versions, settings, jobs):
    """All entries: {name: (row, test)}."""
    oldest_first = sorted(versions, key=by_number)
    newest = oldest_first[-1]
    entries = {}

    def add(name, row, test, *arguments):
        entries[name] = (row, lambda: test(row, settings, *arguments))

    for version in versions:
        add(version, Row(version, version, "g++"), test_program, "g++")
    for compiler in COMPILERS:
        add(compiler, Row(compiler, newest, compiler), test_program, compiler)
    for version in dict.fromkeys([LAST_BEFORE_MANGLING, oldest_first[0]]):
        name = f"{NEWEST_CLANG}@{version}"
        add(name, Row(name, version, NEWEST_CLANG), test_program, NEWEST_CLANG)
    add("nvcc", Row("nvcc", newest, "nvcc"), test_nvcc)
    if HOST != "aarch64":
        add("aarch64", Row("aarch64", newest, "aarch64-linux-gnu-g++", "aarch64"), test_aarch64)
    add("headers", Row("headers", newest, "g++"), test_headers, jobs)
    return entries


def is_the_default(compiler):
    """Whether a compiler is g++, with which all versions are tested."""
    default, path = shutil.which("g++"), shutil.which(compiler)
    return bool(default and path) and os.path.samefile(default, path)


def table_of(rows):
    lines = ["| LibTorch | compiler | architecture | checks right | warnings |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        if not row.why_not_tested:
            result = row.result if row.is_right else f"**{row.result or row.log.splitlines()[-1]}**"
            lines.append(f"| {row.version} | {row.compiler} | {row.architecture} | {result} | {row.warnings} |")
    not_tested = [f"{row.entry} ({row.why_not_tested})" for row in rows if row.why_not_tested]
    if not_tested:
        lines += ["", "Not tested here: " + "; ".join(not_tested) + "."]
    return "\n".join(lines)


# ---- The command line ------------------------------------------------------------------------------------------------


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ci", action="store_true", help="oldest and newest LibTorch, the newest clang, aarch64")
    parser.add_argument("--only", nargs="+", metavar="ENTRY", help="only these entries")
    parser.add_argument("--headers", action="store_true", help="compile only every header alone")
    parser.add_argument("--require", nargs="+", metavar="ENTRY", default=[], help="these entries must run")
    parser.add_argument("--have", nargs="+", metavar="FOLDER", type=Path, default=[],
                        help="folders with a LibTorch (include/ and lib/), which is then not downloaded")
    parser.add_argument("--build", metavar="FOLDER", type=Path, default=ROOT / "build/conformance",
                        help="folder for the programs; default: build/conformance")
    parser.add_argument("--output", metavar="FILE", type=Path, help="also write the table to this file")
    parser.add_argument("--optimize", metavar="LEVEL", help="default: -O2, and -O1 for --ci")
    parser.add_argument("--jobs", metavar="N", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument("--list", action="store_true", help="print the names of all entries and exit")
    return parser.parse_args()


def main():
    given = arguments()
    lines = [line.partition("#")[0].strip() for line in (HERE / "versions.txt").read_text().splitlines()]
    versions = [line for line in lines if line]
    at_hand = {(version_of(root), HOST): root.resolve() for root in given.have}
    settings = Settings(given.build.resolve(), at_hand, given.optimize or ("-O1" if given.ci else "-O2"))
    entries = entries_of(versions, settings, given.jobs)
    if given.list:
        print("\n".join(entries))
        return 0

    chosen, required = [name for name in entries if not is_the_default(name)], list(given.require)
    if given.ci:
        oldest_first = sorted(versions, key=by_number)
        chosen = [oldest_first[-1], oldest_first[0], f"{NEWEST_CLANG}@{oldest_first[0]}"]
        chosen += ["aarch64"] * (HOST != "aarch64")
        required += chosen
    if given.headers:
        chosen = ["headers"]
    if given.only:
        chosen = given.only
    unknown = [name for name in chosen + required if name not in entries]
    if unknown:
        raise SystemExit(f"run.py: no such entry: {', '.join(unknown)}; --list prints all names")
    chosen += [name for name in required if name not in chosen]

    printing = threading.Lock()

    def test(name):
        row, action = entries[name]
        try:
            action()
            row.is_right = row.warnings == 0
        except NotHere as reason:
            row.why_not_tested = str(reason)
        except Wrong as reason:
            row.is_right = False
            row.log += f"{reason}\n"
        except Exception as error:  # an error of this script must not hide the other entries
            row.is_right = False
            row.log += f"{type(error).__name__}: {error}\n"
        with printing:
            if row.why_not_tested:
                print(f"{name}: not tested here: {row.why_not_tested}", flush=True)
            else:
                print(f"{name}: LibTorch {row.version}, {row.compiler}, {row.architecture}: "
                      f"{'right' if row.is_right else 'WRONG'}: {row.result}, {row.warnings} warnings "
                      f"({row.compile_seconds:.0f} s of CPU to compile, {row.run_seconds:.0f} s to run)", flush=True)
                if not row.is_right:
                    print(row.log.rstrip(), flush=True)
        return row

    # Each of these starts single-threaded commands. The headers use workers of their own and come last.
    with ThreadPoolExecutor(max(1, given.jobs)) as pool:
        names = [name for name in chosen if name != "headers"]
        rows = dict(zip(names, pool.map(test, names)))
    rows = [rows[name] if name != "headers" else test(name) for name in chosen]

    table = table_of(rows)
    print(f"\n{table}\n")
    if given.output:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        import machine
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(
            "# LibTorch versions and compilers\n\n"
            "`cmake --workflow --preset versions` compiles the program in `tests/conformance` with each of these and\n"
            f"runs it.\n\n{table}\n\nMeasured on {machine.describe()}.\n")
    newest_listed = max(versions, key=by_number)
    newest = newest_on_the_index()
    if newest is None:
        print("pip could not reach its package index, so it is not known whether a newer LibTorch exists.")
    elif by_number(newest) > by_number(newest_listed):
        print(f"The package index has LibTorch {newest}, but the newest tested version is {newest_listed}. Add it to "
              "tests/conformance/versions.txt.")

    missing = [row.entry for row in rows if row.why_not_tested and row.entry in required]
    if missing:
        print(f"Required but not tested: {', '.join(missing)}.")
    wrong = [row.entry for row in rows if not row.is_right]
    if wrong:
        print(f"Wrong: {', '.join(wrong)}.")
    tested = any(not row.why_not_tested for row in rows)
    if not tested:
        print("Nothing was tested.")
    return 1 if missing or wrong or not tested else 0


if __name__ == "__main__":
    sys.exit(main())
