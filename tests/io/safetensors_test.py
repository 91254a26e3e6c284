# SPDX-License-Identifier: MIT
"""Python's safetensors package reads the files of attend, and attend reads those of the package.

The environment variable ATTEND_SAFETENSORS_PROGRAM is the program of safetensors_program.cpp.
"""

import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import unittest

try:
    import safetensors.torch
    import torch
    from safetensors import SafetensorError, safe_open
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

# attend's name of each dtype, and the number of bytes of an element.
DTYPES = {
    torch.bool: "Bool", torch.uint8: "Byte", torch.int8: "Char", torch.int16: "Short", torch.uint16: "UInt16",
    torch.int32: "Int", torch.uint32: "UInt32", torch.int64: "Long", torch.uint64: "UInt64",
    torch.float16: "Half", torch.bfloat16: "BFloat16", torch.float32: "Float", torch.float64: "Double",
    torch.complex64: "ComplexFloat", torch.float8_e4m3fn: "Float8_e4m3fn", torch.float8_e5m2: "Float8_e5m2",
    torch.float8_e4m3fnuz: "Float8_e4m3fnuz", torch.float8_e5m2fnuz: "Float8_e5m2fnuz",
    torch.float8_e8m0fnu: "Float8_e8m0fnu",
}
if hasattr(torch, "float4_e2m1fn_x2"):
    DTYPES[torch.float4_e2m1fn_x2] = "Float4_e2m1fn_x2"
FLOAT4 = getattr(torch, "float4_e2m1fn_x2", None)
NAMES = ["weight", "0-d", "ünïcödé", "名前", "😀", 'with "quotes" and \\', "tab\tnewline\nnull\0", "a b", "encoder.layers.0.bias",
         "", "x" * 300, "\u2028", "\x7f"]


def random_tensor(generator, sizes, dtype):
    """A contiguous tensor of random bytes, with bool elements 0 and 1."""
    count = torch.empty(sizes, dtype=dtype).numel() * torch.empty(0, dtype=dtype).element_size()
    data = torch.tensor([generator.randrange(2 if dtype == torch.bool else 256) for _ in range(count)], dtype=torch.uint8)
    return data.view(dtype).reshape(sizes)


def random_sizes(generator, dtype):
    least = 1 if dtype == FLOAT4 else 0
    return [generator.randrange(5) for _ in range(generator.randrange(least, 5))]


def random_tensors(generator):
    tensors = {}
    for name in generator.sample(NAMES, generator.randrange(1, 7)):
        dtype = generator.choice(list(DTYPES))
        tensors[name] = random_tensor(generator, random_sizes(generator, dtype), dtype)
    return tensors


def files_of_the_package():
    """200 pairs of tensors and metadata, of the kinds that the tests of the package have."""
    generator = random.Random(1)
    cases = [({}, None), ({}, {"framework": "pt"}), ({}, {"": "", "ü\n\"": "\\😀"})]
    for dtype in DTYPES:
        cases += [({"test": random_tensor(generator, [2, 2], dtype)}, None),
                  ({"test": torch.empty([2, 0], dtype=dtype), "test2": torch.empty([0], dtype=dtype)}, None)]
        if dtype != FLOAT4:
            cases.append(({"scalar": random_tensor(generator, [], dtype)}, {"format": "pt"}))
    part = torch.arange(100.0).reshape(10, 10)
    cases.append(({"a": part[1:], "b": part[:1]}, None))
    cases.append(({"large": torch.arange(50_000), "small": torch.ones(3, dtype=torch.bool)}, None))
    cases.append(({f"layer.{i}.weight": torch.full([3], float(i)) for i in range(1_000)}, None))
    cases.append(({"dimensions": torch.ones([1] * 60 + [2] * 4)}, None))
    while len(cases) < 200:
        metadata = {generator.choice(NAMES): generator.choice(NAMES) for _ in range(generator.randrange(4))}
        cases.append((random_tensors(generator), metadata or None))
    return cases


