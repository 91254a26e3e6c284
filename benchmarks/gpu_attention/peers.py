# SPDX-License-Identifier: MIT
"""What measure.py compares: functions of (q, k, v) for the kinds of its cases.

kind: plain, causal, window, table, bounded or decode. All scores are multiplied by 1 / √D. A table adds
table[head][min(|query − key|, 127)] to a score. `bounded` makes 20 tanh(score / 20) of it. Both are causal.
"""

import contextlib
import math

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DISTANCES = 128  # of the table, as in kernels.h
LIMIT = 20.0
WINDOW = 1024  # keys that a query sees: itself and those before it


def table(heads, device):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(heads, DISTANCES, generator=generator).to(device)


def attend(case, device):
    """attend's operators, from the library of operators.cpp."""
    operators = torch.ops.gpu_attention
    if case.kind == "table":
        values = table(case.heads, device)
        return lambda q, k, v: operators.table_bias(q, k, v, values)
    if case.kind == "bounded":
        return lambda q, k, v: operators.bounded(q, k, v, LIMIT)
    window = case.window if case.kind == "window" else None
    return lambda q, k, v: operators.attention(q, k, v, case.kind == "causal", window)


def formula(case, device):
    """The dense formula."""
    values = table(case.heads, device)

    def call(q, k, v):
        shared = q.size(1) // k.size(1)
        k, v = (x.repeat_interleave(shared, 1) for x in (k, v))
        score = q.float() @ k.float().transpose(-2, -1) / math.sqrt(q.size(-1))  # (N, H, L, S)
        queries, keys = (torch.arange(x.size(2), device=device) for x in (q, k))
        distance = queries[:, None] - keys  # (L, S)
        if case.kind == "table":
            score = score + values[:, distance.abs().clamp(max=DISTANCES - 1)]
        if case.kind == "bounded":
            score = LIMIT * torch.tanh(score / LIMIT)
        if case.kind not in ("plain", "decode"):
            score = score.masked_fill(distance < 0, -math.inf)
        if case.kind == "window":
            score = score.masked_fill(distance >= case.window, -math.inf)
        return (score.softmax(-1) @ v.float()).to(q.dtype)

    return call


def sdpa(case, device):
    """scaled_dot_product_attention, on a GPU by its flash kernel. A window is compared with all causal keys."""
    def call(q, k, v):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if device == "cuda" else contextlib.nullcontext():
            return F.scaled_dot_product_attention(q, k, v, is_causal=case.kind in ("causal", "window"),
                                                  enable_gqa=q.size(1) != k.size(1))

    return call


def flex(case, device):
    """torch's flex_attention, compiled in its first call. On the CPU it is not compiled, and has no backward pass."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if device == "cpu" and case.passes == "backward":
        return formula(case, device)
    values = table(case.heads, device)

    def causal(batch, head, query, key):
        return query >= key

    def table_bias(score, batch, head, query, key):
        return score + values[head, (query - key).abs().clamp(max=DISTANCES - 1)]

    def bounded(score, batch, head, query, key):
        return LIMIT * torch.tanh(score / LIMIT)

    torch._dynamo.reset()  # otherwise the ninth shape is not compiled
    mask = create_block_mask(causal, None, None, case.length, case.keys, device=device)
    function = torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention
    score = table_bias if case.kind == "table" else bounded
    return lambda q, k, v: function(q, k, v, score_mod=score, block_mask=mask)
