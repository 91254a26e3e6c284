#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Tests that the tables of docs/backends_and_errors.md agree with the code.

`reference_test.py --update` rewrites them. The table of calls is the output of the program ATTEND_REFERENCE_PROGRAM
(tests/docs/reference_tables.cpp). The tables of messages have the messages of the headers. A message keeps its cause
and remedy. A changed message gets those of the most similar message that no longer exists.
"""

import difflib
import os
import re
import subprocess
import sys
import unittest
from pathlib import Path

PROJECT = Path(__file__).parents[2]
HEADERS = PROJECT / "include" / "attend"
PAGE = PROJECT / "docs" / "backends_and_errors.md"

EXCEPTIONS = {
    "TORCH_CHECK": "c10::Error",
    "TORCH_CHECK_VALUE": "c10::ValueError",
    "TORCH_CHECK_TYPE": "c10::TypeError",
    "TORCH_CHECK_INDEX": "c10::IndexError",
    "TORCH_CHECK_NOT_IMPLEMENTED": "c10::NotImplementedError",
    "refused": "",  # a reason of explain(), and of the error for a requested backend
}

# The tables, by the names in the page's markers. Each selects its messages by their beginning or their file.
TABLES = {
    "reasons of attention": lambda file, text: file in (
        "attention/cpu.h", "attention/preference.h", "attention/sdpa.h", "attention/detail/kernel_limits.h",
        "attention/detail/aten_attention.h", "attention/detail/device_backend.h"),
    "reasons of ConvStack": lambda file, text: file == "layers/detail/cpu_convolution.h",
    "attention": lambda file, text: text.startswith("attend::attention:"),
    "flex_attention": lambda file, text: file.startswith(("attention/", "score/")),
    "MultiheadAttention": lambda file, text: file in ("layers/multihead_attention.h", "layers/detail/ignore_masks.h"),
    "layers": lambda file, text: file.startswith(("layers/", "positions/", "data/standardize")),
    "data": lambda file, text: file.startswith("data/"),
    "files": lambda file, text: file.startswith("io/"),
    "training": lambda file, text: file.startswith("training"),
    "several": lambda file, text: file.startswith("detail/"),
}


def arguments(text, begin):
    """The arguments of a call, whose parenthesis opens before `begin`."""
    parts, part, depth, position = [], "", 1, begin
    while True:
        literal = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'').match(text, position)
        comment = re.compile(r"//[^\n]*").match(text, position)
        if literal or comment:
            part += literal.group() if literal else ""
            position = (literal or comment).end()
            continue
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(text[position], 0)
        if depth == 0:
            return [*parts, part.strip()]
        if text[position] == "," and depth == 1:
            parts.append(part.strip())
            part = ""
        else:
            part += text[position]
        position += 1


def constant_part(argument, constants):
    """The text of a string literal or of a constant, or `…` for a part that is known only at run time."""
    if re.fullmatch(r'("(?:[^"\\]|\\.)*"\s*)+', argument):
        return "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', argument)).replace('\\"', '"')
    return constants.get(argument, "…")


def messages():
    """The messages of the headers, in order: table → [(text, exception)]."""
    tables = {name: [] for name in TABLES}
    for header in sorted(HEADERS.rglob("*.h")):
        text = header.read_text()
        file = header.relative_to(HEADERS).as_posix()
        names = list(re.finditer(r'\bconst char\*(?: const)? kName = "([^"]*)"', text))
        for call in re.finditer(rf"\b({'|'.join(EXCEPTIONS)})\((?!std::string\*)", text):
            before = [name[1] for name in names if name.start() < call.start()]
            constants = {"kName": before[-1] if before else names[0][1]} if names else {}
            parts = [constant_part(each, constants) for each in arguments(text, call.end())[1:]]
            message = re.sub("…+", "…", "".join(parts))
            table = next(name for name, has in TABLES.items() if has(file, message))
            if re.search(r"\w", message) and (message, EXCEPTIONS[call[1]]) not in tables[table]:
                tables[table].append((message, EXCEPTIONS[call[1]]))
    return tables


def between(name):
    return re.compile(rf"(?<=<!-- begin: {re.escape(name)} -->\n)(.*?)(?=<!-- end: {re.escape(name)} -->)", re.DOTALL)


def rows(table):
    """The rows of a table of messages in the page: message → cause and remedy."""
    cells = [re.split(r"(?<!\\)\|", line) for line in table.splitlines() if line.startswith("| `")]
    return {row[1].strip().strip("`").replace("\\|", "|"): row[-2].strip() for row in cells}


def with_tables_of_messages(page):
    """The page with updated tables of messages."""
    tables = messages()
    old = {}
    for name in tables:
        old |= rows(between(name).search(page)[1])
    gone = set(old) - {message for table in tables.values() for message, _ in table}
    for name, table in tables.items():
        is_of_reasons = name.startswith("reasons")
        lines = ["| Reason | What to do |", "| --- | --- |"] if is_of_reasons else [
            "| Message | Exception | Cause and remedy |", "| --- | --- | --- |"]
        for message, exception in table:
            alike = [] if message in old else difflib.get_close_matches(message, gone, n=1)
            cause = old.get(alike[0] if alike else message, "")
            cells = [f"`{message}`".replace("|", "\\|"), *([] if is_of_reasons else [f"`{exception}`"]), cause]
            lines.append(f"| {' | '.join(cells)} |")
        page = between(name).sub(lambda _: "\n" + "\n".join(lines) + "\n\n", page)
    return page


def table_of_calls():
    program = os.environ["ATTEND_REFERENCE_PROGRAM"]
    return "\n" + subprocess.run([program], check=True, capture_output=True, text=True).stdout + "\n"


class Reference(unittest.TestCase):
    maxDiff = None

    def test_the_table_of_calls_agrees_with_explain(self):
        self.assertEqual(between("calls").search(PAGE.read_text())[1], table_of_calls())

    def test_the_page_has_every_message_of_the_headers_and_no_other(self):
        page = PAGE.read_text()
        self.assertEqual(page, with_tables_of_messages(page), "run tests/docs/reference_test.py --update")

    def test_the_script_finds_the_messages_of_the_headers(self):
        tables = messages()
        self.assertIn(("attend::attention: scale must be finite, got …", "c10::ValueError"), tables["attention"])
        self.assertIn(("kSdpa does not support softcap.", ""), tables["reasons of attention"])
        calls = sum(len(re.findall(r"\bTORCH_CHECK\w*\(", header.read_text())) for header in HEADERS.rglob("*.h"))
        self.assertGreater(sum(len(table) for table in tables.values()), 0.9 * calls)


def update():
    page = with_tables_of_messages(PAGE.read_text())
    if "ATTEND_REFERENCE_PROGRAM" in os.environ:
        page = between("calls").sub(lambda _: table_of_calls(), page)
    PAGE.write_text(page)


if __name__ == "__main__":
    if sys.argv[1:] == ["--update"]:
        update()
    else:
        unittest.main()