def bytes_of(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def describe(tensors):
    """The lines that the program prints for `load`."""
    lines = []
    for name in sorted(tensors, key=lambda name: name.encode()):
        tensor = tensors[name]
        flat = tensor.flatten()[:5]
        if tensor.dtype == FLOAT4:
            values = [f" {byte}" for byte in bytes_of(flat)]
        else:
            flat = torch.view_as_real(flat).flatten() if flat.is_complex() else flat
            values = [f" {value:.17g}" for value in flat.double().tolist()]
        sizes = "".join(f" {size}" for size in tensor.shape)
        lines.append(f"{name.encode().hex()} {DTYPES[tensor.dtype]}{sizes} :{''.join(values)}".replace(" -nan", " nan"))
    return lines


class Safetensors(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.program = subprocess.Popen([os.environ["ATTEND_SAFETENSORS_PROGRAM"]], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, text=True)
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)

    @classmethod
    def tearDownClass(cls):
        cls.program.communicate()
        assert cls.program.returncode == 0, "the program did not end well"

    def ask(self, *words):
        self.program.stdin.write(" ".join(map(str, words)) + "\n")
        self.program.stdin.flush()
        lines = []
        while (line := self.program.stdout.readline()) != ".\n":
            self.assertTrue(line, "the program has ended")
            lines.append(line.rstrip("\n").replace(" -nan", " nan"))
        return lines

    def assert_equal_tensors(self, found, expected):
        self.assertEqual(sorted(found), sorted(expected))
        for name, tensor in expected.items():
            self.assertEqual(found[name].dtype, tensor.dtype, name)
            self.assertEqual(found[name].shape, tensor.shape, name)
            self.assertEqual(bytes_of(found[name]), bytes_of(tensor), name)

    def test_200_files_go_both_ways(self):
        theirs, ours = self.folder / "theirs.safetensors", self.folder / "ours.safetensors"
        cases = files_of_the_package()
        self.assertEqual(len(cases), 200)
        for i, (tensors, metadata) in enumerate(cases):
            with self.subTest(case=i, names=list(tensors)[:10], metadata=metadata):
                safetensors.torch.save_file(tensors, theirs, metadata)
                self.assertEqual(self.ask("load", theirs), describe(tensors))
                self.assertEqual(self.ask("copy", theirs, ours), [str(ours)])
                self.assert_equal_tensors(safetensors.torch.load_file(ours), tensors)
                with safe_open(ours, framework="pt") as file:
                    self.assertEqual(file.metadata() or {}, metadata or {})
                if len(metadata or {}) < 2:  # the package writes its metadata in any order
                    self.assertEqual(ours.read_bytes(), theirs.read_bytes())

    def test_sharded_files_go_both_ways(self):
        generator = random.Random(2)
        for i in range(20):
            tensors = random_tensors(generator) | {f"{k}": random_tensor(generator, [7], torch.int32) for k in range(9)}
            with self.subTest(case=i), tempfile.TemporaryDirectory(dir=self.folder) as name:
                folder = pathlib.Path(name)
                names = sorted(tensors)
                parts = {f"{p}.safetensors": names[p::3] for p in range(3)}
                for part, of_part in parts.items():
                    safetensors.torch.save_file({n: tensors[n] for n in of_part}, folder / part, {"format": "pt"})
                index = {"metadata": {"total_size": 1}, "weight_map": {n: p for p, ns in parts.items() for n in ns}}
                (folder / "theirs.index.json").write_text(json.dumps(index, ensure_ascii=i % 2 == 0, indent=i % 3 or None))
                self.assertEqual(self.ask("load", folder / "theirs.index.json"), describe(tensors))

                path = folder / "ours.safetensors"
                self.assertEqual(self.ask("copy", folder / "theirs.index.json", path, 64), [f"{path}.index.json"])
                index = json.loads(pathlib.Path(f"{path}.index.json").read_text())
                found = {}
                for part in set(index["weight_map"].values()):
                    self.assertRegex(part, r"^ours-\d{5}-of-\d{5}\.safetensors$")
                    of_part = safetensors.torch.load_file(folder / part)
                    self.assertEqual(set(of_part), {n for n, p in index["weight_map"].items() if p == part})
                    if len(of_part) > 1:
                        self.assertLessEqual(sum(len(bytes_of(tensor)) for tensor in of_part.values()), 64)
                    found |= of_part
                self.assert_equal_tensors(found, tensors)
                self.assertEqual(index["metadata"]["total_size"], sum(len(bytes_of(t)) for t in tensors.values()))

    def test_a_big_endian_length_is_refused(self):
        path = self.folder / "big.safetensors"
        good = safetensors.torch.save({"test": torch.zeros(2, 2)})
        path.write_bytes(good[:8][::-1] + good[8:])
        with self.assertRaises(SafetensorError):
            safe_open(path, framework="pt")
        self.assertIn("expected a header of at most", self.ask("load", path)[0])

    def test_damaged_files_are_refused_as_by_the_package(self):
        """Exception: the package takes the last of two tensors or texts of one name."""
        generator = random.Random(3)
        path = self.folder / "damaged.safetensors"
        small = torch.arange(3, dtype=torch.int16)
        files = [safetensors.torch.save({"a": small, "é\n": torch.ones(1, 2)}, {"format": "pt"}),
                 safetensors.torch.save({"m": torch.ones(2, dtype=torch.bool), "e": torch.ones(0, 3), "s": torch.tensor(1.0)})]
        texts = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0041", b"\\ud800", b"0", b"-1", b"1.0", b"1e0", b"null",
                 b" ", b"\xff", b"\xc3\xa9", b"BOOL", b"F4", b"U8", b"18446744073709551615", b'"x":[{}],', b"[0,0]"]
        verdicts = {True: 0, False: 0}
        for i in range(10_000):
            file = bytearray(generator.choice(files))
            length = struct.unpack("<Q", file[:8])[0]
            for _ in range(generator.randrange(1, 4)):
                at = generator.randrange(len(file) + 1) if generator.randrange(4) == 0 else generator.randrange(8, 8 + length)
                size = generator.randrange(4)
                choice = generator.randrange(4)
                if choice == 0 and at < len(file):
                    file[at] = generator.choice(b'0123456789"\\[]{},: \xffaU')
                elif choice == 1:
                    del file[at:at + size]
                elif choice == 2:
                    file[at:at + size] = generator.choice(texts)
                else:
                    file[at:at] = file[at:at + 2 * size]
            if generator.randrange(4):  # keeps the length right, so that the text is read
                data = 14 if generator.randrange(2) else 6
                file[:8] = struct.pack("<Q", max(0, len(file) - 8 - data))
            path.write_bytes(file)
            try:
                safetensors.deserialize(bytes(file))
                theirs = True
            except SafetensorError:
                theirs = False
            answer = self.ask("accepts", path)[0]
            ours = answer == "yes"
            verdicts[theirs] += 1
            if ours != theirs and not (theirs and "found two" in answer):
                self.fail(f"file {i}: the package says {theirs}, attend says {answer}: {bytes(file)}")
        self.assertGreater(verdicts[True], 300)
        self.assertGreater(verdicts[False], 500)


if __name__ == "__main__":
    unittest.main()
