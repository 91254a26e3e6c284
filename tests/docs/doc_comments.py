# SPDX-License-Identifier: MIT
"""Writes a C++ program from the @code blocks in the doc comments of the given headers, so that they are compiled.

python doc_comments.py INCLUDE OUTPUT HEADER...
"""

import re
import sys
from pathlib import Path

BEGIN = """\
// Written by doc_comments.py.
#include <attend/attend.h>
#include <attend/data.h>
#include <attend/io.h>
#include <attend/kernels.h>
#include <attend/layers/conv_stack.h>
#include <attend/training.h>

#include <torch/nn/modules/container/sequential.h>
#include <torch/types.h>

#include <iostream>
#include <thread>
#include <tuple>
#include <vector>

namespace {

/// The names that the examples use without declaring them.
struct Names {
  torch::Tensor q, k, v, k1, k2, v1, v2, x, key_padding_mask, slopes, table, inputs, targets, src, tgt, memory, src_padding;
  torch::nn::Sequential model;
  attend::ShapeDataset train_set, validation_set;
  attend::Trainer<torch::nn::Sequential>& trainer;
  torch::optim::Optimizer& optimizer;
};
"""


def blocks_of(header):
    text = header.read_text()
    for block in re.findall(r"/// @code\n(.*?) */// @endcode", text, re.DOTALL):
        yield re.sub(r"(?m)^ */// ?", "", block)


def main(include, output, *headers):
    parts = [BEGIN]
    for header in headers:
        types, functions = [], []
        for block in blocks_of(Path(header)):
            if block.startswith(("struct", "class")):
                types.append(block)
                continue
            if not block.rstrip().endswith(("}", ";")) and "//" not in block:
                block = block.rstrip() + ";\n"  # an expression
            names = "template <class T> " if "<T>" in block else ""
            parameters = "attend::TensorView slopes, attend::Coordinate at" if names else ""
            functions.append(f"  {names}void example_{len(functions)}({parameters}) {{\n{block}  }}\n")
        if types or functions:
            name = re.sub(r"\W", "_", str(Path(header).relative_to(include)))
            parts += [f"\nnamespace {name} {{\n", *types, "struct Examples : Names {\n", *functions, "};\n", "}\n"]
    Path(output).write_text("".join([*parts, "\n}  // namespace\n"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
