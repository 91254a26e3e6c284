#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The pages keep their word: their programs are compiled, and every link within the project leads somewhere."""

import re
import unittest
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def is_compiled(block, page):
    """Whether a block stands, indented or not, in the test of docs/PAGE.md or in the example of that name."""
    def lines(text):
        return "\n".join(line.strip() for line in text.splitlines())

    sources = [PROJECT / "tests" / "docs" / f"{page}_test.cpp", *(PROJECT / "examples" / page).glob("*.h")]
    return any(lines(block) in lines(source.read_text()) for source in sources)


class Pages(unittest.TestCase):
    def test_the_program_in_readme_is_examples_hello(self):
        blocks = re.findall(r"```cpp\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
        programs = [block for block in blocks if "int main()" in block]
        self.assertEqual(programs, [(PROJECT / "examples" / "hello" / "main.cpp").read_text()])

    def test_every_block_of_a_page_of_docs_is_compiled(self):
        for page in PROJECT.glob("docs/*.md"):
            for block in re.findall(r"```cpp\n(.*?)```", page.read_text(), re.DOTALL):
                self.assertTrue(is_compiled(block, page.stem), f"{page}:\n{block}")

    def test_the_score_of_your_own_in_readme_is_compiled(self):
        section = (PROJECT / "README.md").read_text().split("## A score of your own\n")[1].split("\n## ")[0]
        (block,) = re.findall(r"```cpp\n(.*?)```", section, re.DOTALL)
        self.assertTrue(is_compiled(block, "flex_attention"), block)

    def test_links_within_the_project_lead_somewhere(self):
        for page in [*PROJECT.glob("*.md"), *PROJECT.glob("examples/*/*.md"), *PROJECT.glob("benchmarks/**/*.md"), *PROJECT.glob("docs/*.md")]:
            for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
                if not link.startswith("http"):
                    self.assertTrue((page.parent / link).exists(), f"{page}: {link}")

    def test_the_table_of_versions_has_every_version(self):
        section = (PROJECT / "README.md").read_text().split("## Tested versions\n")[1].split("\n## ")[0]
        for line in (PROJECT / "tests/conformance/versions.txt").read_text().splitlines():
            if version := line.partition("#")[0].strip():
                self.assertRegex(section, rf"(?m)^\| {re.escape(version)} \| g\+\+ .* 0 \|$")

    def test_the_readme_opens_with_the_two_commands(self):
        text = (PROJECT / "README.md").read_text()
        for preset in ("example", "test"):
            self.assertIn(f"    cmake --workflow --preset {preset} ", text)


if __name__ == "__main__":
    unittest.main()
