# SPDX-License-Identifier: MIT
"""PTX's instructions that compute with the registers of one thread.

An operation is a function `(machine, instruction, match)` that returns a function of a mask: the NumPy code for all
threads in the mask. `match` is the match of its regular expression with the whole opcode, so that an opcode with an
unknown modifier is unknown.
"""

import re

import numpy as np

from ptx_memory import WINDOWS
from ptx_parser import PtxError, split_operands

DTYPES = {"b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
          "f16": np.float16, "bf16": np.uint16, "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32,
          "f16x2": np.uint32, "bf16x2": np.uint32, "tf32": np.uint32, "b64": np.uint64, "u64": np.uint64,
          "s64": np.int64, "f64": np.float64, "pred": np.bool_}

OPERATIONS = []  # (regular expression, function)


def operation(pattern):
    def add(function):
        OPERATIONS.append((re.compile(pattern), function))
        return function
    return add


def find_operation(opcode):
    for pattern, function in OPERATIONS:
        if match := pattern.fullmatch(opcode):
            return function, match
    return None, None


def elementwise(pattern, functions):
    """Operations `name…type d, a, b …` with one type. `functions`: {name: NumPy's function}."""
    @operation(pattern)
    def build(machine, instruction, match):
        function, kind = functions[match["name"]], match["type"]
        target = machine.target(instruction.operands[0], kind)
        sources = [machine.source(operand, kind) for operand in instruction.operands[1:]]
        if isinstance(function, np.ufunc):
            return lambda mask: function(*sources, out=target, where=mask)
        return lambda mask: np.copyto(target, function(*sources), where=mask)


def target_and_source(machine, instruction, target_type, source_type):
    return machine.target(instruction.operands[0], target_type), machine.source(instruction.operands[1], source_type)


def computed(target, function, *sources):
    return lambda mask: np.copyto(target, function(*sources), where=mask)


# ---- Integers -------------------------------------------------------------------------------------------------------

INTEGER = r"(?P<type>[usb](?:16|32|64))"


def divide(a, b):
    """Rounds toward zero, as C++ does."""
    quotient = np.abs(a) // np.where(b == 0, b.dtype.type(1), np.abs(b))
    return np.where((a < 0) != (b < 0), np.negative(quotient), quotient)


def remainder(a, b):
    return a - divide(a, b) * b


elementwise(rf"(?P<name>add|sub|min|max|div|rem|abs|neg)\.{INTEGER}",
            {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum, "div": divide,
             "rem": remainder, "abs": np.abs, "neg": np.negative})
elementwise(r"(?P<name>and|or|xor|not)\.(?P<type>b16|b32|b64|pred)",
            {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert})


def high_product(a, b):
    """The upper half of each product."""
    size = a.dtype.itemsize
    if size < 8:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return (a.astype(wide) * b.astype(wide) >> wide(8 * size)).astype(a.dtype)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x, y = a.astype(np.uint64), b.astype(np.uint64)
    middle = (x >> half) * (y & low) + ((x & low) * (y & low) >> half)
    other = (x & low) * (y >> half) + (middle & low)
    high = (x >> half) * (y >> half) + (middle >> half) + (other >> half)
    if a.dtype.kind == "i":
        high -= np.where(a < 0, y, np.uint64(0)) + np.where(b < 0, x, np.uint64(0))
    return high.astype(a.dtype)


@operation(rf"(?P<name>mul|mad)\.(?P<part>lo|hi|wide)\.{INTEGER}")
def multiply(machine, instruction, match):
    kind, part = match["type"], match["part"]
    of_result = kind[0] + str(2 * int(kind[1:])) if part == "wide" else kind
    target = machine.target(instruction.operands[0], of_result)
    a, b = (machine.source(operand, kind) for operand in instruction.operands[1:3])
    c = machine.source(instruction.operands[3], of_result) if match["name"] == "mad" else DTYPES[of_result](0)
    if part == "wide":
        dtype = DTYPES[of_result]
        return computed(target, lambda: a.astype(dtype) * b.astype(dtype) + c)
    product = np.multiply if part == "lo" else high_product
    return computed(target, lambda: product(a, b) + c)


