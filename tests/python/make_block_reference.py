# SPDX-License-Identifier: MIT
"""Layers of Hugging Face's transformers with random weights, in float64, for tests/layers/transformer_block_test.cpp:
python3 make_block_reference.py FOLDER. Parameters are saved under the names that TransformerBlock has for them."""

import pathlib
import sys

try:
    import torch
    import transformers
    from transformers.models.bart.modeling_bart import BartDecoderLayer
    from transformers.models.bert.modeling_bert import BertLayer
    from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer
    from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer
    from transformers.models.gptj.modeling_gptj import GPTJBlock
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer
except ImportError:
    sys.exit(77)  # this Python lacks transformers

from make_model_reference import InFloat64

N, L, S, E, F, HEADS, HEAD = 2, 6, 5, 16, 24, 4, 4
SIZES = {"hidden_size": E, "intermediate_size": F, "num_attention_heads": HEADS, "num_hidden_layers": 2}


def causal(window=None):
    """The mask that is added to the scores."""
    distance = torch.arange(L)[:, None] - torch.arange(L)
    allowed = (distance >= 0) & (distance < (window or L))
    return torch.zeros(L, L).masked_fill(~allowed, -torch.inf).expand(N, 1, L, L)


def angles(dim, theta=10000.0):
    """(1, L, dim / 2) in float64; the models compute them in float32."""
    return (torch.arange(L)[:, None] * theta ** -(torch.arange(0, dim, 2) / dim))[None]


def tables(dim):
    both = torch.cat([angles(dim), angles(dim)], -1)
    return both.cos(), both.sin()


def linear(state, theirs, ours):
    """Weight and bias of a linear layer under our name."""
    return {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for kind in ("weight", "bias") if f"{theirs}.{kind}" in state}


def renamed(state, names):
    result = {}
    for theirs, ours in names.items():
        result |= linear(state, theirs, ours)
    return result


LLAMA_NAMES = {
    **{f"self_attn.{p}_proj": f"self_attn.{p}_proj" for p in "qkv"}, "self_attn.o_proj": "self_attn.out_proj",
    **{f"mlp.{p}_proj": f"feed_forward.{p}_proj" for p in ("gate", "up", "down")}, "input_layernorm": "self_attn_norm",
}


def llama(config):
    layer = LlamaDecoderLayer(config, 0)
    return layer, lambda x: layer(x, attention_mask=causal(), position_embeddings=tables(8)), lambda state: renamed(
        state, {**LLAMA_NAMES, "post_attention_layernorm": "feed_forward_norm"})


def gemma2(config):
    layer = Gemma2DecoderLayer(config, 0)

    def ours(state):
        names = {**LLAMA_NAMES, "post_attention_layernorm": "self_attn_post_norm",
                 "pre_feedforward_layernorm": "feed_forward_norm", "post_feedforward_layernorm": "feed_forward_post_norm"}
        return {name: tensor + 1 if "norm" in name else tensor for name, tensor in renamed(state, names).items()}

    return layer, lambda x: layer(x, attention_mask=causal(window=3), position_embeddings=tables(8)), ours


def gpt2(config):
    layer = GPT2Block(config, 0)

    def ours(state):
        names = {"ln_1": "self_attn_norm", "ln_2": "feed_forward_norm", "attn.c_proj": "self_attn.out_proj",
                 "mlp.c_fc": "feed_forward.linear1", "mlp.c_proj": "feed_forward.linear2"}
        result = renamed(state, names)
        result |= {"self_attn.in_proj_weight": state["attn.c_attn.weight"],
                   "self_attn.in_proj_bias": state["attn.c_attn.bias"]}
        # GPT-2 has the weights of linear layers transposed.
        return {name: tensor.T.contiguous() if tensor.dim() == 2 else tensor for name, tensor in result.items()}

    return layer, lambda x: layer(x, attention_mask=causal()), ours


def bert(config):
    layer = BertLayer(config)
    return layer, lambda x: layer(x), lambda state: renamed(state, {
        **{f"attention.self.{p}": f"self_attn.{p[0]}_proj" for p in ("query", "key", "value")},
        "attention.output.dense": "self_attn.out_proj", "attention.output.LayerNorm": "self_attn_norm",
        "intermediate.dense": "feed_forward.linear1", "output.dense": "feed_forward.linear2",
        "output.LayerNorm": "feed_forward_norm"})


def gptj(config):
    layer = GPTJBlock(config, 0)
    positions = (angles(2).sin(), angles(2).cos())
    return layer, lambda x: layer(x, attention_mask=causal(), position_embeddings=positions), lambda state: renamed(
        state, {**{f"attn.{p}_proj": f"self_attn.{p}_proj" for p in "qkv"}, "attn.out_proj": "self_attn.out_proj",
                "mlp.fc_in": "feed_forward.linear1", "mlp.fc_out": "feed_forward.linear2", "ln_1": "self_attn_norm"})


