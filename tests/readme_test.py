#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Tests README and docs/: all C++ blocks are compiled, links within the project exist, and versions agree."""

import re
import unittest
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def is_compiled(block, page):
    """Whether the test of docs/PAGE.md or the example of that name contains a block, with any indentation."""
    def lines(text):
        return "\n".join(line.strip() for line in text.splitlines())

    example = [path for path in (PROJECT / "examples" / page).glob("*") if path.suffix in (".h", ".cpp", ".cu")]
    sources = [path for path in (PROJECT / "tests" / "docs" / f"{page}_test.cpp", *example) if path.exists()]
    return any(lines(block) in lines(source.read_text()) for source in sources)


class Pages(unittest.TestCase):
    def test_readme_has_at_most_220_lines_of_120_characters(self):
        lines = (PROJECT / "README.md").read_text().splitlines()
        self.assertLessEqual(len(lines), 220)
        for line in lines:
            if not line.startswith("|"):
                self.assertLessEqual(len(line), 120, line)

    def test_every_cpp_block_of_readme_is_compiled(self):
        blocks = re.findall(r"```cpp\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
        self.assertGreaterEqual(len(blocks), 4)
        for block in blocks:
            self.assertTrue(is_compiled(block, "readme") or is_compiled(block, "flex_attention"), block)

    def test_every_cpp_block_of_docs_is_compiled(self):
        for page in PROJECT.glob("docs/*.md"):
            for block in re.findall(r"```cpp\n(.*?)```", page.read_text(), re.DOTALL):
                self.assertTrue(is_compiled(block, page.stem), f"{page}:\n{block}")

    def test_links_within_the_project_exist(self):
        for page in [*PROJECT.glob("*.md"), *PROJECT.glob("examples/*/*.md"), *PROJECT.glob("benchmarks/**/*.md"), *PROJECT.glob("docs/*.md")]:
            text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)  # a lambda looks like a link
            for link in re.findall(r"\]\(([^)#]+)\)", text):
                if not link.startswith("http"):
                    self.assertTrue((page.parent / link).exists(), f"{page}: {link}")

    def test_the_version_tables_of_readme_and_docs_agree_with_versions_txt(self):
        page = (PROJECT / "docs" / "versions.md").read_text()
        table = re.findall(r"(?m)^\| ([0-9.]+) \| (\S+) ([0-9.]+) \| (\w+) \| (\d+) of (\d+) \| 0 \|$", page)
        self.assertGreater(len(table), 10)
        versions = [line.partition("#")[0].strip()
                    for line in (PROJECT / "tests/conformance/versions.txt").read_text().splitlines()]
        versions = [version for version in versions if version]
        for version in versions:
            self.assertTrue(any(row[0] == version and row[1] == "g++" for row in table), version)

        section = (PROJECT / "README.md").read_text().split("## Requirements and tested versions\n")[1].split("\n## ")[0]
        header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")]
                            for line in section.splitlines() if line.startswith("|")]
        self.assertEqual(header[1:], versions)
        shown = {(version, row[0]) for row in rows for version, cell in zip(header[1:], row[1:]) if cell == "✓"}
        emulated = {"x86_64": "", "aarch64": " for aarch64, under an emulator"}
        right = {(version, f"{compiler} {number}{emulated[architecture]}")
                 for version, compiler, number, architecture, checks, of in table if checks == of and compiler != "nvcc"}
        self.assertEqual(shown, right)
        self.assertEqual({of for *_, of in table}, {re.search(r"one program of (\d+) checks", section)[1]})

    def test_citation_cff_has_the_version_of_the_headers(self):
        numbers = re.findall(r"ATTEND_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)",
                             (PROJECT / "include/attend/version.h").read_text())
        self.assertIn(f"\nversion: {'.'.join(numbers)}\n", (PROJECT / "CITATION.cff").read_text())

    def test_readme_has_the_two_preset_commands(self):
        text = (PROJECT / "README.md").read_text()
        for preset in ("example", "test"):
            self.assertIn(f"    cmake --workflow --preset {preset} ", text)


if __name__ == "__main__":
    unittest.main()
