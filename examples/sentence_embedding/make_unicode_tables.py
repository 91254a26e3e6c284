#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes unicode_tables.h: python3 make_unicode_tables.py > unicode_tables.h

The package tokenizers is called with each character, to find out what BERT's tokenizer does with it. Its tables are those
of several versions of Unicode. The classes of combining characters come from Python's unicodedata.
"""

import unicodedata

import tokenizers
from tokenizers import normalizers, pre_tokenizers

ALL = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
WIDTH = 120


def step(**chosen):
    steps = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False) | chosen
    return normalizers.BertNormalizer(**steps).normalize_str


clean, strip, lower = step(clean_text=True), step(strip_accents=True), step(lowercase=True)
split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str


def combining_class(c):
    return unicodedata.combining(chr(c))


def ranges(characters, label=lambda c: None):
    """(first, last, label) of the runs of neighbours with the same label."""
    runs = []
    for c in characters:
        if runs and runs[-1][1] == c - 1 and runs[-1][2] == label(c):
            runs[-1][1] = c
        else:
            runs.append([c, c, label(c)])
    return runs


def literal(text):
    return "".join(c if c.isascii() else f"\\u{ord(c):04X}" if ord(c) < 0x10000 else f"\\U{ord(c):08X}" for c in text)


def print_table(comment, declaration, entries):
    print(f"\n/// {comment}\ninline constexpr {declaration}[] = {{")
    line = "   "
    for entry in entries:
        if len(line) + len(entry) + 2 > WIDTH:
            print(line)
            line = "   "
        line += f" {entry},"
    print(line + "\n};")


def print_ranges(comment, name, runs):
    print_table(comment, f"Range {name}", [f"{{0x{first:X}, 0x{last:X}}}" for first, last, _ in runs])


dropped = [c for c in ALL if clean("a" + chr(c) + "b") == "ab"]
kept = sorted(set(ALL) - set(dropped))
punctuation = [c for c in kept if len(split("a" + chr(c) + "b")) == 3]
becomes = {c: lower(strip(chr(c))) for c in kept}
marks = [c for c in kept if not becomes[c]]
# Korean syllables are decomposed by arithmetic, and ASCII is simpler without a table.
changed = [c for c in kept if becomes[c] not in ("", chr(c)) and not 0xAC00 <= c <= 0xD7A3 and c >= 0x80]

print(f"""// SPDX-License-Identifier: MIT

// Made by make_unicode_tables.py from tokenizers {tokenizers.__version__} and Unicode {unicodedata.unidata_version}. Do not edit.
#pragma once

#include <string_view>

namespace unicode {{

struct Range {{
  char32_t first, last;
}};

struct ClassRange {{
  char32_t first, last;
  unsigned char combining_class;
}};

struct Mapping {{
  char32_t from;
  std::u32string_view to;
}};""")
print_ranges("Controls and other characters that are removed from the text.", "kDropped", ranges(dropped))
print_ranges("Punctuation above ASCII.", "kPunctuation", ranges(c for c in punctuation if c >= 0x80))
print_ranges("Accents and other marks, which are removed after decomposition.", "kMarks", ranges(marks))
print_table("Canonical combining classes other than 0: decomposition sorts neighbours by them.",
            "ClassRange kCombiningClasses",
            [f"{{0x{first:X}, 0x{last:X}, {label}}}"
             for first, last, label in ranges((c for c in kept if combining_class(c)), combining_class)])
print_table("Decomposition without marks, in lower case, of characters above ASCII that it changes.",
            "Mapping kMappings",
            [f'{{0x{c:X}, U"{literal(becomes[c])}"}}' for c in changed])
print("\n}  // namespace unicode")