def gpt_neox(config):
    layer = GPTNeoXLayer(config, 0)

    def ours(state):
        result = renamed(state, {"attention.dense": "self_attn.out_proj", "input_layernorm": "self_attn_norm",
                                 "post_attention_layernorm": "feed_forward_norm",
                                 "mlp.dense_h_to_4h": "feed_forward.linear1",
                                 "mlp.dense_4h_to_h": "feed_forward.linear2"})
        for kind in ("weight", "bias"):  # query, key and value of each head are neighbours there
            rows = state[f"attention.query_key_value.{kind}"].unflatten(0, (HEADS, 3, HEAD)).transpose(0, 1)
            result[f"self_attn.in_proj_{kind}"] = rows.flatten(0, 2).contiguous()
        return result

    return layer, lambda x: layer(x, attention_mask=causal(), position_embeddings=tables(2)), ours


def dinov2(config):
    layer = Dinov2Layer(config)

    def ours(state):
        names = {theirs: f"self_attn.{p[0]}_proj" for p in ("query", "key", "value") for theirs in (
            f"attention.attention.{p}", f"attention.{p}_proj", f"attention.{p[0]}_proj") if f"{theirs}.weight" in state}
        names |= {theirs: "self_attn.out_proj" for theirs in ("attention.output.dense", "attention.o_proj",
                                                              "attention.out_proj") if f"{theirs}.weight" in state}
        names |= {"norm1": "self_attn_norm", "norm2": "feed_forward_norm", "mlp.fc1": "feed_forward.linear1",
                  "mlp.fc2": "feed_forward.linear2"}
        return renamed(state, names) | {"self_attn_scale.gamma": state["layer_scale1.lambda1"],
                                        "feed_forward_scale.gamma": state["layer_scale2.lambda1"]}

    return layer, lambda x: layer(x), ours


def bart(config, memory):
    layer = BartDecoderLayer(config)
    return layer, lambda x: layer(x, attention_mask=causal(), encoder_hidden_states=memory), lambda state: renamed(
        state, {**{f"{t}.{p}_proj": f"{o}.{p}_proj" for t, o in (("self_attn", "self_attn"), ("encoder_attn", "cross_attn"))
                   for p in "qkv"},
                "self_attn.out_proj": "self_attn.out_proj", "encoder_attn.out_proj": "cross_attn.out_proj",
                "self_attn_layer_norm": "self_attn_norm", "encoder_attn_layer_norm": "cross_attn_norm",
                "final_layer_norm": "feed_forward_norm", "fc1": "feed_forward.linear1", "fc2": "feed_forward.linear2"})


def main():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    memory = torch.randn(N, S, E)
    eager = {"attn_implementation": "eager"}
    gqa = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, **eager}
    gpt = {"n_embd": E, "n_inner": F, "n_head": HEADS, "n_layer": 2, "n_positions": 32, **eager}
    layers = {
        "llama": llama(transformers.LlamaConfig(**gqa, rms_norm_eps=1e-5)),
        "gemma2": gemma2(transformers.Gemma2Config(**gqa, sliding_window=3, query_pre_attn_scalar=16,
                                                   attn_logit_softcapping=0.5, layer_types=["sliding_attention"] * 2)),
        "gpt2": gpt2(transformers.GPT2Config(**gpt)),
        "bert": bert(transformers.BertConfig(**SIZES, **eager)),
        "gptj": gptj(transformers.GPTJConfig(**gpt, rotary_dim=2)),
        "gpt_neox": gpt_neox(transformers.GPTNeoXConfig(
            **SIZES, **eager, rope_parameters={"rope_type": "default", "rope_theta": 10000.0,
                                               "partial_rotary_factor": 0.5})),
        "dinov2": dinov2(transformers.Dinov2Config(hidden_size=E, num_attention_heads=HEADS, mlp_ratio=2, **eager)),
        "bart": bart(transformers.BartConfig(d_model=E, decoder_ffn_dim=F, decoder_attention_heads=HEADS, **eager),
                     memory),
    }
    result = {"memory": memory}
    for name, (layer, forward, ours) in layers.items():
        layer.double().eval()
        for parameter in layer.parameters():
            parameter.data = torch.randn_like(parameter) * 0.3
        x = torch.randn(N, L, E).requires_grad_()
        with InFloat64():
            y = forward(x)
        y = y[0] if isinstance(y, tuple) else y
        weight = torch.randn_like(y)
        gradients = torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])
        of_parameters = {key: g for (key, _), g in zip(layer.named_parameters(), gradients[1:])}
        result |= {f"{name}/x": x.detach(), f"{name}/output": y.detach(), f"{name}/weight": weight,
                   f"{name}/x_gradient": gradients[0]}
        state = {key: value.detach() for key, value in layer.named_parameters()}
        parameters, expected = ours(state), ours(of_parameters)
        assert len(parameters) >= 6, (name, list(state))
        for key, value in parameters.items():
            gradient = expected[key] - 1 if name == "gemma2" and "norm" in key else expected[key]
            result |= {f"{name}/parameters/{key}": value.clone(), f"{name}/gradients/{key}": gradient.clone()}
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(result, folder / "transformer_block.pt")


main()
