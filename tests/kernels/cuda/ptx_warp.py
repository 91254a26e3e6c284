# SPDX-License-Identifier: MIT
"""PTX's instructions that read or write memory, and those that the 32 threads of a warp execute together.

The layouts of mma and ldmatrix are those of the figures in NVIDIA's "PTX ISA": thread 4 g + t of a warp holds row (or
column) g, and of the pairs in it those that begin at 2 t.
"""

import re

import numpy as np

from ptx_arithmetic import DTYPES, from_bfloat16, operation
from ptx_parser import SIZES, PtxError, split_operands

LANES = 32


def registers(operand):
    """The names in `{a, b}`, or the one name."""
    return split_operands(operand[1:-1]) if operand.startswith("{") else [operand]


def whole_warps(machine, instruction, mask):
    """The threads in the mask, as an array (warps, 32). Part of a warp is an error."""
    if mask is True:
        return machine.threads.reshape(-1, LANES)
    lanes = mask.reshape(-1, LANES)
    missing = lanes.any(axis=1) & ~lanes.all(axis=1)
    if missing.any():
        warp = int(np.flatnonzero(missing)[0])
        raise PtxError(f"{machine.where(instruction)}: only {lanes[warp].sum()} threads of warp {warp} execute it")
    return machine.threads[mask].reshape(-1, LANES)


# ---- Memory ---------------------------------------------------------------------------------------------------------

SPACE = r"(?:\.(?P<space>global|shared|param|local))?(?:::cta)?"
CACHE = r"(?:\.(?:relaxed|weak|gpu|cta|sys|volatile|nc|ca|cg|cs|lu|cv|wb|wt|L1::\w+|L2::\w+))*"


