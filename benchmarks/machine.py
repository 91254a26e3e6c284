# SPDX-License-Identifier: MIT
"""The date and the machine of a measurement, for the pages in benchmarks/results; and the lines of a program."""

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path


def describe():
    """For example: 2026-11-23, a virtual machine with 2 cores (AMD EPYC)."""
    facts = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    model = facts.get("model name") or platform.processor() or platform.machine()
    kind = "virtual machine" if "hypervisor" in facts.get("flags", "").split() else "machine"
    return f"{datetime.date.today()}, a {kind} with {os.cpu_count()} cores ({model})"


def warn_if_busy():
    """Prints a warning if other programs run, because timings are then unreliable."""
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        print(f"Note: this machine is busy (load {os.getloadavg()[0]:.1f}), so timings are unreliable.",
              file=sys.stderr)


def lines_of(command, environment=None):
    """The lines that a program prints, which are shown at once. The script ends if the program fails."""
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        sys.exit(process.returncode)
    return lines
