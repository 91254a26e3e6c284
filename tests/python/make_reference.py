#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Computes reference results for the C++ tests with PyTorch in Python: python3 make_reference.py FOLDER.

Every file is a plain dictionary from names to tensors, which torch::pickle_load reads.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

import multihead_reference
import position_bias_reference
import rotary_reference
import training_reference
import transformer_reference


class NotebookSelfAttention(torch.nn.Module):
    """The layer of the notebook with num_heads heads, each of which has its share of the channels."""

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


def with_gradients(tensors, output, weight, log_sum_exp=None):
    """The output, and the gradients of its weighted sum for all tensors that need one.

    With log_sum_exp, the result also has the log-sum-exp, and `…_gradient_of_both` for a weighted sum of both.
    """
    leaves = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    inputs = list(leaves.values())
    gradients = torch.autograd.grad((output * weight).sum(), inputs, retain_graph=True)
    result = {name: tensor.detach() for name, tensor in tensors.items()}
    result |= {"output": output.detach(), "output_gradient": weight}
    result |= {f"{name}_gradient": gradient for name, gradient in zip(leaves, gradients)}
    if log_sum_exp is not None:
        weight_of_lse = torch.randn_like(log_sum_exp)
        gradients = torch.autograd.grad([output, log_sum_exp], inputs, [weight, weight_of_lse])
        result |= {"log_sum_exp": log_sum_exp.detach(), "log_sum_exp_gradient": weight_of_lse}
        result |= {f"{name}_gradient_of_both": gradient for name, gradient in zip(leaves, gradients)}
    return result


def distances(L, S):
    """Key position − query position, (L, S). The last query is aligned with the last key."""
    return torch.arange(S) - torch.arange(L)[:, None] - (S - L)


def within(L, S, is_causal, window):
    """The keys that is_causal and window allow for each query: bool (L, S)."""
    ahead, (left, right) = distances(L, S), window
    allowed = torch.ones(L, S, dtype=torch.bool)
    if is_causal:
        allowed &= ahead <= 0
    if left >= 0:
        allowed &= ahead >= -left
    if right >= 0:
        allowed &= ahead <= right
    return allowed


