#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Computes with PyTorch in Python what the C++ tests compare with: python3 make_reference.py FOLDER.

Every file is a plain dictionary from names to tensors, which torch::pickle_load reads.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

import training_reference


class NotebookSelfAttention(torch.nn.Module):
    """The layer of the notebook, with heads: heads share the channels out between them."""

    def __init__(self, in_channels, out_channels, key_channels, num_heads=1, scale=1.0):
        super().__init__()
        self.query = torch.nn.Conv1d(in_channels, key_channels, 1, bias=False)
        self.key = torch.nn.Conv1d(in_channels, key_channels, 1, bias=False)
        self.value = torch.nn.Conv1d(in_channels, out_channels, 1, bias=False)
        self.num_heads, self.scale = num_heads, scale

    def forward(self, x):
        outputs, maps = [], []
        for q, k, v in zip(*(p(x).chunk(self.num_heads, 1) for p in (self.query, self.key, self.value))):
            maps.append((self.scale * q.transpose(1, 2).matmul(k)).softmax(2))
            outputs.append(maps[-1].matmul(v.transpose(1, 2)).transpose(1, 2))
        return torch.cat(outputs, 1), torch.stack(maps, 1)


def with_gradients(tensors, output, weight):
    """The output, and the gradients of a weighted sum of it for all tensors that need one."""
    leaves = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    gradients = torch.autograd.grad((output * weight).sum(), list(leaves.values()))
    result = {name: tensor.detach() for name, tensor in tensors.items()}
    result |= {"output": output.detach(), "output_gradient": weight}
    return result | {f"{name}_gradient": gradient for name, gradient in zip(leaves, gradients)}


def attention_cases():
    """scaled_dot_product_attention in float64, the cases that torch can express."""

    def case(L=7, S=7, H=4, G=4, D=8, Dv=8, mask=None, **options):
        q, k = torch.randn(2, H, L, D), torch.randn(2, G, S, D)
        v = torch.randn(2, G, S, Dv)
        tensors = {"query": q.requires_grad_(), "key": k.requires_grad_(), "value": v.requires_grad_()}
        if mask is not None:
            tensors["attn_mask"] = mask
        output = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=G != H, **options)
        return with_gradients(tensors, output, torch.randn_like(output))

    random_mask = torch.rand(7, 9) < 0.6
    random_mask[2] = False  # a row that may attend to nothing
    return {
        "plain": case(),
        "unscaled": case(scale=1.0),
        "lengths": case(5, 9),
        "value_width": case(Dv=3),
        "grouped": case(H=6, G=2),
        "causal": case(is_causal=True),
        "bool_mask": case(7, 9, mask=random_mask),
        "bool_mask_per_head": case(7, 9, mask=torch.rand(4, 7, 9) < 0.6),
        "bool_mask_per_batch": case(7, 9, mask=torch.rand(2, 1, 1, 9) < 0.6),
        "float_mask": case(7, 9, mask=torch.randn(2, 4, 7, 9)),
        "learned_mask": case(7, 9, mask=torch.randn(1, 4, 7, 9).requires_grad_()),
        "grouped_mask": case(7, 9, H=6, G=3, mask=random_mask),
    }


def causal_lower_right_cases():
    """The causal diagonal that ends at the last key, written out as a mask."""
    result = {}
    for L, S in ((1, 6), (3, 6), (6, 3), (6, 6)):
        mask = torch.ones(L, S, dtype=torch.bool).tril(S - L)
        q, k, v = (torch.randn(2, 3, n, 4).requires_grad_() for n in (L, S, S))
        output = F.scaled_dot_product_attention(q, k, v, mask)
        result[f"lower_right_{L}_{S}"] = with_gradients({"query": q, "key": k, "value": v}, output,
                                                        torch.randn_like(output))
    # The two agree with PyTorch's own class where that is defined.
    q, k, v = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 6, 4), torch.randn(1, 1, 6, 4)
    ours = F.scaled_dot_product_attention(q, k, v, torch.ones(3, 6, dtype=torch.bool).tril(3))
    theirs = F.scaled_dot_product_attention(q, k, v, causal_lower_right(3, 6))
    torch.testing.assert_close(ours, theirs)
    return result


def self_attention1d_cases():
    result = {}
    for name, layer in {
        "notebook": NotebookSelfAttention(6, 10, 8),
        "heads": NotebookSelfAttention(6, 8, 4, num_heads=2, scale=2**-0.5),
    }.items():
        x = torch.randn(3, 6, 11).requires_grad_()
        output, maps = layer(x)
        tensors = {"x": x} | {parameter: value for parameter, value in layer.named_parameters()}
        result[name] = with_gradients(tensors, output, torch.randn_like(output)) | {"map": maps.detach()}
    return result


def conv_stack_cases():
    result = {}
    activations = {"relu": torch.nn.ReLU(), "gelu": torch.nn.GELU(), "gelu_tanh": torch.nn.GELU("tanh"),
                   "silu": torch.nn.SiLU(), "tanh": torch.nn.Tanh()}
    for kernel_size in (1, 4, 5):
        for name, activation in activations.items():
            conv = lambda i, o: torch.nn.Conv1d(i, o, kernel_size, padding="same")
            model = torch.nn.Sequential(conv(2, 6), activation, conv(6, 6), activation, conv(6, 3))
            x = torch.randn(2, 2, 9).requires_grad_()
            output = model(x)
            tensors = {"x": x} | dict(model.named_parameters())
            result[f"{name}_{kernel_size}"] = with_gradients(tensors, output, torch.randn_like(output))
    return result


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    for name, cases in {
        "attention": attention_cases() | causal_lower_right_cases(),
        "self_attention1d": self_attention1d_cases(),
        "conv_stack": conv_stack_cases(),
    }.items():
        flat = {f"{case}/{key}": tensor.contiguous() for case, tensors in cases.items() for key, tensor in tensors.items()}
        torch.save(flat, folder / f"{name}.pt")
    training_reference.write(folder)


if __name__ == "__main__":
    main()
