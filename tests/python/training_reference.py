# SPDX-License-Identifier: MIT
"""Results of Python's PyTorch for tests/training. make_reference.py writes them, reference_data() reads them."""

import pathlib

import torch

STEPS = 20
SHAPES = {"weight": (3, 4), "bias": (5,), "kernel": (2, 3, 2, 2), "scalar": ()}
OPTIONS = {
    "default": {},
    "all": dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1, amsgrad=True),
}


def steps_of(optimizer_class):
    """Initial parameters, a gradient for each step, and the parameters after all steps, in float64."""
    generator = torch.Generator().manual_seed(20)
    tensors = {}
    for name, shape in SHAPES.items():
        tensors[f"initial.{name}"] = torch.randn(shape, generator=generator, dtype=torch.float64)
        # Shrinking gradients, so that amsgrad's maximum differs from the average.
        shrinking = torch.linspace(2, 0.1, STEPS, dtype=torch.float64).reshape(-1, *[1] * len(shape))
        tensors[f"gradients.{name}"] = shrinking * torch.randn(STEPS, *shape, generator=generator, dtype=torch.float64)
    for case, options in OPTIONS.items():
        parameters = {name: tensors[f"initial.{name}"].clone().requires_grad_() for name in SHAPES}
        optimizer = optimizer_class(parameters.values(), **options)
        for step in range(STEPS):
            for name, parameter in parameters.items():
                parameter.grad = tensors[f"gradients.{name}"][step].clone()
            optimizer.step()
        for name, parameter in parameters.items():
            tensors[f"{case}.{name}"] = parameter.detach()
    return tensors


def write(folder):
    """Writes folder/adam.pt and folder/adamw.pt."""
    for optimizer_class in (torch.optim.Adam, torch.optim.AdamW):
        torch.save(steps_of(optimizer_class), pathlib.Path(folder) / f"{optimizer_class.__name__.lower()}.pt")
