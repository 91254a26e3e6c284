# SPDX-License-Identifier: MIT
"""The format of numbers in the tables of benchmarks/results."""


def rounded(value):
    """Three significant digits; from 100 a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
