# SPDX-License-Identifier: MIT
"""Rotary embeddings by the formulas of Hugging Face's transformers, for tests/positions. make_reference.py writes the
results in float64. rotary_reference_test.py compares the formulas with transformers.
"""

import math

import torch


def default(dim, theta):
    return theta ** -(torch.arange(0, dim, 2) / dim), 1.0


def linear(dim, theta, factor):
    return default(dim, theta)[0] / factor, 1.0


def dynamic(dim, theta, factor, max_length, length):
    ratio = max(length, max_length) / max_length
    return default(dim, theta * (factor * ratio - (factor - 1)) ** (dim / (dim - 2)))


def yarn(dim, theta, factor, max_length, beta_fast=32.0, beta_slow=1.0, attention_factor=None, mscale=None,
         mscale_all_dim=None, truncate=True):
    def index(turns):
        return dim * math.log(max_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def scale_of(weight):
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    low, high = index(beta_fast), index(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2) - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    kept = default(dim, theta)[0]
    if attention_factor is None:
        both = mscale and mscale_all_dim
        attention_factor = scale_of(mscale) / scale_of(mscale_all_dim) if both else scale_of(1)
    return kept / factor * ramp + kept * (1 - ramp), attention_factor


def llama3(dim, theta, factor, low_freq_factor, high_freq_factor, max_length):
    kept = default(dim, theta)[0]
    wavelength = 2 * math.pi / kept
    smooth = (max_length / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
    mixed = (1 - smooth) * kept / factor + smooth * kept
    is_low, is_high = wavelength > max_length / low_freq_factor, wavelength < max_length / high_freq_factor
    return torch.where(is_low, kept / factor, torch.where(is_high, kept, mixed)), 1.0


def rotate_half(x):
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


def rotate_every_two(x):
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


def rotated(x, angles, factor, is_interleaved):
    """x (N, H, L, D) rotated by angles (…, L, R/2)."""
    width = 2 * angles.size(-1)
    part, rest = x[..., :width], x[..., width:]
    if is_interleaved:
        angles = angles.repeat_interleave(2, -1)
        turned = rotate_every_two(part)
    else:
        angles = torch.cat([angles, angles], -1)
        turned = rotate_half(part)
    return torch.cat([part * (angles.cos() * factor) + turned * (angles.sin() * factor), rest], -1)


def cases():
    """head_dim, is_interleaved, the frequencies and the factor, by name. The C++ test has the same cases."""
    return {
        "default": (16, False, default(16, 10000.0)),
        "theta": (16, False, default(16, 500000.0)),
        "interleaved": (16, True, default(16, 10000.0)),
        "partial": (20, False, default(8, 10000.0)),
        "partial_interleaved": (20, True, default(8, 10000.0)),
        "linear": (16, False, linear(16, 10000.0, 4.0)),
        "dynamic": (16, False, dynamic(16, 10000.0, 2.0, 8, 13)),
        "dynamic_short": (16, False, dynamic(16, 10000.0, 2.0, 16, 13)),
        "yarn": (64, False, yarn(64, 10000.0, 4.0, 2048)),
        "yarn_options": (64, False, yarn(64, 10000.0, 8.0, 4096, 16.0, 2.0, mscale=0.7, mscale_all_dim=0.4,
                                                 truncate=False)),
        "yarn_factor": (64, False, yarn(64, 10000.0, 8.0, 4096, attention_factor=1.25)),
        "llama3": (128, False, llama3(128, 500000.0, 8.0, 1.0, 4.0, 8192)),
        "llama3_options": (64, False, llama3(64, 10000.0, 4.0, 2.0, 16.0, 1024)),
    }


def write(folder):
    """For each case: x, explicit positions, both outputs and the gradient of x."""
    result = {}
    for name, (head_dim, is_interleaved, (frequencies, factor)) in cases().items():
        x = torch.randn(2, 3, 13, head_dim)
        weight = torch.randn_like(x)
        positions = torch.stack([torch.arange(13) + 100, torch.randperm(13)])  # of each batch entry
        result |= {f"{name}/x": x, f"{name}/weight": weight}
        result[f"{name}/output"] = rotated(x, torch.arange(13)[:, None] * frequencies, factor, is_interleaved)
        if name.startswith("dynamic"):
            continue
        leaf = x.clone().requires_grad_()
        y = rotated(leaf, (positions[..., None] * frequencies)[:, None], factor, is_interleaved)
        result |= {f"{name}/positions": positions, f"{name}/output_at_positions": y.detach()}
        result[f"{name}/gradient"] = torch.autograd.grad((y * weight).sum(), leaf)[0]

    # Two axes: each has half of the pairs, as in Qwen2-VL.
    x = torch.randn(2, 3, 12, 16)
    grid = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij"), -1).reshape(12, 2)
    frequencies, _ = default(8, 10000.0)
    for name, is_interleaved in {"axes": False, "axes_interleaved": True}.items():
        result |= {f"{name}/x": x, f"{name}/output": rotated(x, (grid[..., None] * frequencies).flatten(-2), 1.0,
                                                             is_interleaved)}
    torch.save(result, folder / "rotary.pt")
