#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Makes small random models of Hugging Face's transformers, and computes their hidden states.

Usage: python3 make_model_reference.py FOLDER

FOLDER/NAME/model.safetensors has the weights, under the names of published models. FOLDER/NAME/reference.safetensors has
the inputs and the results: `float32.N` and `float64.N` are the input of layer N, and for the last N the model's output.
"""

import sys
from pathlib import Path

try:
    import transformers
except ImportError:
    print("this Python has no transformers")
    sys.exit(77)  # ctest then reports a skipped test

import torch
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode


class InFloat64(TorchFunctionMode):
    """Computes in float64 what a model converts to float32: norms, softmax, angles of rotary embeddings."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        wide = {torch.float32: torch.float64}
        if function is torch.Tensor.float:
            return args[0].double()
        if isinstance(kwargs.get("dtype"), torch.dtype):
            kwargs["dtype"] = wide.get(kwargs["dtype"], kwargs["dtype"])
        args = tuple(wide.get(arg, arg) if isinstance(arg, torch.dtype) else arg for arg in args)
        return function(*args, **kwargs)


def randomize(model):
    """Draws weights with which every part of the model matters."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # a bias, or the weight of a norm: near its initial 0 or 1
            parameter.data += 0.2 * torch.randn_like(parameter)
        elif "embed" in name or "wte" in name or "wpe" in name or "shared" in name or "relative" in name:
            parameter.data.normal_()
        else:
            parameter.data.normal_(0.0, 1.3 / parameter.shape[-1] ** 0.5)


def restore_float64(model):
    """Computes constants anew of which a converted model has float32 values."""
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            make = module.compute_default_rope_parameters
            if module.rope_type != "default":
                make = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[module.rope_type]
            with InFloat64():
                module.inv_freq = make(module.config, device="cpu")[0].double()
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)


def states_of(model, inputs):
    results = model(**inputs, output_hidden_states=True)
    return [*results.hidden_states[:-1], results.last_hidden_state]


def write(folder, model, inputs):
    model = model.eval()
    randomize(model)
    model.save_pretrained(folder)
    tensors = dict(inputs)
    for dtype in ("float32", "float64"):
        model = model.to(getattr(torch, dtype))
        given = {name: tensor.to(model.dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
        if dtype == "float64":
            restore_float64(model)
            with InFloat64():
                states = states_of(model, given)
        else:
            states = states_of(model, given)
        tensors |= {f"{dtype}.{i}": state.contiguous() for i, state in enumerate(states)}
    difference = max((tensors[f"float64.{i}"] - tensors[f"float32.{i}"]).abs().max() for i in range(len(states)))
    largest = max(tensors[f"float64.{i}"].abs().max() for i in range(len(states)))
    print(f"{folder.name}: {len(states)} states, largest {largest:.3g}, float32 differs by {difference:.2g}")
    save_file(tensors, folder / "reference.safetensors")


def main(folder):
    torch.manual_seed(1)
    ids = {"input_ids": torch.randint(1, 60, (2, 11))}
    padded = ids | {"attention_mask": (torch.arange(11) < torch.tensor([[11], [7]])).long()}
    common = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
              "intermediate_size": 48, "attn_implementation": "eager"}
    llama = common | {"num_key_value_heads": 2, "max_position_embeddings": 64}
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    t5 = {"vocab_size": 60, "d_model": 32, "d_kv": 10, "d_ff": 48, "num_layers": 3, "num_heads": 4,
          "relative_attention_num_buckets": 8, "relative_attention_max_distance": 10, "attn_implementation": "eager"}
    models = {
        "llama": (transformers.LlamaModel(transformers.LlamaConfig(**llama)), ids),
        "llama3": (transformers.LlamaModel(transformers.LlamaConfig(**llama, rope_parameters=rope)), ids),
        "gpt2": (
            transformers.GPT2Model(transformers.GPT2Config(
                vocab_size=60, n_positions=16, n_embd=32, n_layer=3, n_head=4, attn_implementation="eager")),
            ids,
        ),
        "bert": (
            transformers.BertModel(transformers.BertConfig(**common, max_position_embeddings=16), add_pooling_layer=False),
            padded | {"token_type_ids": (torch.arange(11) > 4).long().expand(2, -1).contiguous()},
        ),
        "vit": (
            transformers.ViTModel(
                transformers.ViTConfig(**common, image_size=12, patch_size=4, num_channels=3), add_pooling_layer=False),
            {"pixel_values": torch.randn(2, 3, 12, 12)},
        ),
        "gemma2": (
            transformers.Gemma2Model(transformers.Gemma2Config(**llama | {
                "num_hidden_layers": 4, "head_dim": 12, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 3.0,
                "sliding_window": 4})),
            ids,
        ),
        "t5_encoder": (transformers.T5EncoderModel(transformers.T5Config(**t5)), padded),
        "t5_encoder_gated": (
            transformers.T5EncoderModel(transformers.T5Config(**t5, feed_forward_proj="gated-gelu")), padded),
    }
    for name, (model, inputs) in models.items():
        write(folder / name, model, inputs)


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]))
