# SPDX-License-Identifier: MIT
"""Lines of text that are hard for a tokenizer: many scripts, accents, emoji, controls, long words."""

import random
import unicodedata

BLOCKS = [  # Latin to Korean, accents, symbols, emoji, Chinese beyond 16 bits
    (0x41, 0x7A), (0xC0, 0x24F), (0x370, 0x3FF), (0x400, 0x52F), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F),
    (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x1F00, 0x1FFF), (0x2000, 0x206F), (0x20A0, 0x20CF),
    (0x2100, 0x214F), (0x300, 0x36F), (0x3040, 0x30FF), (0x4E00, 0x4FFF), (0xAC00, 0xB000), (0xF900, 0xFAFF),
    (0x1D150, 0x1D1FF), (0x1F300, 0x1F64F), (0x1F900, 0x1F9FF), (0x20000, 0x20100),
]
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
CONTROLS = [chr(c) for c in range(32) if chr(c) not in "\n\r"]
SPACES = "\u200b\u200d\ufeff\u00ad\u0085\u2028\u3000\u00a0\x7f"
SPECIAL = ["[SEP]", "[CLS]", "[MASK]", "[UNK]", "[PAD]", "[sep]", "[", "##ing"]


def mixed_lines(words, count, seed):
    """`count` lines. Some of their words are of the list."""
    draw = random.Random(seed)
    assigned = [c for c in range(0xF0000) if unicodedata.category(chr(c)) not in ("Cn", "Cs") and c not in (10, 13)]

    def of_block():
        first, last = draw.choice(BLOCKS)
        return "".join(chr(draw.randint(first, last)) for _ in range(draw.randint(1, 8)))

    def accented():
        return "".join(c + "".join(chr(draw.randint(0x300, 0x36F)) for _ in range(draw.randint(0, 3)))
                       for c in draw.choice(words))

    kinds = {
        lambda: draw.choice(words): 16,
        lambda: draw.choice(words).upper(): 8,
        lambda: draw.choice(words) + draw.choice(words): 8,
        of_block: 16,
        accented: 5,
        lambda: "".join(chr(draw.choice(assigned)) for _ in range(draw.randint(1, 6))): 10,
        lambda: draw.choice(words) * draw.randint(10, 40): 4,
        lambda: draw.choice(SPECIAL): 4,
        lambda: "".join(draw.choices(PUNCTUATION, k=draw.randint(1, 4))): 6,
        lambda: "".join(draw.choices(CONTROLS, k=3)): 3,
        lambda: str(draw.random() * 10 ** draw.randint(0, 9)): 3,
        lambda: draw.choice(SPACES): 4,
    }
    return [draw.choice([" ", " ", "  ", "", "\t"]).join(
                kind() for kind in draw.choices(list(kinds), kinds.values(), k=draw.randint(0, 30)))
            for _ in range(count)]
