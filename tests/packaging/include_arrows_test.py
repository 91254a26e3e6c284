# SPDX-License-Identifier: MIT
"""Defines which folder of include/attend may include which, and tests that the headers obey."""

import pathlib
import re
import tempfile
import unittest

HEADERS = pathlib.Path(__file__).resolve().parents[2] / "include"

# What each room may include besides itself and `common`.
ARROWS = {
    "common": [],
    "vocabulary": [],  # shared by attention and its kernels: coordinates, scores, masks, the checked problem
    "kernels": ["vocabulary"],
    "attention": ["vocabulary", "kernels"],
    "convolution": ["vocabulary", "kernels"],
    "positions": ["vocabulary", "attention"],
    "layers": ["vocabulary", "attention", "convolution", "positions"],
    "data": [],
    "io": [],
    "training": ["io"],
}
UMBRELLAS = ["attend.h", "training.h", "io.h", "cuda.cuh"]
VOCABULARY = ["backend.h", "coordinate.h", "mask_mod.h", "options.h", "score_mod.h", "tensor_view.h"]


def room_of(header):
    """The room of a header, by its path below include/attend. None for an umbrella, which may include all headers."""
    parts = header.split("/")
    if header in UMBRELLAS:
        return None
    if header in ("attention.h", "flex_attention.h"):
        return "attention"
    if len(parts) == 1 or parts[0] == "detail":
        return "common"
    if parts[0] == "attention" and parts[1] in ("cpu", "cuda"):
        return "kernels"
    if parts[0] == "attention" and (parts[1] == "detail" or parts[1] in VOCABULARY):
        return "vocabulary"
    return parts[0]


def violations(include):
    """One line for each include that is not allowed."""
    found = []
    for path in sorted(include.rglob("*.h")) + sorted(include.rglob("*.cuh")):
        header = path.relative_to(include / "attend").as_posix()
        room = room_of(header)
        text = path.read_text()
        if room is None:
            rest = re.sub(r"//.*|#pragma once|#include <[^>]+>", "", text).strip()
            if rest:
                found.append(f"{header} is a list of includes, but also has: {rest.splitlines()[0]}")
        elif room not in ARROWS:
            found.append(f"{header} is in a room that nobody has described: {room}")
            continue
        for included in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', text, re.MULTILINE):
            if included == "torch/torch.h":
                found.append(f"{header} includes torch/torch.h, which costs every user seconds")
            if included.startswith("torch/nn") and room in ("vocabulary", "kernels", "attention", "convolution"):
                found.append(f"{header} includes {included}, but attention knows no modules")
            if included.startswith("attend/") and room is not None:
                other = room_of(included.removeprefix("attend/"))
                if other not in ("common", room, *ARROWS[room]):
                    found.append(f"{header} ({room}) includes {included} ({other or 'an umbrella'})")
    return found


class IncludeArrows(unittest.TestCase):
    def test_every_include_is_allowed(self):
        self.assertEqual(violations(HEADERS), [])

    def test_wrong_includes_are_reported(self):
        wrong = {
            "attend.h": "#pragma once\nint x;",
            "attention/sdpa.h": "#include <torch/nn/module.h>",
            "attention/cpu/forward.h": "#include <attend/attention.h>",
            "data/a.h": "#include <attend/training/trainer.h>",
            "layers/b.h": "#include <attend/attend.h>",
            "training/c.h": "#include <torch/torch.h>",
            "odd/d.h": "",
        }
        with tempfile.TemporaryDirectory() as folder:
            include = pathlib.Path(folder)
            for header, text in wrong.items():
                (include / "attend" / header).parent.mkdir(parents=True, exist_ok=True)
                (include / "attend" / header).write_text(text)
            found = violations(include)
        self.assertEqual(sorted(line.split()[0] for line in found), sorted(wrong))


if __name__ == "__main__":
    unittest.main()
