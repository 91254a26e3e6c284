# SPDX-License-Identifier: MIT
"""Defines which folder of include/attend may include which, and tests that the headers obey."""

import pathlib
import re
import tempfile
import unittest

HEADERS = pathlib.Path(__file__).resolve().parents[2] / "include"

# What each folder of include/attend may include besides itself. A header's folder alone says it: headers in the root
# are umbrellas, which only list includes. ROOT has the exceptions. A subfolder without a line counts as its folder.
ARROWS = {
    "base": [],  # version.h and macros.h
    "detail": ["base"],  # small parts without LibTorch
    "detail/torch": ["base", "detail"],  # small parts with LibTorch
    "detail/nn": ["base", "detail", "detail/torch"],  # small parts of modules
    "simd": ["base"],
    "score": ["base", "detail", "simd"],
    "kernels": ["base", "detail", "simd", "score"],
    "attention": ["base", "detail", "detail/torch", "simd", "score", "kernels"],
    "positions": ["base", "detail", "detail/torch", "detail/nn", "simd", "score", "kernels", "attention"],
    "layers": ["base", "detail", "detail/torch", "detail/nn", "simd", "score", "kernels", "attention", "positions"],
    "data": ["base", "detail", "detail/torch", "detail/nn"],
    "file_error": ["base"],  # io/file_error.h
    "io/detail": ["base", "file_error"],  # readers and writers of files without LibTorch, which fuzz targets use
    "io/detail/torch": ["base", "detail", "detail/torch", "file_error", "io/detail"],
    "io": ["base", "detail", "detail/torch", "file_error", "io/detail", "io/detail/torch"],
    "training": ["base", "detail", "detail/torch", "detail/nn", "file_error", "io"],
}
ROOT = {
    "version.h": "base", "macros.h": "base", "attention.h": "attention", "flex_attention.h": "attention",
    "io/file_error.h": "file_error",
}
# The headers of each backend, and those that choose one. Exception: every backend may include reference.h, which
# attention_node.h differentiates twice.
BACKENDS = [
    ["attention/cpu.h", "attention/detail/cpu_call.h"],
    ["attention/sdpa.h", "attention/detail/aten_attention.h"],
    ["attention/cuda_backend.cuh", "attention/detail/device_backend.h"],
    ["attention/reference.h"],
]
CHOICE = ["attention/backends.h", "attention/preference.h"]
WITHOUT_TORCH = ["base", "detail", "simd", "score", "kernels", "file_error", "io/detail"]


def folder_of(header):
    """The folder of a header, by its path below include/attend; None for an umbrella."""
    if header in ROOT or "/" not in header:
        return ROOT.get(header)
    return max((folder for folder in ARROWS if header.startswith(folder + "/")), key=len, default=header.split("/")[0])


def reached_from(include, header):
    """All headers of attend that a header includes, directly or not."""
    reached, next_ones = set(), [header]
    while next_ones:
        header = next_ones.pop()
        if header not in reached:
            reached.add(header)
            next_ones += re.findall(r"#include <attend/([^>]+)>", (include / "attend" / header).read_text())
    return reached


def violations(include):
    """One line for each include that is not allowed."""
    found = []
    for path in sorted(include.rglob("*.h")) + sorted(include.rglob("*.cuh")):
        header = path.relative_to(include / "attend").as_posix()
        folder = folder_of(header)
        text = path.read_text()
        if folder is None:
            rest = re.sub(r"//.*|#pragma once|#include <[^>]+>", "", text).strip()
            if rest:
                found.append(f"{header} is a list of includes, but also has: {rest.splitlines()[0]}")
        elif folder not in ARROWS:
            found.append(f"{header} is in a folder without a rule: {folder}")
            continue
        for included in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', text, re.MULTILINE):
            if included == "torch/torch.h":
                found.append(f"{header} includes torch/torch.h, which costs every user seconds")
            if included.startswith("torch/nn") and folder in (*WITHOUT_TORCH, "detail/torch", "attention"):
                found.append(f"{header} includes {included}, but attention knows no modules")
            if re.match("(ATen|c10|torch)/", included) and folder in WITHOUT_TORCH:
                found.append(f"{header} includes {included}, but {folder}/ must compile without LibTorch")
            if included.startswith("attend/") and folder is not None:
                other = folder_of(included.removeprefix("attend/"))
                if other not in (folder, *ARROWS[folder]):
                    found.append(f"{header} ({folder}) includes {included} ({other or 'an umbrella'})")
            # A backend is a list of headers, of which none includes a header of another backend.
            backends = {name: index for index, names in enumerate(BACKENDS) for name in names}
            other = included.removeprefix("attend/")
            if header in backends and (other in CHOICE or backends.get(other, backends[header]) != backends[header]):
                found.append(f"{header} includes {included}, but a backend knows no other backend")
    return found


class IncludeArrows(unittest.TestCase):
    def test_every_include_is_allowed(self):
        self.assertEqual(violations(HEADERS), [])

    def test_attend_h_reaches_no_part_of_the_experiment(self):
        reached = reached_from(HEADERS, "attend.h")
        self.assertIn("kernels/cpu/forward.h", reached)
        self.assertEqual([header for header in reached if re.match("data/|kernels/convolution/", header)], [])

    def test_the_reference_reaches_no_kernel(self):
        reached = reached_from(HEADERS, "attention/reference.h")
        self.assertIn("score/score_mod.h", reached)
        self.assertEqual([header for header in reached if re.match("kernels/", header)], [])

    def test_wrong_includes_are_reported(self):
        wrong = {
            "attend.h": "#pragma once\nint x;",
            "attention/sdpa.h": "#include <torch/nn/module.h>",
            "kernels/cpu/forward.h": "#include <ATen/core/Tensor.h>",
            "score/e.h": "#include <attend/kernels/executor.h>",
            "attention/reference.h": "#include <attend/attention/cpu.h>",
            "data/a.h": "#include <attend/training/trainer.h>",
            "layers/b.h": "#include <attend/attend.h>",
            "training/c.h": "#include <torch/torch.h>",
            "io/detail/f.h": "#include <torch/types.h>",
            "io/g.h": "#include <attend/training/trainer.h>",
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
