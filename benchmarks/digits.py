# SPDX-License-Identifier: MIT
"""How numbers are written in the tables of benchmarks/results."""


def rounded(value):
    """Three digits, all digits of a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
