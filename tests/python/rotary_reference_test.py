# SPDX-License-Identifier: MIT
"""Compares the formulas of rotary_reference.py with Hugging Face's transformers."""

import sys
import unittest

try:
    import torch
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.gptj import modeling_gptj
    from transformers.models.llama import modeling_llama
except ImportError:
    sys.exit(77)  # this Python lacks transformers

import rotary_reference


def frequencies(head_dim, rope_type, theta, max_length, length=None, **parameters):
    """What transformers computes, in float32."""
    config = transformers.LlamaConfig(
        hidden_size=head_dim, num_attention_heads=1, max_position_embeddings=max_length,
        rope_parameters={"rope_type": rope_type, "rope_theta": theta, **parameters})
    return ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), length)


class RotaryReferenceTest(unittest.TestCase):
    def check(self, ours, theirs):
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=0)
        self.assertAlmostEqual(ours[1], theirs[1], places=12)

    def test_linear(self):
        self.check(rotary_reference.linear(16, 10000.0, 4.0), frequencies(16, "linear", 10000.0, 2048, factor=4.0))

    def test_dynamic(self):
        for length in (5, 8, 9, 13, 100):
            self.check(rotary_reference.dynamic(16, 10000.0, 2.0, 8, length),
                       frequencies(16, "dynamic", 10000.0, 8, length, factor=2.0))

    def test_yarn(self):
        for options in [
                {},
                {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
                {"mscale": 0.7, "mscale_all_dim": 0.4},
                {"attention_factor": 1.25}]:
            self.check(rotary_reference.yarn(64, 10000.0, 8.0, 4096, **options),
                       frequencies(64, "yarn", 10000.0, 32768, factor=8.0, original_max_position_embeddings=4096,
                                   **options))

    def test_llama3(self):
        for head_dim, theta, factor, low, high, length in [(128, 500000.0, 8.0, 1.0, 4.0, 8192),
                                                           (64, 10000.0, 4.0, 2.0, 16.0, 1024)]:
            self.check(rotary_reference.llama3(head_dim, theta, factor, low, high, length),
                       frequencies(head_dim, "llama3", theta, 8 * length, factor=factor, low_freq_factor=low,
                                   high_freq_factor=high, original_max_position_embeddings=length))

    def test_rotation(self):
        x, angles = torch.randn(2, 3, 5, 8), torch.randn(5, 4)
        both = torch.cat([angles, angles], -1)[None]
        theirs, _ = modeling_llama.apply_rotary_pos_emb(x, x, both.cos(), both.sin())
        torch.testing.assert_close(rotary_reference.rotated(x, angles, 1.0, False), theirs)
        theirs = modeling_gptj.apply_rotary_pos_emb(x.transpose(1, 2), angles.sin()[None], angles.cos()[None])
        torch.testing.assert_close(rotary_reference.rotated(x, angles, 1.0, True), theirs.transpose(1, 2))


if __name__ == "__main__":
    unittest.main()