@operation(r"(?P<name>shl|shr)\.(?P<type>[usb](?:16|32|64))")
def shift(machine, instruction, match):
    kind = match["type"]
    target = machine.target(instruction.operands[0], kind)
    a, amount = machine.source(instruction.operands[1], kind), machine.source(instruction.operands[2], "u32")
    bits = int(kind[1:])

    def compute():
        most = np.minimum(amount, np.uint32(bits - 1)).astype(a.dtype)
        if match["name"] == "shl":
            return np.where(amount < bits, a << most, a.dtype.type(0))
        return np.where((amount < bits) | (a.dtype.kind == "i"), a >> most, a.dtype.type(0))
    return computed(target, compute)


@operation(r"shf\.(?P<side>[lr])\.(?P<mode>wrap|clamp)\.b32")
def funnel_shift(machine, instruction, match):
    target = machine.target(instruction.operands[0], "b32")
    low, high, amount = (machine.source(operand, "u32") for operand in instruction.operands[1:])

    def compute():
        n = (amount & np.uint32(31) if match["mode"] == "wrap" else np.minimum(amount, np.uint32(32))).astype(np.uint64)
        both = high.astype(np.uint64) << np.uint64(32) | low
        if match["side"] == "r":
            return (both >> n).astype(np.uint32)
        return (both << n >> np.uint64(32)).astype(np.uint32)
    return computed(target, compute)


