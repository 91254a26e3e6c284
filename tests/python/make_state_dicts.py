#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes state dicts of Python for the tests of attend/io: python3 make_state_dicts.py FOLDER.

KIND.pt is a file that attend::load_torch_file loads. expected.pt is a plain dictionary, which torch::pickle_load reads.
For each tensor of each file it has the bytes of the elements, by the name KIND|TENSOR|DTYPE|SIZES|STRIDES.

notebook_NET.pt and notebook_NET.safetensors are the nets of the notebook "Attention intuition", and notebook.pt has a
signal and their outputs, in float64 and float32.
"""

import collections
import os
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn


class Tied(nn.Module):
    """Two modules with one weight, as the embedding and the output layer of a language model."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.output = nn.Linear(4, 5, bias=False)
        self.output.weight = self.embedding.weight


class RunsACommand:
    """Its pickle calls os.system when Python's pickle module loads it."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


DTYPES = ["float64", "float32", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
          "uint64", "bool", "complex32", "complex64", "complex128", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2",
          "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"]


def tensors_of_every_dtype():
    """Random bytes, the same for all dtypes."""
    names = [name for name in DTYPES if hasattr(torch, name)]
    data = torch.randint(0, 256, (48,), dtype=torch.uint8)
    return {name: data % 2 == 1 if name == "bool" else data.clone().view(getattr(torch, name)) for name in names}


def modules():
    """State dicts of modules, which have an attribute _metadata."""
    trained = nn.Sequential(nn.Conv1d(2, 3, 5), nn.BatchNorm1d(3), nn.ReLU(), nn.Conv1d(3, 1, 5, bias=False))
    trained(torch.randn(4, 2, 20))
    return {
        "linear": nn.Linear(3, 4),
        "convolutions": trained,
        "multihead_attention": nn.MultiheadAttention(8, 2, kdim=5, add_bias_kv=True),
        "encoder": nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2),
        "lstm": nn.LSTM(3, 4, num_layers=2, bidirectional=True),
        "tied": Tied(),
        "layer": nn.MultiheadAttention(64, 4),
        "half": nn.Linear(3, 4).to(torch.bfloat16),
        "no_parameters": nn.ReLU(),
    }


def views():
    storage = torch.arange(60.0)
    return {
        "whole": storage,
        "offset": storage[7:19],
        "matrix": storage.view(6, 10),
        "transposed": storage.view(6, 10).t(),
        "part": storage.view(6, 10)[1:4, 2::3],
        "diagonal": storage.view(6, 10).diagonal(),
        "expanded": storage[3].expand(4, 5),
        "channels_last": torch.arange(48.0).view(2, 3, 2, 4).contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.5),
        "scalar of a storage": storage[11],
        "empty": torch.empty(0),
        "empty matrix": torch.empty(3, 0, 2),
        "empty view": storage[5:5],
    }


def kinds():
    """What is saved, by the name of the file. The state dict is the saved dict, or its entry "model"."""
    for name, module in modules().items():
        yield name, module.state_dict(), {}
    yield "views", views(), {}
    yield "ordered", collections.OrderedDict(views()), {}
    yield "dtypes", tensors_of_every_dtype(), {}
    yield "parameters", dict(nn.Linear(3, 4).named_parameters()), {}
    yield "names", {name: torch.rand(2) for name in ["", " ", "a.b.c", "größe", "层.权重", "🙂", 'a"b\\c', "x" * 500]}, {}
    yield "many", {f"layer.{i}.weight": torch.rand(i % 3) for i in range(3000)}, {}
    for protocol in (3, 4, 5):
        yield f"protocol_{protocol}", nn.Linear(3, 4).state_dict(), {"pickle_protocol": protocol}
    model = nn.Linear(3, 4)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.95))
    model(torch.rand(2, 3)).sum().backward()
    optimizer.step()
    yield "checkpoint", {
        "epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "loss": [0.5, 0.25], "best": None,
        "done": False, "size": model.weight.shape, "dtype": torch.float32, "seed": 2**63 + 1, "minus": -7, "text": "é",
    }, {}


def rewritten(source, target, change):
    """Copies an archive, where change(info, content) may change an entry."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            copy = zipfile.ZipInfo(info.filename)
            content = change(copy, old.read(info))
            if content is not None:
                new.writestr(copy, content)