def dense_attention(q, k, v, mask=None, slopes=None, is_causal=False, window=(-1, -1), scale=None, softcap=0.0):
    """Output and log-sum-exp by the formula. Without softcap the output is that of torch's own function."""
    (N, H, L, D), G, S = q.shape, k.shape[1], k.shape[2]
    scale = D**-0.5 if scale is None else scale
    allowed, bias = within(L, S, is_causal, window).expand(N, H, L, S), torch.zeros(N, H, L, S)
    if slopes is not None:
        bias = bias - slopes.to(q.dtype)[..., None, None] * distances(L, S).abs()
    if mask is not None and mask.dtype == torch.bool:
        allowed = allowed & mask
    elif mask is not None:
        bias = bias + mask

    scores = scale * q @ k.repeat_interleave(H // G, 1).transpose(2, 3)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    scores = (scores + bias).masked_fill(~allowed, -1e300)  # finite, because torch's gradient of an empty row is NaN
    weights = scores.softmax(-1).masked_fill(~allowed, 0.0)
    output, log_sum_exp = weights @ v.repeat_interleave(H // G, 1), scores.logsumexp(-1)
    log_sum_exp = log_sum_exp.masked_fill(~allowed.any(-1), -torch.inf)

    def score_mod(score, n, h, i, j):
        score = softcap * torch.tanh(score / softcap) if softcap > 0 else score
        if slopes is not None:
            score = score - slopes.expand(N, H)[n, h] * (i + (S - L) - j).abs()
        if mask is not None and mask.dtype != torch.bool:
            score = score + mask.expand(N, H, L, S)[n, h, i, j]
        return torch.where(allowed[n, h, i, j], score, -torch.inf)

    # PyTorch's implementation of the formula, which has no backward pass on the CPU. Without the reset, PyTorch 2.15
    # would turn the numbers that score_mod reads into symbols after a few cases, and then refuse them.
    torch.compiler.reset()
    with torch.no_grad():
        theirs, aux = flex_attention(q.detach(), k.detach(), v.detach(), score_mod, scale=scale, enable_gqa=G != H,
                                     return_aux=AuxRequest(lse=True))
    torch.testing.assert_close(output, theirs)
    torch.testing.assert_close(log_sum_exp, aux.lse)
    if softcap == 0:
        full_mask = bias.masked_fill(~allowed, -torch.inf)
        output = F.scaled_dot_product_attention(q, k, v, full_mask, scale=scale, enable_gqa=G != H)
    return output, log_sum_exp


def attention_cases():
    """Cases of attention() and attention_with_lse() in float64: every option alone and in combination."""

    def case(L=7, S=7, H=4, G=4, D=8, Dv=8, mask=None, slopes=None, lengths=None, **options):
        """`lengths` has (query length, key length) for each sequence of a packed batch."""
        N = 2
        if lengths is not None:
            N, L, S = 1, sum(l for l, _ in lengths), sum(s for _, s in lengths)
        q, k, v = torch.randn(N, H, L, D), torch.randn(N, G, S, D), torch.randn(N, G, S, Dv)
        tensors = {"query": q.requires_grad_(), "key": k.requires_grad_(), "value": v.requires_grad_()}
        if mask is not None:
            tensors["attn_mask"] = mask
        if slopes is not None:
            tensors["alibi_slopes"] = slopes
        if lengths is None:
            output, log_sum_exp = dense_attention(q, k, v, mask, slopes, **options)
        else:
            ends = [torch.tensor([0] + list(n)).cumsum(0) for n in zip(*lengths)]
            tensors |= {"query_offsets": ends[0].int(), "key_offsets": ends[1].int()}
            results = []
            for (l, s), i, j in zip(lengths, *(offsets.tolist() for offsets in ends)):
                part = mask if mask is None else mask.expand(N, H, L, S)[:, :, i:i + l, j:j + s]
                if l > 0 and s > 0:
                    results.append(dense_attention(q[:, :, i:i + l], k[:, :, j:j + s], v[:, :, j:j + s], part, slopes,
                                                   **options))
                else:
                    results.append((torch.zeros(N, H, l, Dv), torch.full((N, H, l), -torch.inf)))
            output, log_sum_exp = (torch.cat(parts, 2) for parts in zip(*results))
        return with_gradients(tensors, output, torch.randn_like(output), log_sum_exp)

    random_mask = torch.rand(7, 9) < 0.6
    random_mask[2] = False  # a query that may attend to nothing
    learned = lambda *sizes: torch.randn(*sizes).requires_grad_()
    slopes = 2.0 ** -torch.arange(1, 5)
    everything = dict(H=4, G=2, D=8, Dv=5, is_causal=True, window=(4, 1), scale=0.7, softcap=1.5)
    return {
        "plain": case(),
        "unscaled": case(scale=1.0),
        "lengths": case(5, 9),
        "value_dim": case(Dv=3),
        "grouped": case(H=6, G=2),
        "causal": case(is_causal=True),
        "bool_mask": case(7, 9, mask=random_mask),
        "bool_mask_per_head": case(7, 9, mask=torch.rand(4, 7, 9) < 0.6),
        "bool_mask_per_batch": case(7, 9, mask=torch.rand(2, 1, 1, 9) < 0.6),
        "float_mask": case(7, 9, mask=torch.randn(2, 4, 7, 9)),
        "learned_mask": case(7, 9, mask=learned(1, 4, 7, 9)),
        "grouped_mask": case(7, 9, H=6, G=3, mask=random_mask),
        "causal_mask": case(is_causal=True, mask=random_mask[:, :7]),
        "causal_padding": case(is_causal=True, mask=torch.rand(2, 1, 1, 7) < 0.6),
        "causal_float_mask": case(is_causal=True, mask=torch.randn(4, 7, 7)),
        "window": case(7, 9, window=(2, 1)),
        "window_diagonal": case(9, 7, window=(0, 0)),
        "window_left": case(7, 9, window=(3, -1)),
        "window_right": case(9, 7, window=(-1, 2)),
        "window_causal": case(9, 9, window=(3, 5), is_causal=True),
        "window_all": case(5, 9, window=(8, 4)),
        "softcap": case(7, 9, softcap=0.8),
        "alibi": case(7, 9, slopes=slopes),
        "alibi_per_batch": case(9, 7, slopes=torch.rand(2, 4)),
        "alibi_float32": case(7, 9, slopes=torch.rand(4, dtype=torch.float32)),
        "learned_alibi": case(7, 9, slopes=learned(4)),
        "learned_alibi_per_batch": case(7, 9, slopes=learned(2, 4)),
        "packed": case(lengths=((3, 3), (1, 4), (5, 2))),
        "packed_causal": case(lengths=((3, 3), (0, 0), (1, 4), (0, 2), (5, 2), (2, 0)), is_causal=True),
        "packed_window": case(lengths=((5, 5), (4, 7)), window=(2, 1)),
        "packed_alibi": case(lengths=((5, 5), (4, 7), (3, 2)), slopes=slopes),
        "everything": case(7, 9, mask=learned(2, 1, 7, 9), slopes=learned(4), **everything),
        "everything_masked": case(9, 7, mask=torch.rand(2, 1, 1, 7) < 0.6, slopes=slopes, **everything),
        "everything_packed": case(lengths=((5, 5), (4, 7), (3, 2)), mask=learned(4, 12, 14), slopes=learned(1, 4),
                                  **everything),
    }


def causal_lower_right_cases():
    """Causal masks, given as attn_mask, whose diagonal ends at the last key."""
    result = {}
    for L, S in ((1, 6), (3, 6), (6, 3), (6, 6)):
        mask = torch.ones(L, S, dtype=torch.bool).tril(S - L)
        q, k, v = (torch.randn(2, 3, n, 4).requires_grad_() for n in (L, S, S))
        output = F.scaled_dot_product_attention(q, k, v, mask)
        result[f"lower_right_{L}_{S}"] = with_gradients({"query": q, "key": k, "value": v}, output,
                                                        torch.randn_like(output))
    # The mask agrees with PyTorch's causal_lower_right, which is defined for this case.
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
    multihead_reference.write(folder)
    rotary_reference.write(folder)
    position_bias_reference.write(folder)
    training_reference.write(folder)
    transformer_reference.write(folder)


if __name__ == "__main__":
    main()