@operation(r"lop3\.b32")
def logic_of_three(machine, instruction, match):
    target = machine.target(instruction.operands[0], "b32")
    a, b, c = (machine.source(operand, "b32") for operand in instruction.operands[1:4])
    table = int(instruction.operands[4], 0)

    def compute():
        result = np.uint32(0)
        for i in range(8):
            if table >> i & 1:
                result = result | (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        return result
    return computed(target, compute)


@operation(r"prmt\.b32")
def permute_bytes(machine, instruction, match):
    target = machine.target(instruction.operands[0], "b32")
    a, b, selector = (machine.source(operand, "u32") for operand in instruction.operands[1:])

    def compute():
        both, result = b.astype(np.uint64) << np.uint64(32) | a, np.uint32(0)
        for i in range(4):
            choice = selector >> np.uint32(4 * i)
            byte = (both >> (np.uint64(8) * (choice & np.uint32(7)))).astype(np.uint32) & np.uint32(0xFF)
            sign = np.where(byte & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
            result = result | np.where(choice & np.uint32(8), sign, byte) << np.uint32(8 * i)
        return result
    return computed(target, compute)


@operation(r"bfe\.(?P<type>[us](?:32|64))")
def extract_bits(machine, instruction, match):
    kind = match["type"]
    target, a = machine.target(instruction.operands[0], kind), machine.source(instruction.operands[1], kind)
    start, length = (machine.source(operand, "u32") & np.uint32(0xFF) for operand in instruction.operands[2:])
    if not isinstance(start, np.uint32) or not isinstance(length, np.uint32) or not 0 < length or (
            start + length > int(kind[1:])):
        raise PtxError(f"PTX line {instruction.line}: only constant fields inside the number: {instruction.text}")
    left = a.dtype.type(int(kind[1:]) - int(start) - int(length))
    right = a.dtype.type(int(kind[1:]) - int(length))
    return computed(target, lambda: a << left >> right)


@operation(r"bfi\.(?P<type>b32|b64)")
def insert_bits(machine, instruction, match):
    kind = match["type"]
    target = machine.target(instruction.operands[0], kind)
    a, b = (machine.source(operand, kind) for operand in instruction.operands[1:3])
    start, length = (int(machine.source(operand, "u32")) for operand in instruction.operands[3:])
    field = a.dtype.type(((1 << length) - 1) << start & (1 << int(kind[1:])) - 1)
    return computed(target, lambda: b & ~field | a << a.dtype.type(start) & field)


@operation(r"(?P<name>popc|clz|brev)\.(?P<type>b32|b64)")
def count_bits(machine, instruction, match):
    kind = match["type"]
    a, bits = machine.source(instruction.operands[1], kind), int(match["type"][1:])
    target = machine.target(instruction.operands[0], kind if match["name"] == "brev" else "u32")

    def compute():
        in_bytes = np.ascontiguousarray(a).astype(f">u{bits // 8}").view(np.uint8).reshape(-1, bits // 8)
        digits = np.unpackbits(in_bytes, axis=1)
        if match["name"] == "popc":
            return digits.sum(axis=1, dtype=np.uint32)
        if match["name"] == "clz":
            return np.where(digits.any(axis=1), digits.argmax(axis=1), bits).astype(np.uint32)
        return np.packbits(digits[:, ::-1], axis=1).view(f">u{bits // 8}").ravel().astype(a.dtype)
    return computed(target, compute)


# ---- Floating-point numbers -----------------------------------------------------------------------------------------

FLOAT = r"(?P<type>f32|f64)"
MAGNITUDE = {"abs": np.abs, "neg": np.negative, "copysign": lambda sign, size: np.copysign(size, sign)}
SMALLEST_NORMAL = np.float32(2.0 ** -126)


def flushed(function):
    """An approximate function of float32 with .ftz: numbers below the smallest normal one become zero."""
    def compute(x):
        y = function(np.where(np.abs(x) < SMALLEST_NORMAL, np.float32(0), x))
        return np.where(np.abs(y) < SMALLEST_NORMAL, np.copysign(np.float32(0), y), y)
    return compute


elementwise(rf"(?P<name>add|sub|mul)(?:\.rn)?\.{FLOAT}", {"add": np.add, "sub": np.subtract, "mul": np.multiply})
elementwise(rf"(?P<name>min|max)\.{FLOAT}", {"min": np.fmin, "max": np.fmax})
elementwise(rf"(?P<name>min|max)\.NaN\.{FLOAT}", {"min": np.minimum, "max": np.maximum})
elementwise(rf"(?P<name>abs|neg|copysign)\.{FLOAT}", MAGNITUDE)
elementwise(rf"(?P<name>div)\.(?:rn|full|approx)\.{FLOAT}", {"div": np.divide})
elementwise(rf"(?P<name>sqrt|rcp)\.(?:rn|approx)\.{FLOAT}", {"sqrt": np.sqrt, "rcp": np.reciprocal})
APPROXIMATE = {"ex2": np.exp2, "lg2": np.log2, "rcp": np.reciprocal, "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos,
               "rsqrt": lambda x: np.reciprocal(np.sqrt(x)), "tanh": np.tanh}
elementwise(r"(?P<name>ex2|lg2|rsqrt|sin|cos|tanh)\.approx\.(?P<type>f32)", APPROXIMATE)
elementwise(r"(?P<name>ex2|lg2|rsqrt|rcp|sqrt|sin|cos)\.approx\.ftz\.(?P<type>f32)",
            {name: flushed(function) for name, function in APPROXIMATE.items()})


@operation(r"rcp\.approx\.ftz\.f64")
def rough_reciprocal(machine, instruction, match):
    """20 bits; code after it improves them."""
    target, a = target_and_source(machine, instruction, "f64", "f64")
    return computed(target, lambda: (np.reciprocal(a).view(np.uint64) & ~np.uint64(0xFFFFFFFF)).view(np.float64))


def rounded(exact, dtype, mode):
    """`exact`, which has more bits than `dtype`, rounded to nearest even (rn), to zero, down or up (rz, rm, rp)."""
    result = exact.astype(dtype)
    if mode == "rn":
        return result
    limit, wrong = {"rz": (0, np.abs(result) > np.abs(exact)), "rm": (-np.inf, result > exact),
                    "rp": (np.inf, result < exact)}[mode]
    return np.where(wrong, np.nextafter(result, dtype(limit)), result)


@operation(r"(?:fma|mad)\.(?P<mode>rn|rz|rm|rp)\.(?P<type>f32|f64)")
def multiply_add(machine, instruction, match):
    """A product of two float32 is exact in double. For float64 the C compiler's long double must do."""
    kind, mode = match["type"], match["mode"]
    target = machine.target(instruction.operands[0], kind)
    a, b, c = (machine.source(operand, kind) for operand in instruction.operands[1:])
    dtype, wide = DTYPES[kind], np.float64 if kind == "f32" else np.longdouble
    if mode == "rn":
        return computed(target, lambda: (a.astype(wide) * b + c).astype(dtype))
    return computed(target, lambda: rounded(a.astype(wide) * b + c, dtype, mode))


# ---- Comparison and choice ------------------------------------------------------------------------------------------

COMPARE = {"eq": np.equal, "ne": lambda a, b: (a < b) | (a > b), "lt": np.less, "le": np.less_equal, "gt": np.greater,
           "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
           "equ": lambda a, b: ~((a < b) | (a > b)), "neu": np.not_equal, "ltu": lambda a, b: ~(a >= b),
           "leu": lambda a, b: ~(a > b), "gtu": lambda a, b: ~(a <= b), "geu": lambda a, b: ~(a < b),
           "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)), "nan": lambda a, b: np.isnan(a) | np.isnan(b)}
COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


@operation(r"setp\.(?P<compare>\w+?)(?:\.(?P<combine>and|or|xor))?\.(?P<type>[usb](?:16|32|64)|f32|f64)")
def set_predicate(machine, instruction, match):
    compare, kind = COMPARE[match["compare"]], match["type"]
    names = instruction.operands[0].split("|")
    targets = [machine.target(name, "pred") for name in names]
    a, b = (machine.source(operand, kind) for operand in instruction.operands[1:3])
    other = machine.predicate(instruction.operands[3]) if match["combine"] else None

    def run(mask):
        result = compare(a, b)
        if other:
            both = COMBINE[match["combine"]](result, other())
            opposite = COMBINE[match["combine"]](~result, other()) if len(names) == 2 else None
        else:
            both, opposite = result, ~result
        np.copyto(targets[0], both, where=mask)
        if len(names) == 2:
            np.copyto(targets[1], opposite, where=mask)
    return run


@operation(r"selp\.(?P<type>\w+)")
def select(machine, instruction, match):
    target = machine.target(instruction.operands[0], match["type"])
    a, b = (machine.source(operand, match["type"]) for operand in instruction.operands[1:3])
    chooses = machine.predicate(instruction.operands[3])
    return computed(target, lambda: np.where(chooses(), a, b))


@operation(r"testp\.(?P<name>finite|infinite|number|notanumber)\.(?P<type>f32|f64)")
def test_property(machine, instruction, match):
    function = {"finite": np.isfinite, "infinite": np.isinf, "number": lambda a: ~np.isnan(a), "notanumber": np.isnan}
    target = machine.target(instruction.operands[0], "pred")
    return computed(target, function[match["name"]], machine.source(instruction.operands[1], match["type"]))


# ---- Copies and conversions -----------------------------------------------------------------------------------------

@operation(r"mov\.(?P<type>\w+)")
def move(machine, instruction, match):
    kind, (to, source) = match["type"], instruction.operands
    if source.startswith("{"):  # a number from its parts, the lowest first
        parts = split_operands(source[1:-1])
        part_kind = f"b{int(kind[1:]) // len(parts)}"
        target = machine.target(to, kind).view(DTYPES[part_kind]).reshape(-1, len(parts))
        sources = [machine.source(part, part_kind) for part in parts]

        def join(mask):
            values = [np.array(s) for s in sources]  # a copy: the target may be one of the sources
            for i, value in enumerate(values):
                np.copyto(target[:, i], value, where=mask)
        return join
    if to.startswith("{"):
        parts = split_operands(to[1:-1])
        part_kind = f"b{int(kind[1:]) // len(parts)}"
        whole = machine.source(source, kind).view(DTYPES[part_kind]).reshape(-1, len(parts))
        targets = [machine.target(part, part_kind) for part in parts]

        def split(mask):
            values = whole.copy()
            for i, target in enumerate(targets):
                np.copyto(target, values[:, i], where=mask)
        return split
    target, value = machine.target(to, kind), machine.source(source, kind)
    return lambda mask: np.copyto(target, value, where=mask)


@operation(r"cvta(?P<to>\.to)?\.(?P<space>global|shared|param|local)\.u64")
def convert_address(machine, instruction, match):
    target, a = target_and_source(machine, instruction, "u64", "u64")
    window = np.uint64(WINDOWS[match["space"]])
    return computed(target, np.subtract if match["to"] else np.add, a, window)


@operation(r"cvt\.(?P<to>[usb](?:8|16|32|64))\.(?P<type>[usb](?:8|16|32|64))")
def convert_integer(machine, instruction, match):
    target, a = target_and_source(machine, instruction, match["to"], match["type"])
    return computed(target, a.astype, DTYPES[match["to"]])


TO_WHOLE = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@operation(r"cvt\.(?P<mode>rni|rzi|rmi|rpi)\.(?:ftz\.)?(?P<to>[us](?:8|16|32|64))\.(?P<type>f16|f32|f64)")
def convert_to_integer(machine, instruction, match):
    dtype, function = DTYPES[match["to"]], TO_WHOLE[match["mode"]]
    target, a = target_and_source(machine, instruction, match["to"], match["type"])
    limits = np.iinfo(dtype)

    def compute():
        whole = function(a.astype(np.longdouble))  # a NaN becomes 0, and large numbers the nearest integer
        return np.clip(np.where(np.isnan(whole), 0, whole), limits.min, limits.max).astype(dtype)
    return computed(target, compute)


@operation(r"cvt\.(?P<mode>rni|rzi|rmi|rpi)\.(?P<to>f32|f64)\.(?P<type>f32|f64)")
def round_to_whole(machine, instruction, match):
    target, a = target_and_source(machine, instruction, match["to"], match["type"])
    return computed(target, TO_WHOLE[match["mode"]], a)


@operation(r"cvt\.(?P<mode>rn|rz|rm|rp)\.(?P<to>f16|f32|f64)\.(?P<type>[us](?:8|16|32|64))")
def convert_from_integer(machine, instruction, match):
    target, a = target_and_source(machine, instruction, match["to"], match["type"])
    return computed(target, lambda: rounded(a.astype(np.longdouble), DTYPES[match["to"]], match["mode"]))


def bfloat16_bits(a):
    """float32 as the bits of bfloat16, rounded to nearest even."""
    bits = a.view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(a), np.uint32(0x7FFF), nearest).astype(np.uint16)


def float16_bits(a):
    return a.astype(np.float16).view(np.uint16)


def from_bfloat16(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


@operation(r"cvt(?:\.(?P<mode>rn|rz|rm|rp))?\.(?P<to>f16|f32|f64)\.(?P<type>f16|f32|f64)")
def convert_float(machine, instruction, match):
    target, a = target_and_source(machine, instruction, match["to"], match["type"])
    return computed(target, lambda: rounded(a, DTYPES[match["to"]], match["mode"] or "rn"))


@operation(r"cvt\.rn\.bf16\.f32")
def convert_to_bfloat16(machine, instruction, match):
    target, a = target_and_source(machine, instruction, "b16", "f32")
    return computed(target, bfloat16_bits, a)


@operation(r"cvt\.f32\.bf16")
def convert_from_bfloat16(machine, instruction, match):
    target, a = target_and_source(machine, instruction, "f32", "b16")
    return computed(target, from_bfloat16, a)


@operation(r"cvt\.rn\.(?P<to>f16|bf16)x2\.f32")
def convert_pair(machine, instruction, match):
    """The first source goes to the upper half."""
    target = machine.target(instruction.operands[0], "b32")
    high, low = (machine.source(operand, "f32") for operand in instruction.operands[1:])
    bits = float16_bits if match["to"] == "f16" else bfloat16_bits
    return computed(target, lambda: bits(high).astype(np.uint32) << np.uint32(16) | bits(low))


@operation(r"cvt\.rna\.tf32\.f32")
def convert_to_tf32(machine, instruction, match):
    target, a = target_and_source(machine, instruction, "b32", "u32")
    return computed(target, lambda: a + np.uint32(0x1000) & np.uint32(0xFFFFE000))


@operation(r"cvt\.sat\.f32\.f32")
def saturate(machine, instruction, match):
    target, a = target_and_source(machine, instruction, "f32", "f32")
    return computed(target, lambda: np.fmin(np.fmax(a, np.float32(0)), np.float32(1)))
