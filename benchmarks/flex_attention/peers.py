# SPDX-License-Identifier: MIT
"""The peers in Python: functions of (q, k, v) for the kinds of the cases in measure.py."""

import math
import time

import torch
import torch.nn.functional as F

WINDOW = 256  # as in main.cpp


def slopes(heads):
    return torch.exp2(torch.arange(1, heads + 1) * (-8.0 / heads))


def sdpa(kind):
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=kind == "causal")


def masks(kind, heads, length):
    """The dense masks that are equivalent to the kind: bool if possible, and float."""
    distance = torch.arange(length) - torch.arange(length)[:, None]  # (L, S): key − query
    allowed = (distance <= 0) & (distance >= -WINDOW) if kind == "window" else distance <= 0
    bias = slopes(heads)[:, None, None] * distance if kind == "alibi" else torch.zeros(length, length)
    added = bias.masked_fill(~allowed, -math.inf)
    return [added[None]] if kind == "alibi" else [allowed, added]  # SDPA has no fused kernel for a 3-d mask


def sdpa_with_mask(mask):
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def compiled_flex(kind, heads, length):
    """torch's flex_attention, compiled in the first call. Forward only, because it has no backward pass on the CPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # No caches, so that the time to compile is that of a first use; and no compile processes that stay behind.
    torch._inductor.config.force_disable_caches = True
    torch._inductor.config.compile_threads = 1

    per_head = slopes(heads)

    def causal(batch, head, query, key):
        return query >= key

    def window(batch, head, query, key):
        return (query >= key) & (query - key <= WINDOW)

    def alibi(score, batch, head, query, key):
        return score - per_head[head] * (query - key)

    mask = create_block_mask(window if kind == "window" else causal, None, None, length, length, device="cpu")
    score = alibi if kind == "alibi" else None
    compiled = torch.compile(flex_attention, dynamic=False)

    def call(q, k, v):
        return compiled(q, k, v, score_mod=score, block_mask=mask)

    begin = time.perf_counter()
    with torch.no_grad():
        call(*torch.randn(3, 1, heads, length, 64).unbind())
    call.seconds_to_compile = time.perf_counter() - begin
    return call


def dense_formula(length):
    """The score SoftSign of main.cpp, written without flex_attention."""
    distance = (torch.arange(length)[:, None] - torch.arange(length)).float()  # (L, S): query − key

    def call(q, k, v):
        score = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (N, H, L, S)
        score = score / (1 + 0.5 * score.abs()) - 0.01 * distance
        return score.softmax(-1) @ v

    return call
