#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compiles dilated_attention.cpp and trains with it on the CPU.

Use in another program:

    import dilated_attention

    attention = dilated_attention.load()
    y = attention(query, key, value, strength, rate, window=256, dilation=2)
"""

from pathlib import Path

import torch
from torch.utils import cpp_extension

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c++20", "-O3"]  # with -O2, g++ 12 does not vectorize the score_mod, which is then three times slower
INCLUDE = [str(HERE.parents[1] / "include")]  # attend's headers


def load(verbose=False):
    """The operator: (query, key, value, strength, rate, window, dilation=1) -> output.

    query (N, H, L, D), key (N, G, S, D), value (N, G, S, Dv), strength and rate (H); output (N, H, L, Dv).

    Loads the library that setup.py has built in this folder. If there is none, compiles it, which needs ninja. torch keeps
    the result in its cache folder, or in $TORCH_EXTENSIONS_DIR, and compiles again only if a source file has changed.
    """
    built = sorted(HERE.glob("dilated_attention_ops*.so"))
    if built:
        torch.ops.load_library(str(built[0]))
    else:
        cpp_extension.load("dilated_attention_ops", [str(HERE / "dilated_attention.cpp")], extra_cflags=FLAGS,
                           extra_include_paths=INCLUDE, is_python_module=False, verbose=verbose)
    return torch.ops.dilated_attention.attention


def main():
    """Learns the strength and rate of a given penalty from its outputs."""
    print("Compiling dilated_attention.cpp, unless it is already compiled.", flush=True)
    attention = load()
    torch.manual_seed(1)
    query, key, value = torch.randn(3, 2, 4, 256, 32).unbind()  # (N, H, L, D)
    wanted_strength, wanted_rate = torch.tensor([0.5, 1.0, 1.5, 2.0]), torch.tensor([2.0, 1.0, 0.5, 0.25])
    wanted = attention(query, key, value, wanted_strength, wanted_rate, window=64, dilation=2)

    strength, rate = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.Adam([strength, rate], lr=0.05)
    for step in range(301):
        loss = (attention(query, key, value, strength, rate, window=64, dilation=2) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step:3}, loss {loss.item():.2e}")
    print("strength:", [round(value, 2) for value in strength.tolist()])
    print("rate:    ", [round(value, 2) for value in rate.tolist()])


if __name__ == "__main__":
    main()