def refused(folder):
    """Files that are no state dict, or none that attend reads."""
    state_dict = nn.Linear(2, 2).state_dict()
    torch.save(state_dict, folder / "old_format.pt", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.rand(2), "b": RunsACommand(f"touch '{folder}/executed'")}, folder / "command.pt")
    torch.save(nn.Linear(2, 2), folder / "whole_module.pt")
    torch.save(torch.rand(2), folder / "tensor.pt")
    torch.save([torch.rand(2)], folder / "list.pt")
    torch.save({"a": torch.rand(3).to_sparse()}, folder / "sparse.pt")
    torch.save({"a": torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.quint8)}, folder / "quantized.pt")
    torch.save({"a": torch.empty(3, device="meta")}, folder / "meta.pt")
    flat = torch.zeros([1] * 64)
    torch.save({str(i): flat for i in range(2000)}, folder / "many_dimensions.pt")
    torch.save({"a": torch.tensor([1 + 2j]).conj()}, folder / "conjugate.pt")
    torch.save({"a": torch.tensor([1 + 2j]).conj().imag}, folder / "negative.pt")
    torch.save({0: torch.rand(2)}, folder / "number_as_name.pt")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), folder / "torchscript.pt")
    torch.save(state_dict, folder / "small.pt")

    def compressed(info, content):
        info.compress_type = zipfile.ZIP_DEFLATED
        return content

    rewritten(folder / "small.pt", folder / "compressed.pt", compressed)
    rewritten(folder / "small.pt", folder / "big_endian.pt",
              lambda info, content: b"big" if info.filename.endswith("byteorder") else content)
    rewritten(folder / "small.pt", folder / "no_storage.pt",
              lambda info, content: None if info.filename.endswith("data/1") else content)
    rewritten(folder / "small.pt", folder / "short_storage.pt",
              lambda info, content: content[:4] if info.filename.endswith("data/1") else content)
    rewritten(folder / "small.pt", folder / "rewritten.pt", lambda info, content: content)
    torch.save({"a": torch.ones(3, dtype=torch.bool)}, folder / "bool.pt")
    rewritten(folder / "bool.pt", folder / "wrong_bool.pt",
              lambda info, content: b"\1\2\1" if info.filename.endswith("data/0") else content)


class SelfAttentionLayer(nn.Module):
    """The layer of the notebook, with its names."""

    def __init__(self, in_dim, out_dim, key_dim):
        super().__init__()
        self.conv_Q = nn.Conv1d(in_dim, key_dim, kernel_size=1, bias=False)
        self.conv_K = nn.Conv1d(in_dim, key_dim, kernel_size=1, bias=False)
        self.conv_V = nn.Conv1d(in_dim, out_dim, kernel_size=1, bias=False)

    def forward(self, x):
        Q = self.conv_Q(x)
        K = self.conv_K(x)
        V = self.conv_V(x)
        A = Q.transpose(1, 2).matmul(K).softmax(2)
        y = A.matmul(V.transpose(1, 2)).transpose(1, 2)
        return y


def notebook_nets():
    def convolution(in_channels, out_channels):
        return nn.Conv1d(in_channels, out_channels, kernel_size=(5,), padding="same")

    relu = nn.ReLU()
    yield "convolution", nn.Sequential(convolution(1, 64), relu, convolution(64, 64), relu, convolution(64, 64), relu,
                                       convolution(64, 64), relu, convolution(64, 1))
    yield "attention", nn.Sequential(convolution(1, 64), relu, convolution(64, 64), relu,
                                     SelfAttentionLayer(in_dim=64, out_dim=64, key_dim=64), convolution(64, 64), relu,
                                     convolution(64, 1))


@torch.no_grad()
def notebook(folder):
    signal = torch.rand(3, 1, 100)
    results = {"signal": signal}
    for name, net in notebook_nets():
        torch.save(net.state_dict(), folder / f"notebook_{name}.pt")
        save_file(net.state_dict(), folder / f"notebook_{name}.safetensors")
        results[f"{name}_float32"] = net(signal)
        results[f"{name}_float64"] = net.double()(signal.double())
    torch.save(results, folder / "notebook.pt")


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "executed").unlink(missing_ok=True)
    torch.manual_seed(3)
    expected = {}
    for kind, saved, options in kinds():
        torch.save(saved, folder / f"{kind}.pt", **options)
        for name, tensor in saved.get("model", saved).items():
            tensor = tensor.detach()
            shape = [str(tensor.dtype), str(list(tensor.shape)), str(list(tensor.stride()))]
            expected["|".join([kind, name, *shape])] = tensor.clone(memory_format=torch.contiguous_format).flatten().view(
                torch.uint8)
    torch.save(expected, folder / "expected.pt")
    refused(folder)
    notebook(folder)


if __name__ == "__main__":
    main()
