#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compares the speed of examples/sentence_embedding with PyTorch, ONNX Runtime and OpenVINO: all-MiniLM-L6-v2 on 2,000 texts.

    cmake --workflow --preset sentence_embedding
    <ATTEND_MODELS_PYTHON of build/test/CMakeCache.txt> benchmarks/sentence_embedding/run.py build/example/sentence_embedding <model>

<model> is the folder with config.json, model.safetensors and vocab.txt. The first run makes a virtual environment with
the peers in build/sentence_embedding. The peers get the texts sorted by length, in batches of 32, tokenized by the
package tokenizers. All take turns; the numbers are medians.
"""

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

FOLDER = Path("build/sentence_embedding")
PEERS = ["onnx==1.23.2", "onnxruntime==1.32.0", "openvino==2026.4.1", "onnxscript==0.7.2"]
MAX_TOKENS = 256


def in_environment_of_peers():
    """Runs this program again in an environment that has the peers."""
    python = FOLDER / "venv" / "bin" / "python"
    if not (FOLDER / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", FOLDER / "venv"], check=True)
        packages = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True,
                                  capture_output=True, text=True).stdout.strip()
        Path(packages, "models.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
        (FOLDER / "complete").touch()
    os.execv(python, [python, __file__, *sys.argv[1:]])


def sentences(count):
    """Paragraphs and sentences of Python's own documentation, of 6 to 256 tokens."""
    paragraphs = [re.sub(r"\s+", " ", part).strip() for name in sorted(topics) for part in topics[name].split("\n\n")]
    prose = [text for text in paragraphs
             if len(text) > 20 and sum(c.isalpha() or c == " " for c in text) > 0.8 * len(text)]
    pool = sorted({*prose, *(part for text in prose for part in re.split(r"(?<=[.!?]) ", text) if len(part) > 12)})
    return random.Random(7).sample(pool, count)


def tokenizer_of(folder):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", tokens.index("[SEP]")), ("[CLS]", tokens.index("[CLS]")))
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def bert_of(folder, attention):
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    config = BertConfig.from_json_file(folder / "config.json")
    config._attn_implementation = attention
    model = BertModel(config, add_pooling_layer=False).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return model


def plain_bert(folder):
    """BERT in the operators that the optimizer of ONNX Runtime knows, with the weights of Hugging Face's model."""
    import torch

    bert = bert_of(folder, "eager")

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = bert

        def forward(self, input_ids, attention_mask):
            parts = self.bert.embeddings
            length = input_ids.shape[1]
            x = parts.word_embeddings(input_ids) + parts.token_type_embeddings(torch.zeros_like(input_ids))
            x = parts.LayerNorm(x + parts.position_embeddings(parts.position_ids[:, :length]))
            mask = (1.0 - attention_mask[:, None, None, :].float()) * -10000.0
            for layer in self.bert.encoder.layer:
                attention, output = layer.attention.self, layer.attention.output

                def heads(y):
                    return y.view(y.shape[0], y.shape[1], 12, 32).permute(0, 2, 1, 3)

                q, k, v = heads(attention.query(x)), heads(attention.key(x)), heads(attention.value(x))
                weights = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / 32**0.5 + mask, -1)
                mixed = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
                mixed = mixed.view(mixed.shape[0], mixed.shape[1], 384)
                x = output.LayerNorm(output.dense(mixed) + x)
                hidden = torch.nn.functional.gelu(layer.intermediate.dense(x))
                x = layer.output.LayerNorm(layer.output.dense(hidden) + x)
            return x

    return Plain().eval()


def exported(folder):
    import torch

    path = FOLDER / "model.onnx"
    if not path.exists():
        example = (torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long))
        names = ["input_ids", "attention_mask"]
        torch.onnx.export(plain_bert(folder), example, path, input_names=names, output_names=["y"], dynamo=False,
                          opset_version=17, dynamic_axes={name: {0: "batch", 1: "length"} for name in names})
    return path


class Torch:
    def __init__(self, folder, threads):
        import torch

        torch.set_num_threads(threads)
        self.torch, self.model = torch, bert_of(folder, "sdpa")

    def __call__(self, ids, mask):
        with self.torch.inference_mode():
            return self.model(input_ids=self.torch.from_numpy(ids),
                              attention_mask=self.torch.from_numpy(mask)).last_hidden_state.numpy()


