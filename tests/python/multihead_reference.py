# SPDX-License-Identifier: MIT
"""Results of torch.nn.MultiheadAttention for tests/layers. make_reference.py writes them, reference_data() reads them.

Options that torch's module lacks are expressed by others: num_kv_heads by repeated rows of the projections, head_dim
by a wider module filled with zeros, scale by a factor on W_q, is_causal and window by a mask.
"""

import pathlib

import torch
import torch.nn.functional as F

N, L, S, E = 2, 5, 7, 12


def widened(tensor, *sizes):
    """The tensor with zeros appended up to the sizes given for its leading dimensions."""
    missing = [size - tensor.size(i) for i, size in enumerate(sizes)] + [0] * (tensor.dim() - len(sizes))
    return F.pad(tensor, [n for m in reversed(missing) for n in (0, m)])


def near(L, S, left, right):
    """The keys that a query must not attend to. Query i is aligned with key i + S - L, and infinite means unlimited."""
    distance = torch.arange(S) - (torch.arange(L) + S - L).unsqueeze(1)
    return (distance < -left) | (distance > right)


def case(L=L, S=S, num_heads=4, num_kv_heads=4, head_dim=3, scale=None, given=("query", "key", "value"), batched=True,
         batch_first=False, attn_mask=None, key_padding_mask=None, forbidden=None, kdim=E, vdim=E, bias=True,
         add_bias_kv=False, is_causal=False, **options):
    """One call: its parameters, its results, and all gradients of a weighted sum of both results.

    A tensor that is not in `given` is the one before it: ("query",) means self-attention. is_causal is the argument of
    forward(), which requires the causal mask as attn_mask.
    """
    width, kv_width = num_heads * head_dim, num_kv_heads * head_dim
    same_width = kdim == vdim == E
    if same_width:
        shapes = {"in_proj_weight": (width + 2 * kv_width, E)}
    else:
        shapes = {"q_proj_weight": (width, E), "k_proj_weight": (kv_width, kdim), "v_proj_weight": (kv_width, vdim)}
    shapes["out_proj.weight"] = (E, width)
    if bias:
        shapes |= {"in_proj_bias": (width + 2 * kv_width,), "out_proj.bias": (E,)}
    if add_bias_kv:
        shapes |= {"bias_k": (1, 1, kv_width), "bias_v": (1, 1, kv_width)}
    parameters = {name: torch.randn(shape).requires_grad_() for name, shape in shapes.items()}

    # The parameters of torch's module. If our heads are too narrow to fill E, it has more heads, with zeros.
    wide = max(E, width)
    q_factor = 1 if scale is None else scale * head_dim**0.5

    def all_heads(rows, count):
        rows = rows.unflatten(0, (count, head_dim)).repeat_interleave(num_heads // count, 0).flatten(0, 1)
        return widened(rows, wide)

    def in_projection(parameter):
        q, k, v = parameter.split([width, kv_width, kv_width])
        return torch.cat([all_heads(q, num_heads) * q_factor, all_heads(k, num_kv_heads), all_heads(v, num_kv_heads)])

    torchs = {}
    for name, parameter in parameters.items():
        if name in ("in_proj_weight", "in_proj_bias"):
            torchs[name] = in_projection(parameter)
        elif name in ("bias_k", "bias_v"):
            torchs[name] = all_heads(parameter.flatten(), num_kv_heads).view(1, 1, -1)
        elif name == "q_proj_weight":
            torchs[name] = all_heads(parameter, num_heads) * q_factor
        elif name in ("k_proj_weight", "v_proj_weight"):
            torchs[name] = all_heads(parameter, num_kv_heads)
        elif name == "out_proj.weight":
            torchs[name] = widened(parameter, wide, wide)
        else:
            torchs[name] = widened(parameter, wide)
        if name in ("in_proj_weight", "q_proj_weight"):
            torchs[name] = widened(torchs[name], len(torchs[name]), wide)  # for the zeros after the input
    module = torch.nn.MultiheadAttention(
        wide, wide // head_dim, batch_first=batch_first, kdim=wide if same_width else kdim,
        vdim=wide if same_width else vdim, bias=bias, add_bias_kv=add_bias_kv, **options).eval()
    assert set(torchs) == set(dict(module.named_parameters()))

    def make(length, width):
        sizes = ((N, length) if batch_first else (length, N)) if batched else (length,)
        return torch.randn(*sizes, width).requires_grad_()

    makers = {"query": lambda: make(L, E), "key": lambda: make(S, kdim), "value": lambda: make(S, vdim)}
    tensors = {name: makers[name]() for name in given}
    inputs = [tensors["query"]]
    for name in ("key", "value"):
        inputs.append(tensors.get(name, inputs[-1]))
    if attn_mask is not None:
        tensors["attn_mask"] = attn_mask
    if key_padding_mask is not None:
        tensors["key_padding_mask"] = key_padding_mask
    if forbidden is not None:
        if attn_mask is None or attn_mask.dtype == torch.bool:
            attn_mask = forbidden if attn_mask is None else attn_mask | forbidden
        else:
            attn_mask = attn_mask.masked_fill(forbidden, -torch.inf)

    def call(**results):
        arguments = tuple(F.pad(x, (0, wide - E)) if x.size(-1) == E else x for x in inputs)
        y, weights = torch.func.functional_call(
            module, torchs, arguments,
            dict(attn_mask=attn_mask, key_padding_mask=key_padding_mask, is_causal=is_causal) | results)
        return y[..., :E], weights

    output, weights = call(average_attn_weights=False)
    assert not output.isnan().any()
    torch.testing.assert_close(call(need_weights=False)[0], output)
    torch.testing.assert_close(call()[1], weights.mean(-3))
    weights = weights[..., :num_heads, :, :]

    all_tensors = tensors | parameters
    leaves = {name: tensor for name, tensor in all_tensors.items() if tensor.requires_grad}
    result = {name: tensor.detach() for name, tensor in all_tensors.items()}
    result |= {"output": output.detach(), "weights": weights.detach()}
    result |= {"output_gradient": torch.randn_like(output), "weights_gradient": torch.randn_like(weights)}
    loss = (output * result["output_gradient"]).sum() + (weights * result["weights_gradient"]).sum()
    return result | {f"{name}_gradient": gradient
                     for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())))}


