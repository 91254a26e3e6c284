#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The pages keep their word: their programs are compiled, and every link within the project leads somewhere."""

import re
import unittest
from pathlib import Path

PROJECT = Path(__file__).parents[1]


class Pages(unittest.TestCase):
    def test_the_program_in_readme_is_examples_hello(self):
        blocks = re.findall(r"```cpp\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
        programs = [block for block in blocks if "int main()" in block]
        self.assertEqual(programs, [(PROJECT / "examples" / "hello" / "main.cpp").read_text()])

    def test_every_block_of_a_page_of_docs_is_in_its_test(self):
        def lines(text):
            return "\n".join(line.strip() for line in text.splitlines())

        for page in PROJECT.glob("docs/*.md"):
            test = lines((PROJECT / "tests" / "docs" / f"{page.stem}_test.cpp").read_text())
            for block in re.findall(r"```cpp\n(.*?)```", page.read_text(), re.DOTALL):
                self.assertIn(lines(block), test, page)

    def test_links_within_the_project_lead_somewhere(self):
        for page in [*PROJECT.glob("*.md"), *PROJECT.glob("examples/*/*.md"), *PROJECT.glob("benchmarks/**/*.md"), *PROJECT.glob("docs/*.md")]:
            for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
                if not link.startswith("http"):
                    self.assertTrue((page.parent / link).exists(), f"{page}: {link}")

    def test_the_readme_opens_with_the_two_commands(self):
        text = (PROJECT / "README.md").read_text()
        for preset in ("example", "test"):
            self.assertIn(f"    cmake --workflow --preset {preset} ", text)


if __name__ == "__main__":
    unittest.main()
