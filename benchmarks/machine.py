# SPDX-License-Identifier: MIT
"""What stands under every table of benchmarks/results: when and where its numbers were taken."""

import datetime
import os
import platform
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
    """Timings that are measured while other programs run are unreliable."""
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        print(f"note: this machine is busy (load {os.getloadavg()[0]:.1f}), its timings are unreliable",
              file=sys.stderr)