def cases():
    generator = torch.Generator().manual_seed(7)

    def ignored(*sizes):
        """A bool mask that never ignores the first key, because torch returns NaN for a row without keys."""
        mask = torch.rand(*sizes, generator=generator) < 0.4
        mask[..., 0] = False
        return mask

    def added(*sizes):
        return torch.randn(*sizes, generator=generator)

    padding = torch.arange(S) >= torch.tensor([[7], [4]])
    everything = dict(attn_mask=ignored(N * 4, L, S), key_padding_mask=padding, batch_first=True, kdim=6, vdim=9,
                      num_kv_heads=2, head_dim=5, scale=0.3, add_bias_kv=True, add_zero_attn=True)
    causal = near(L, S, torch.inf, 0)
    return {
        # Options of torch's module in Python, most of which its C++ module lacks.
        "plain": case(),
        "self": case(given=["query"]),
        "memory": case(given=["query", "key"]),
        "batch_first": case(batch_first=True),
        "unbatched": case(batched=False),
        "unbatched_self": case(batched=False, given=["query"]),
        "kdim_vdim": case(kdim=6, vdim=9),
        "vdim": case(vdim=9),
        "no_bias": case(bias=False),
        "dropout": case(dropout=0.5),
        "bool_mask": case(attn_mask=ignored(L, S)),
        "bool_mask_per_head": case(attn_mask=ignored(N * 4, L, S)),
        "float_mask": case(attn_mask=added(L, S)),
        "float_mask_per_head": case(attn_mask=added(N * 4, L, S)),
        "learned_masks": case(attn_mask=added(N * 4, L, S).requires_grad_(),
                              key_padding_mask=added(N, S).requires_grad_()),
        "padding": case(key_padding_mask=padding),
        "float_padding": case(key_padding_mask=added(N, S)),
        "bool_masks": case(attn_mask=ignored(L, S), key_padding_mask=padding),
        "bool_masks_per_head": case(attn_mask=ignored(N * 4, L, S), key_padding_mask=padding),
        "float_masks": case(attn_mask=added(L, S), key_padding_mask=added(N, S)),
        "float_mask_and_padding": case(attn_mask=added(L, S), key_padding_mask=added(N, S).where(~padding, -torch.inf)),
        "unbatched_masks": case(batched=False, attn_mask=ignored(4, L, S), key_padding_mask=padding[1]),
        "unbatched_shared_mask": case(batched=False, batch_first=True, attn_mask=ignored(L, S)),
        "added_keys": case(add_bias_kv=True, add_zero_attn=True),
        "bias_kv_bool_masks": case(add_bias_kv=True, attn_mask=ignored(L, S), key_padding_mask=padding),
        "zero_attn_float_masks": case(add_zero_attn=True, attn_mask=added(N * 4, L, S), key_padding_mask=added(N, S)),
        "causal": case(S=L, given=["query"], forbidden=near(L, L, torch.inf, 0)),
        "causal_hint": case(S=L, given=["query"], is_causal=True, attn_mask=near(L, L, torch.inf, 0)),
        "causal_hint_float": case(S=L, is_causal=True, batch_first=True,
                                  attn_mask=torch.nn.Transformer.generate_square_subsequent_mask(L)),
        "causal_hint_padding": case(S=L, is_causal=True, attn_mask=near(L, L, torch.inf, 0),
                                    key_padding_mask=torch.arange(L) >= torch.tensor([[5], [3]])),

        # Options that torch's module lacks.
        "longer_keys_causal": case(forbidden=causal),
        "causal_padding": case(S=S, L=S, forbidden=near(S, S, torch.inf, 0), key_padding_mask=padding),
        "causal_masks_padding": case(S=S, L=S, forbidden=near(S, S, torch.inf, 0), attn_mask=ignored(N * 4, S, S),
                                     key_padding_mask=padding),
        "window": case(forbidden=near(L, S, 2, 1)),
        "causal_window": case(forbidden=near(L, S, 2, 0)),
        "window_float_mask": case(forbidden=near(L, S, 2, 1), attn_mask=added(N * 4, L, S)),
        "causal_added_keys": case(S=4, forbidden=near(L, 4, torch.inf, 0), add_bias_kv=True, add_zero_attn=True),
        "window_bias_kv": case(S=4, forbidden=near(L, 4, 1, 0), add_bias_kv=True, batched=False),
        "grouped": case(num_kv_heads=2),
        "grouped_self": case(num_kv_heads=2, given=["query"], batch_first=True),
        "grouped_memory": case(num_kv_heads=1, given=["query", "key"], add_bias_kv=True),
        "wide_heads": case(head_dim=5, given=["query"]),
        "narrow_heads": case(num_heads=2, num_kv_heads=2),
        "scaled": case(scale=0.3),
        "everything": case(forbidden=near(L, S, 3, 0), **everything),
        "everything_unbatched": case(forbidden=near(L, S, 3, 0), batched=False,
                                     **everything | dict(attn_mask=added(4, L, S), key_padding_mask=added(S))),
    }


STATE_DICTS = {
    "plain": {},
    "all": dict(kdim=6, vdim=9, add_bias_kv=True, add_zero_attn=True),
    "no_bias": dict(bias=False),
}


def write(folder):
    """Writes folder/multihead_attention.pt, and state dicts as a user of torch saves them for C++."""
    folder = pathlib.Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        flat = {f"{name}/{key}": tensor.contiguous() for name, tensors in cases().items()
                for key, tensor in tensors.items()}
        for name, options in STATE_DICTS.items():
            module = torch.nn.MultiheadAttention(E, 4, **options)
            torch.save(dict(module.state_dict()), folder / f"multihead_attention_{name}.pt")
            query, key, value = torch.randn(L, N, E), torch.randn(S, N, module.kdim), torch.randn(S, N, module.vdim)
            flat |= {f"state_{name}/query": query, f"state_{name}/key": key, f"state_{name}/value": value,
                     f"state_{name}/output": module(query, key, value)[0].detach()}
        torch.save(flat, folder / "multihead_attention.pt")