def address_of(machine, operand):
    """A function that returns the addresses in `[register+offset]` for some threads."""
    match = re.fullmatch(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
    offset = int(match[2] or "0", 0)
    base = machine.address_source(match[1])
    if base.ndim == 0:
        return lambda threads: np.full(len(threads), base + np.uint64(offset))
    return lambda threads: base[threads].astype(np.uint64) + np.int64(offset).astype(np.uint64)


@operation(rf"(?P<name>ld|st){CACHE}{SPACE}{CACHE}(?:\.(?P<vector>v2|v4))?\.(?P<type>[usb](?:8|16|32|64)|f16|f32|f64)")
def access(machine, instruction, match):
    space, kind = match["space"] or "generic", match["type"]
    where = machine.where(instruction)
    to, source = instruction.operands
    address = address_of(machine, to if match["name"] == "st" else source)
    if match["name"] == "st":
        values = [np.broadcast_to(machine.source(name, kind), machine.threads.shape) for name in registers(source)]

        def store(mask):
            threads = machine.chosen(mask)
            machine.memory.store(space, address(threads), threads, np.stack([v[threads] for v in values]), where)
        return store
    targets = [machine.target(name, kind) for name in registers(to)]

    def load(mask):
        threads = machine.chosen(mask)
        for target, value in zip(targets, machine.memory.load(space, address(threads), threads, DTYPES[kind],
                                                              len(targets), where)):
            target[threads] = value
    return load


@operation(r"cp\.async\.(?:ca|cg)\.shared(?:::cta)?\.global(?:\.L2::\w+)?")
def copy_async(machine, instruction, match):
    to, source = (address_of(machine, operand) for operand in instruction.operands[:2])
    size = int(instruction.operands[2], 0)
    where = machine.where(instruction)
    source_size = np.broadcast_to(
        machine.source(instruction.operands[3], "u32") if len(instruction.operands) > 3 else np.uint32(size),
        machine.threads.shape)

    def run(mask):
        threads = machine.chosen(mask)
        machine.memory.copy_async(to(threads), source(threads), threads, size, source_size[threads], where)
    return run


@operation(r"cp\.async\.commit_group")
def copy_async_commit(machine, instruction, match):
    return lambda mask: machine.memory.commit(machine.chosen(mask))


@operation(r"cp\.async\.(?:wait_group|wait_all)")
def copy_async_wait(machine, instruction, match):
    pending = int(instruction.operands[0], 0) if instruction.operands else None
    return lambda mask: machine.memory.wait(machine.chosen(mask), pending)


@operation(r"ldmatrix\.sync\.aligned\.m8n8\.x(?P<count>[124])(?P<trans>\.trans)?\.shared(?:::cta)?\.b16")
def load_matrices(machine, instruction, match):
    """Threads 8 i to 8 i + 7 give the rows of matrix i."""
    count = int(match["count"])
    targets = [machine.target(name, "b32") for name in registers(instruction.operands[0])]
    address = address_of(machine, instruction.operands[1])
    where = machine.where(instruction)

    def run(mask):
        warps = whole_warps(machine, instruction, mask)
        rows = warps[:, :8 * count].ravel()
        words = machine.memory.load("shared", address(rows), rows, np.uint32, 4, where)  # (4, warps * 8 * count)
        halves = words.T.copy().view(np.uint16).reshape(len(warps), count, 8, 8)  # (warp, matrix, row, column)
        if match["trans"]:
            halves = halves.swapaxes(2, 3)
        pairs = np.ascontiguousarray(halves).view(np.uint32).reshape(len(warps), count, LANES)
        for i, target in enumerate(targets):
            target[warps] = pairs[:, i]
    return run


# ---- Matrix products ------------------------------------------------------------------------------------------------

def halves_of(words, kind):
    """(…) words as (…, 2) float32."""
    halves = np.ascontiguousarray(words).view(np.uint16).reshape(*words.shape, 2)
    return halves.view(np.float16).astype(np.float32) if kind == "f16" else from_bfloat16(halves)


def product(machine, instruction, matrices):
    """c + a · b, where `matrices` makes (warps, 16, k) and (warps, k, 8) from registers (4 or 2, warps, 32)."""
    targets = [machine.target(name, "f32") for name in registers(instruction.operands[0])]
    a, b = ([machine.source(name, "b32") for name in registers(operand)] for operand in instruction.operands[1:3])
    c = [np.broadcast_to(machine.source(name, "f32"), machine.threads.shape)
         for name in registers(instruction.operands[3])]

    def run(mask):
        warps = whole_warps(machine, instruction, mask)
        count = len(warps)
        rows = np.stack([x[warps] for x in a]).reshape(2, 2, count, 8, 4)
        columns = np.stack([x[warps] for x in b]).reshape(2, count, 8, 4)
        left, right = matrices(rows, columns)
        result = np.matmul(left, right).reshape(count, 2, 8, 4, 2)  # (warp, half, g, t, pair)
        for i, target in enumerate(targets):
            target[warps] = c[i][warps] + result[:, i // 2, :, :, i % 2].reshape(count, LANES)
    return run



@operation(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(?P<type>f16|bf16)\.(?P=type)\.f32")
def multiply_16x8x16(machine, instruction, match):
    kind = match["type"]

    def matrices(rows, columns):  # (k half, row half, warp, g, t), (k half, warp, g, t)
        left = halves_of(rows, kind).transpose(2, 1, 3, 0, 4, 5)  # (warp, row half, g, k half, t, pair)
        right = halves_of(columns, kind).transpose(1, 0, 3, 4, 2)  # (warp, k half, t, pair, g)
        return left.reshape(-1, 16, 16), right.reshape(-1, 16, 8)
    return product(machine, instruction, matrices)


@operation(r"mma\.sync\.aligned\.m16n8k8\.row\.col\.f32\.tf32\.tf32\.f32")
def multiply_16x8x8(machine, instruction, match):
    def matrices(rows, columns):
        rows, columns = ((x & np.uint32(0xFFFFE000)).view(np.float32) for x in (rows, columns))
        return rows.transpose(2, 1, 3, 0, 4).reshape(-1, 16, 8), columns.transpose(1, 0, 3, 2).reshape(-1, 8, 8)
    return product(machine, instruction, matrices)


# ---- Exchange inside a warp -----------------------------------------------------------------------------------------

@operation(r"shfl\.sync\.(?P<mode>bfly|idx|up|down)\.b32")
def shuffle(machine, instruction, match):
    names = instruction.operands[0].split("|")
    target = machine.target(names[0], "b32")
    is_inside = machine.target(names[1], "pred") if len(names) == 2 else None
    value, other, clamp = (np.broadcast_to(machine.source(operand, "u32"), machine.threads.shape)
                           for operand in instruction.operands[1:4])

    def run(mask):
        warps = whole_warps(machine, instruction, mask)
        lane = np.arange(LANES)
        limits = clamp[warps].astype(np.int64)
        segment, end = limits >> 8 & 31, limits & 31
        by = other[warps].astype(np.int64) & 31
        first, last = lane & segment, lane & segment | end & ~segment
        source = {"bfly": lane ^ by, "idx": first | by & ~segment, "up": lane - by, "down": lane + by}[match["mode"]]
        inside = source >= last if match["mode"] == "up" else source <= last
        result = np.take_along_axis(value[warps], np.where(inside, source, lane), axis=1)
        target[warps] = result
        if is_inside is not None:
            is_inside[warps] = inside
    return run


@operation(r"vote\.sync\.(?P<mode>all|any|ballot)\.(?:pred|b32)")
def vote(machine, instruction, match):
    target = machine.target(instruction.operands[0], "b32" if match["mode"] == "ballot" else "pred")
    predicate = machine.predicate(instruction.operands[1])

    def run(mask):
        warps = whole_warps(machine, instruction, mask)
        bits = np.broadcast_to(predicate(), machine.threads.shape)[warps]
        if match["mode"] == "ballot":
            target[warps] = (bits.astype(np.uint32) << np.arange(LANES, dtype=np.uint32)).sum(axis=1, keepdims=True,
                                                                                             dtype=np.uint32)
        else:
            target[warps] = (bits.all if match["mode"] == "all" else bits.any)(axis=1, keepdims=True)
    return run


@operation(r"bar\.warp\.sync")
def warp_barrier(machine, instruction, match):
    return lambda mask: whole_warps(machine, instruction, mask) is None


@operation(r"membar\.\w+|fence(?:\.\w+)*")
def fence(machine, instruction, match):
    return lambda mask: None  # threads run one after another here
