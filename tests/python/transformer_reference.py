# SPDX-License-Identifier: MIT
"""Results of the transformer modules of torch.nn for tests/layers. make_reference.py writes them, reference_data()
reads them."""

import pathlib
import warnings

import torch
import torch.nn as nn

N, S, T, E, HEADS, F = 2, 7, 5, 12, 3, 20


def randomized(module):
    """The module with random numbers in all parameters, also in biases and norms, which begin at 0 and 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


def case(module, inputs, **arguments):
    """One call: its parameters, its arguments, its output, and all gradients of a weighted sum of the output."""
    parameters = dict(randomized(module).named_parameters())
    inputs = {name: torch.randn(*sizes).requires_grad_() for name, sizes in inputs.items()}
    output = module(*inputs.values(), **arguments)
    weight = torch.randn_like(output)
    leaves = inputs | parameters
    gradients = torch.autograd.grad((output * weight).sum(), list(leaves.values()))
    result = {name: tensor.detach() for name, tensor in leaves.items()}
    result |= {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    result |= {"output": output.detach(), "output_gradient": weight}
    return result | {f"{name}_gradient": gradient for name, gradient in zip(leaves, gradients)}


def cases():
    generator = torch.Generator().manual_seed(11)

    def ignored(*sizes):
        """A bool mask that never ignores the first key, because torch returns NaN for a row without keys."""
        mask = torch.rand(*sizes, generator=generator) < 0.4
        mask[..., 0] = False
        return mask

    def padding(length):
        return torch.arange(length) >= torch.tensor([[length], [length - 3]])

    later = torch.ones(S, S, dtype=torch.bool).triu(1)
    later_of_target = torch.ones(T, T, dtype=torch.bool).triu(1)
    plain = dict(dim_feedforward=F, dropout=0.0)
    first = plain | dict(batch_first=True)
    options = {
        "default": plain,
        "batch_first": first,
        "norm_first": first | dict(norm_first=True),
        "gelu": plain | dict(activation="gelu"),
        "function": first | dict(activation=torch.tanh),
        "eps": first | dict(layer_norm_eps=0.3),
        "no_bias": first | dict(bias=False),
        "no_bias_norm_first": plain | dict(bias=False, norm_first=True),
    }

    def sequence(length, settings):
        return (N, length, E) if settings.get("batch_first") else (length, N, E)

    result = {}
    for name, settings in options.items():
        src, tgt = sequence(S, settings), sequence(T, settings)
        encoder_layer, decoder_layer = nn.TransformerEncoderLayer, nn.TransformerDecoderLayer
        result[f"encoder_layer/{name}"] = case(encoder_layer(E, HEADS, **settings), dict(src=src))
        result[f"encoder_layer/{name}_masks"] = case(encoder_layer(E, HEADS, **settings), dict(src=src),
                                                     src_mask=ignored(S, S), src_key_padding_mask=padding(S))
        result[f"decoder_layer/{name}"] = case(decoder_layer(E, HEADS, **settings), dict(tgt=tgt, memory=src))
        result[f"decoder_layer/{name}_masks"] = case(
            decoder_layer(E, HEADS, **settings), dict(tgt=tgt, memory=src), tgt_mask=ignored(T, T),
            memory_mask=ignored(N * HEADS, T, S), tgt_key_padding_mask=padding(T), memory_key_padding_mask=padding(S))

        def norm():
            return nn.LayerNorm(E, eps=settings.get("layer_norm_eps", 1e-5), bias=settings.get("bias", True))

        with warnings.catch_warnings():  # of options with which Python does not pack
            warnings.simplefilter("ignore")
            encoder = nn.TransformerEncoder(encoder_layer(E, HEADS, **settings), 2, norm())
            transformer = nn.Transformer(E, HEADS, 2, 1, **settings)
        result[f"encoder/{name}"] = case(encoder, dict(src=src), src_key_padding_mask=padding(S))
        result[f"decoder/{name}"] = case(
            nn.TransformerDecoder(decoder_layer(E, HEADS, **settings), 2, norm()), dict(tgt=tgt, memory=src),
            tgt_mask=later_of_target, tgt_is_causal=True, memory_key_padding_mask=padding(S))
        result[f"transformer/{name}"] = case(
            transformer, dict(src=src, tgt=tgt), tgt_mask=later_of_target, tgt_is_causal=True,
            src_key_padding_mask=padding(S), memory_key_padding_mask=padding(S))

    added = torch.randn(N * HEADS, S, S, generator=generator)
    layer = nn.TransformerEncoderLayer
    result |= {
        "encoder_layer/float_mask": case(layer(E, HEADS, **plain), dict(src=(S, N, E)), src_mask=added),
        "encoder_layer/causal": case(layer(E, HEADS, **plain), dict(src=(S, N, E)), src_mask=later, is_causal=True),
        "encoder_layer/unbatched": case(layer(E, HEADS, **first), dict(src=(S, E)), src_mask=ignored(S, S),
                                        src_key_padding_mask=padding(S)[1]),
        "decoder_layer/unbatched": case(nn.TransformerDecoderLayer(E, HEADS, **plain), dict(tgt=(T, E), memory=(S, E))),
    }
    return result


def packed_cases():
    """Encoders in inference with a padding mask, which Python packs without padding."""
    result = {}
    for name, norm in {"no_norm": None, "norm": nn.LayerNorm(E)}.items():
        layer = nn.TransformerEncoderLayer(E, 4, F, dropout=0.1, batch_first=True)
        encoder = randomized(nn.TransformerEncoder(layer, 2, norm)).eval()
        assert encoder.use_nested_tensor
        src, padding = torch.randn(3, S, E), torch.arange(S) >= torch.tensor([[S], [2], [S - 3]])
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = encoder(src, src_key_padding_mask=padding)
        expected = torch.zeros(E) if norm is None else norm.bias.detach()
        torch.testing.assert_close(output[padding], expected.expand(padding.sum(), E))
        result[f"packed/{name}"] = {"src": src, "src_key_padding_mask": padding, "output": output,
                                    **{key: value.detach() for key, value in encoder.named_parameters()}}
    return result


def layer_norm_cases():
    settings = {"default": ((E,), {}), "two_sizes": ((S, E), {}), "eps": ((E,), dict(eps=0.1)),
                "no_bias": ((E,), dict(bias=False)), "no_parameters": ((E,), dict(elementwise_affine=False))}
    return {f"layer_norm/{name}": case(nn.LayerNorm(shape, **options), dict(x=(N, S, E)))
            for name, (shape, options) in settings.items()}


def write(folder):
    """Writes folder/transformer.pt."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        flat = {f"{name}/{key}": tensor.contiguous()
                for name, tensors in (cases() | packed_cases() | layer_norm_cases()).items()
                for key, tensor in tensors.items()}
        torch.save(flat, pathlib.Path(folder) / "transformer.pt")
