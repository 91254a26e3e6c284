#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs examples/sentence_embedding as a user does, and compares it with the packages tokenizers and transformers."""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

try:
    import numpy as np
    import torch
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import BertProcessing
    from transformers import BertConfig, BertModel
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

from mixed_text import mixed_lines

PROGRAM = os.environ["ATTEND_EXAMPLE_PROGRAM"]
MODEL = Path(os.environ["ATTEND_EXAMPLE_DATA"])
VOCABULARY = (MODEL / "vocab.txt").read_text(encoding="utf-8").splitlines()
WORDS = [token.removeprefix("##") for token in VOCABULARY if len(token) > 2]
SENTENCES = [
    "A cat sits on the mat.", "The kitten sleeps on a rug.", "Stock prices fell sharply today.",
    "Shares lost value this afternoon.", "She plays the violin in an orchestra.", "", "Ünïcödé, 中文 and 🙂!",
    "How do I bake bread?", "A recipe for a sourdough loaf.", " ".join(WORDS[2000:2400]),
]


def run(*arguments, text=None):
    return subprocess.run([PROGRAM, *arguments], capture_output=True, encoding="utf-8", input=text)


def reference_tokenizer(max_tokens):
    tokenizer = Tokenizer(WordPiece({token: i for i, token in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", VOCABULARY.index("[SEP]")), ("[CLS]", VOCABULARY.index("[CLS]")))
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def reference_embeddings(lines, max_tokens=256):
    """One line at a time, so that there is no padding."""
    config = BertConfig.from_json_file(MODEL / "config.json")
    config._attn_implementation = "sdpa"
    model = BertModel(config, add_pooling_layer=False).eval()
    weights = {name: torch.from_numpy(array) for name, array in load_file(MODEL / "model.safetensors").items()}
    model.load_state_dict(weights, strict=False)
    vectors = []
    with torch.inference_mode():
        for encoding in reference_tokenizer(max_tokens).encode_batch(lines):
            mean = model(torch.tensor([encoding.ids])).last_hidden_state.mean(1)
            vectors.append(torch.nn.functional.normalize(mean)[0].numpy())
    return np.stack(vectors)


class SentenceEmbedding(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)

    def write(self, lines):
        path = self.folder / "lines.txt"
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="")
        return path

    def embed(self, lines, name="vectors.npy", *options):
        result = run("embed", self.write(lines), "--output", self.folder / name, *options)
        self.assertEqual(result.returncode, 0, result.stderr)
        return self.folder / name

    def test_tokens_equal_those_of_the_package_tokenizers_on_10000_lines_of_mixed_text(self):
        lines = mixed_lines(WORDS, count=10000, seed=1)
        result = run("tokens", self.write(lines), "--max-tokens", "512")
        self.assertEqual(result.returncode, 0, result.stderr)
        for line, ids, expected in zip(lines, result.stdout.splitlines(), reference_tokenizer(512).encode_batch(lines),
                                       strict=True):
            self.assertEqual([int(number) for number in ids.split()], expected.ids, ascii(line))

    def test_bytes_that_are_not_utf8_are_left_out(self):
        (self.folder / "lines.txt").write_bytes(b"caf\xc3\xa9 \xff\xc3 ol\xe9\n\xed\xa0\x80\xf5\xc0\x80hi\n")
        result = run("tokens", self.folder / "lines.txt")
        expected = reference_tokenizer(256).encode_batch(["café  ol", "hi"])
        self.assertEqual(result.stdout.splitlines(), [" ".join(map(str, line.ids)) + " " for line in expected])

    def test_embeddings_equal_those_of_transformers_and_have_the_same_neighbours(self):
        lines = SENTENCES + mixed_lines(WORDS, count=20, seed=2)
        vectors, expected = np.load(self.embed(lines)), reference_embeddings(lines)
        self.assertEqual(vectors.dtype, np.float32)
        np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
        for of_ours, of_theirs in zip(vectors @ vectors.T, expected @ expected.T):
            self.assertEqual(list(np.argsort(of_ours)[-5:]), list(np.argsort(of_theirs)[-5:]))

    def test_longer_texts_are_cut(self):
        vectors = np.load(self.embed(SENTENCES, "vectors.npy", "--max-tokens", "16"))
        np.testing.assert_allclose(vectors, reference_embeddings(SENTENCES, 16), rtol=0, atol=1e-5)

    def test_a_safetensors_file_has_the_same_vectors(self):
        vectors = np.load(self.embed(SENTENCES))
        np.testing.assert_array_equal(load_file(self.embed(SENTENCES, "vectors.safetensors"))["embeddings"], vectors)

    def test_search_prints_the_nearest_lines_with_scores(self):
        result = run("search", self.write(SENTENCES), "baking", "--top", "2")
        self.assertEqual(result.returncode, 0, result.stderr)
        first, second = result.stdout.splitlines()
        self.assertRegex(first, r"^0\.\d{3}  [89]: ")
        self.assertRegex(second, r"^0\.\d{3}  [89]: ")
        self.assertGreaterEqual(first[:5], second[:5])

    def test_a_minus_reads_the_standard_input(self):
        result = run("search", "-", "music", "--top", "1", text="\n".join(SENTENCES))
        self.assertIn("  5: She plays the violin", result.stdout)

    def test_the_number_of_a_token_is_that_of_its_last_line(self):
        (self.folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\na\n[SEP]\na\n[MASK]\nb\n")
        result = run("tokens", "-", "--model", self.folder, text="a b")
        self.assertEqual(result.stdout, "2 5 7 4 \n")

    def test_errors_name_the_cause(self):
        copy = self.folder / "model"
        copy.mkdir()
        shutil.copy(MODEL / "vocab.txt", copy)
        (copy / "config.json").write_text('{"hidden_size": 384, "hidden_act": "relu"}')
        lines = self.write(SENTENCES)
        empty = self.folder / "empty.txt"
        empty.write_text("")
        for arguments, message in [
            (("embed", lines, "--output", "vectors.txt"), "must be a name that ends in .npy or .safetensors"),
            (("embed", self.folder / "none.txt"), "cannot read"),
            (("embed", empty), "has no lines"),
            (("embed", lines, "--model", self.folder), "cannot read a vocabulary"),
            (("embed", lines, "--model", copy), "hidden_act must be gelu"),
            (("embed", lines, "--max-tokens", "513"), "at most 512 tokens"),
            (("embed", lines, "--model", self.folder, "--output", self.folder / "none" / "vectors.npy"), "cannot write"),
        ]:
            result = run(*arguments)
            self.assertIn(message, result.stderr)
            self.assertNotEqual(result.returncode, 0)


if __name__ == "__main__":
    unittest.main()
