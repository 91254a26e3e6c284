# SPDX-License-Identifier: MIT
"""Relative position bias, shifted windows, attention sinks and attention over images, by their dense formulas."""

import math
import pathlib

import torch


def with_gradients(tensors, output):
    """The tensors, the output, and the gradients of a weighted sum of it for all tensors that need one."""
    weight = torch.randn_like(output)
    leaves = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    gradients = torch.autograd.grad((output * weight).sum(), list(leaves.values()))
    result = {name: tensor.detach() for name, tensor in tensors.items()}
    result |= {f"{name}_gradient": gradient for name, gradient in zip(leaves, gradients)}
    return result | {"output": output.detach(), "output_gradient": weight}


def heads(N, H, L, D, S=None):
    return tuple(torch.randn(N, H, n, D).requires_grad_() for n in (L, S or L, S or L))


# ---- T5 -------------------------------------------------------------------------------------------------------------


def t5_bucket(relative_position, bidirectional, num_buckets, max_distance):
    """T5Attention._relative_position_bucket of Hugging Face."""
    first = 0
    if bidirectional:
        num_buckets //= 2
        first = (relative_position > 0).long() * num_buckets
        distance = relative_position.abs()
    else:
        distance = (-relative_position).clamp(min=0)
    exact = num_buckets // 2
    large = exact + (torch.log(distance.float() / exact) / math.log(max_distance / exact) * (num_buckets - exact)).long()
    large = torch.min(large, torch.full_like(large, num_buckets - 1))
    return first + torch.where(distance < exact, distance, large)


def t5_cases():
    result = {}
    for bidirectional in (True, False):
        for num_buckets, max_distance in ((32, 128), (8, 20), (4, 3), (64, 1000)):
            distances = torch.arange(-1200, 1201)
            name = f"{'both' if bidirectional else 'causal'}_{num_buckets}_{max_distance}"
            result[f"t5_buckets/{name}"] = {"distances": distances,
                                            "buckets": t5_bucket(distances, bidirectional, num_buckets, max_distance)}
        for L, S in ((9, 9), (3, 9), (150, 150)):
            q, k, v = heads(2, 3, L, 4, S)
            weight = torch.randn(8, 3).requires_grad_()
            positions = torch.arange(S) - torch.arange(S - L, S)[:, None]
            bias = weight[t5_bucket(positions, bidirectional, 8, 20)].permute(2, 0, 1)
            scores = q @ k.mT + bias
            if not bidirectional:
                scores = scores.masked_fill(positions > 0, -torch.inf)
            tensors = {"query": q, "key": k, "value": v, "weight": weight}
            result[f"t5/{'both' if bidirectional else 'causal'}_{L}_{S}"] = (
                with_gradients(tensors, scores.softmax(-1) @ v) | {"bias": bias.detach()})
    return result


# ---- Swin -----------------------------------------------------------------------------------------------------------