class OnnxRuntime:
    def __init__(self, folder, threads):
        import onnxruntime
        from onnxruntime.transformers import optimizer

        optimized = FOLDER / "optimized.onnx"
        if not optimized.exists():
            model = optimizer.optimize_model(str(exported(folder)), model_type="bert", num_heads=12, hidden_size=384)
            print("ONNX Runtime fuses", model.get_fused_operator_statistics())
            model.save_model_to_file(str(optimized))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(optimized), options, providers=["CPUExecutionProvider"])

    def __call__(self, ids, mask):
        return self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


class OpenVino:
    def __init__(self, folder, threads):
        import openvino

        self.model = openvino.Core().compile_model(
            openvino.convert_model(exported(folder)), "CPU",
            {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"})

    def __call__(self, ids, mask):
        return self.model({"input_ids": ids, "attention_mask": mask})[0]


def embedded(model, tokenizer, lines, batch_size=32):
    import numpy as np

    encoded = [encoding.ids for encoding in tokenizer.encode_batch(lines)]
    order = sorted(range(len(lines)), key=lambda i: len(encoded[i]))
    vectors = np.empty((len(lines), 384), np.float32)
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        length = max(len(encoded[i]) for i in rows)
        ids, mask = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), np.int64)
        for row, i in enumerate(rows):
            ids[row, : len(encoded[i])] = encoded[i]
            mask[row, : len(encoded[i])] = 1
        means = (model(ids, mask) * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        vectors[rows] = means / np.linalg.norm(means, axis=1, keepdims=True)
    return vectors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="the program sentence_embedding")
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--threads", type=int, default=2, help="threads (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the result is their median (default: 3)")
    parser.add_argument("--sentences", type=int, default=2000, help="number of texts (default: 2000)")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if sys.prefix != str((FOLDER / "venv").resolve()):
        in_environment_of_peers()
    import numpy as np

    lines = sentences(arguments.sentences)
    (FOLDER / "lines.txt").write_text("\n".join(lines) + "\n")
    tokenizer = tokenizer_of(arguments.model)
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(lines)]
    print(f"{len(lines)} sentences, {sum(lengths)} tokens, median {statistics.median(lengths)}, most {max(lengths)}")

    def ours():
        result = subprocess.run([arguments.program, "embed", FOLDER / "lines.txt", "--model", arguments.model,
                                 "--threads", str(arguments.threads), "--output", FOLDER / "vectors.npy"],
                                check=True, capture_output=True, text=True)
        return float(re.search(r"texts, ([0-9.]+) a second", result.stderr)[1])

    peers = {"PyTorch": Torch, "ONNX Runtime": OnnxRuntime, "OpenVINO": OpenVino}
    models = {name: make(arguments.model, arguments.threads) for name, make in peers.items()}
    rates = {"attend": [], **{name: [] for name in peers}}
    vectors = {name: embedded(model, tokenizer, lines[:64]) for name, model in models.items()}  # warm
    for _ in range(arguments.rounds):
        rates["attend"].append(ours())
        for name, model in models.items():
            begin = time.perf_counter()
            vectors[name] = embedded(model, tokenizer, lines)
            rates[name].append(len(lines) / (time.perf_counter() - begin))
    vectors["attend"] = np.load(FOLDER / "vectors.npy")

    def neighbours(of):
        return np.argsort(of @ of.T, axis=1)[:, -6:]

    for name, values in rates.items():
        ratio = statistics.median(rates["attend"]) / statistics.median(values)
        error = np.abs(vectors[name] - vectors["PyTorch"]).max()
        same = (neighbours(vectors[name]) == neighbours(vectors["PyTorch"])).all(1).mean()
        print(f"{name:14} {statistics.median(values):7.1f} sentences/s  attend is {ratio:.2f} times as fast; largest "
              f"difference from PyTorch {error:.1e}, same five neighbours {100 * same:.1f} %")

    (FOLDER / "line.txt").write_text(lines[0] + "\n")
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run([arguments.program, "search", FOLDER / "line.txt", "a query", "--model", arguments.model],
                       check=True, capture_output=True)
        seconds.append(time.perf_counter() - begin)
    print(f"start to first result: {statistics.median(seconds):.2f} s")


if __name__ == "__main__":
    main()