def cut(x, window):
    """(N, s1, …, C) to (N · windows, positions, C)."""
    sizes = []
    for size, edge in zip(x.shape[1:-1], window):
        sizes += [size // edge, edge]
    n = len(window)
    x = x.reshape(x.shape[0], *sizes, x.shape[-1])
    x = x.permute(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    return x.reshape(-1, math.prod(window), x.shape[-1])


def relative_position_index(window):
    """The index of SwinSelfAttention, of Swin's and of Video Swin's code: by the coordinates of both positions."""
    points = torch.stack(torch.meshgrid(*(torch.arange(edge) for edge in window), indexing="ij")).flatten(1)
    offsets = (points[:, :, None] - points[:, None, :]).permute(1, 2, 0)
    index = torch.zeros(offsets.shape[:2], dtype=torch.long)
    for d, edge in enumerate(window):
        index = index * (2 * edge - 1) + offsets[..., d] + edge - 1
    return index


def shift_mask(sizes, window, shift):
    """The mask of the source: regions of the rolled signal are numbered, and −100 is added between them."""
    regions = torch.zeros(1, *sizes, 1)
    cuts = [[slice(0, -edge), slice(-edge, -step), slice(-step, None)] if step else [slice(None)]
            for edge, step in zip(window, shift)]
    for number, slices in enumerate(torch.cartesian_prod(*(torch.arange(len(c)) for c in cuts)).reshape(-1, len(cuts))):
        regions[(0, *(c[i] for c, i in zip(cuts, slices)))] = number
    regions = cut(regions, window).squeeze(-1)
    return (regions[:, None, :] != regions[:, :, None]) * -100.0


def swin_cases():
    result = {}
    for name, sizes, window, shift in (
        ("line", (12,), (4,), (1,)),
        ("image", (6, 8), (3, 4), (1, 2)),
        ("image_unshifted", (6, 8), (3, 4), (0, 0)),
        ("image_one_window", (3, 4), (3, 4), (1, 2)),
        ("image_49", (14, 21), (7, 7), (3, 3)),
        ("volume", (4, 6, 4), (2, 3, 2), (1, 0, 1)),
        ("volume_196", (4, 14, 14), (4, 7, 7), (2, 3, 3)),
    ):
        H, D, N = 2, 4, 2
        positions = math.prod(window)
        x = torch.randn(N, *sizes, 3 * H * D).requires_grad_()
        table = torch.randn(math.prod(2 * edge - 1 for edge in window), H).requires_grad_()
        rolled = torch.roll(x, [-step for step in shift], list(range(1, 1 + len(sizes))))
        windows = cut(rolled, window)
        q, k, v = windows.reshape(-1, positions, 3, H, D).permute(2, 0, 3, 1, 4)
        bias = table[relative_position_index(window).flatten()].view(positions, positions, H).permute(2, 0, 1)
        mask = shift_mask(sizes, window, shift)
        scores = (q @ k.mT) / math.sqrt(D) + bias + mask.repeat(N, 1, 1)[:, None]
        tensors = {"x": x, "table": table}
        numbers = {"sizes": torch.tensor(sizes), "window": torch.tensor(window), "shift": torch.tensor(shift)}
        result[f"swin/{name}"] = (with_gradients(tensors, scores.softmax(-1) @ v) | numbers
                                  | {"windows": windows.detach(), "bias": bias.detach(), "mask": mask})
    return result


# ---- Sinks, and attention over images -------------------------------------------------------------------------------


def sink_cases():
    """gpt-oss: the sink is a column beside the scores, which the softmax takes and the values do not."""
    result = {}
    for name, L, S, G in (("square", 7, 7, 4), ("decode", 1, 9, 2), ("long", 130, 130, 2), ("empty_rows", 6, 3, 4)):
        q, k, v = heads(2, 4, L, 8, S)
        k, v = (x.detach()[:, :G].clone().requires_grad_() for x in (k, v))
        sinks = torch.randn(4).requires_grad_()
        scores = q @ k.repeat_interleave(4 // G, 1).mT / math.sqrt(8)
        scores = scores.masked_fill(torch.arange(S) > torch.arange(S - L, S)[:, None], -torch.inf)
        column = sinks.view(1, 4, 1, 1).expand(2, 4, L, 1)
        weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
        tensors = {"query": q, "key": k, "value": v, "sinks": sinks}
        result[f"sinks/{name}"] = with_gradients(tensors, weights @ v.repeat_interleave(4 // G, 1))
    return result


def image_cases():
    """Attention over all pixels, over columns and over rows, by Einstein sums."""
    result = {}
    for axis, scores, outputs in (
        ("both", "nhcij,nhcyx->nhijyx", "nhijyx,nhcyx->nhcij"),
        ("height", "nhcij,nhcyj->nhijy", "nhijy,nhcyj->nhcij"),
        ("width", "nhcij,nhcix->nhijx", "nhijx,nhcix->nhcij"),
    ):
        x = torch.randn(2, 5, 3, 4).requires_grad_()
        weights = {f"{name}.weight": torch.randn(channels, 5, 1, 1).requires_grad_()
                   for name, channels in (("query", 4), ("key", 4), ("value", 6))}
        q, k, v = (torch.nn.functional.conv2d(x, weight).unflatten(1, (2, -1)) for weight in weights.values())
        score = 0.7 * torch.einsum(scores, q, k)
        weight = score.flatten(4).softmax(-1).view_as(score)
        output = torch.einsum(outputs, weight, v).flatten(1, 2)
        result[f"self_attention2d/{axis}"] = (with_gradients({"x": x} | weights, output)
                                              | {"map": weight.detach().flatten(4)})
    return result


def write(folder):
    """Writes folder/position_bias.pt."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        cases = t5_cases() | swin_cases() | sink_cases() | image_cases()
        torch.save({f"{case}/{key}": tensor.contiguous() for case, tensors in cases.items()
                    for key, tensor in tensors.items()}, pathlib.Path(folder) / "position_bias.pt")
