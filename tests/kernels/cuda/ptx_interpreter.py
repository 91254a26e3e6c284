# SPDX-License-Identifier: MIT
"""Runs a kernel from PTX text with NumPy: each register is an array with one element for each thread of the grid.

All blocks run at once. `order` says which threads go on: `None`, all those with the lowest instruction, or a list of
warps, of which the first one that can go on runs alone until it waits at a barrier.
"""

import bisect

import numpy as np

import ptx_warp  # adds its operations
from ptx_arithmetic import DTYPES, find_operation
from ptx_memory import LOCAL_BASE, PARAMETER_BASE, SHARED_BASE, Memory
from ptx_parser import SIZES, PtxError, immediate

LANES = ptx_warp.LANES
PARTS = {"bra", "brx", "ret", "exit", "bar", "barrier"}  # instructions after which threads may be at different places
NEVER = 1 << 40  # the place of a thread that has ended


class Machine:
    """The registers and the memory of all threads of a launch."""

    def __init__(self, kernel, grid, block_size, shared_size, parameters, global_memory):
        if block_size % LANES:
            raise PtxError(f"{kernel.name}: a block must have whole warps, not {block_size} threads")
        if len(parameters) < kernel.parameter_size:
            raise PtxError(f"{kernel.name}: {len(parameters)} bytes of parameters were given, "
                           f"{kernel.parameter_size} are needed")
        self.kernel = kernel
        blocks = int(np.prod(grid))
        self.threads = np.arange(blocks * block_size)
        self.block_size, self.blocks = block_size, blocks
        block, thread = np.divmod(self.threads, block_size)
        self.block = block
        self.warp = thread // LANES
        self.memory = Memory(global_memory, parameters, blocks, block, shared_size, kernel.local_size)
        zero = np.zeros_like(block)
        special = {"tid.x": thread, "tid.y": zero, "tid.z": zero, "laneid": thread % LANES, "warpid": thread // LANES,
                   "ctaid.x": block % grid[0], "ctaid.y": block // grid[0] % grid[1],
                   "ctaid.z": block // (grid[0] * grid[1]),
                   "ntid.x": zero + block_size, "ntid.y": zero + 1, "ntid.z": zero + 1,
                   "nctaid.x": zero + grid[0], "nctaid.y": zero + grid[1], "nctaid.z": zero + grid[2]}
        self.registers = {f"%{name}": value.astype(np.uint32) for name, value in special.items()}
        for name, kind in kernel.registers.items():
            bits = DTYPES["b" + kind[1:]] if kind != "pred" else np.bool_
            fill = 1 if kind == "pred" else 0xA5
            self.registers[name] = np.full(len(self.threads) * SIZES[kind], fill, np.uint8).view(bits)
        self.addresses = {name: SHARED_BASE + offset for name, offset in kernel.shared.items()}
        self.addresses |= {name: LOCAL_BASE + offset for name, offset in kernel.local.items()}
        self.addresses |= {name: PARAMETER_BASE + offset for name, (offset, _) in kernel.parameters.items()}

    def where(self, instruction):
        return f"PTX line {instruction.line} ({instruction.text})"

    def chosen(self, mask):
        return self.threads if mask is True else self.threads[mask]

    def register(self, name):
        if name not in self.registers:
            raise PtxError(f"{self.kernel.name}: there is no register or variable {name}")
        return self.registers[name]

    def target(self, name, kind):
        """The register as numbers that an instruction with this type writes. Narrow integers are extended."""
        if name == "_":
            return np.empty(len(self.threads), DTYPES[kind])
        register = self.register(name)
        if kind == "pred" or register.dtype.itemsize == SIZES[kind]:
            return register.view(DTYPES[kind])
        return register.view(DTYPES[("s" if kind[0] == "s" else "u") + str(8 * register.dtype.itemsize)])

    def source(self, operand, kind):
        """The operand as numbers of this type: an array, or one number for all threads."""
        dtype = np.dtype(DTYPES[kind])
        if operand in self.addresses:
            return dtype.type(self.addresses[operand])
        value = immediate(operand)
        if kind == "pred" and value is not None:
            return np.bool_(value)
        if isinstance(value, float):
            size = 4 if operand[1] in "fF" else 8
            return np.array([int(operand[2:], 16)], f"u{size}").view(dtype)[0]
        if value is not None:
            return np.array([value & (1 << 8 * dtype.itemsize) - 1], f"u{dtype.itemsize}").view(dtype)[0]
        register = self.register(operand)
        if register.dtype.itemsize <= dtype.itemsize:
            return register.view(dtype)
        return register.view(dtype)[::register.dtype.itemsize // dtype.itemsize]  # the low bits

    def address_source(self, operand):
        if operand in self.addresses or immediate(operand) is not None:
            return self.source(operand, "u64")
        return self.register(operand)

    def predicate(self, text):
        """A function that returns the value of `%p1` or `!%p1`."""
        register = self.source(text.lstrip("!").strip(), "pred")
        return (lambda: ~register) if text.startswith("!") else (lambda: register)


def is_collective(instruction):
    """Whether all threads of a warp must be there before any of them goes on."""
    return instruction.opcode[0] in ("mma", "ldmatrix", "shfl", "vote") or instruction.opcode[:2] == ["bar", "warp"]


def may_part(instruction):
    return instruction.opcode[0] in PARTS and instruction.opcode[1:2] != ["warp"]


def guarded(run, predicate):
    """The operation for those threads in the mask whose predicate is true."""
    def run_some(mask):
        chosen = predicate() if mask is True else mask & predicate()
        if chosen.all():
            run(True)
        elif chosen.any():
            run(chosen)
    return run_some


class Program:
    """A kernel as functions: for each place where threads may be, what they run until they may part."""

    def __init__(self, machine):
        kernel = self.kernel = machine.kernel
        self.machine = machine
        ends = set(kernel.labels.values()) | {len(kernel.instructions)}
        ends |= {i + 1 for i, instruction in enumerate(kernel.instructions) if may_part(instruction)}
        self.ends = sorted(ends)
        self.compiled = {}

    def straight(self, start):
        """The functions from instruction `start` on, the instruction that ends them or None, and the place after it.

        Each function comes with a bool: whether it is for whole warps.
        """
        if start not in self.compiled:
            end = self.ends[bisect.bisect_right(self.ends, start)]
            instructions = self.kernel.instructions[start:end]
            last = instructions[-1] if may_part(instructions[-1]) else None
            functions = [(self.compile(instruction), is_collective(instruction) and not instruction.guard)
                         for instruction in instructions if instruction is not last]
            self.compiled[start] = functions, last, end
        return self.compiled[start]

    def compile(self, instruction):
        opcode = ".".join(instruction.opcode)
        build, match = find_operation(opcode)
        if not build:
            raise PtxError(f"PTX line {instruction.line}: unknown instruction {opcode}: {instruction.text}")
        run = build(self.machine, instruction, match)
        return guarded(run, self.machine.predicate(instruction.guard)) if instruction.guard else run


class Run:
    def __init__(self, machine, order):
        self.machine, self.program = machine, Program(machine)
        threads = len(machine.threads)
        self.place = np.zeros(threads, np.int64)
        self.is_waiting = np.zeros(threads, bool)  # at a barrier of the block
        self.is_early = np.zeros(threads, bool)  # before an instruction for whole warps, which are not all there yet
        self.order = order
        self.steps = 0  # instructions, each for all threads that execute it together

    def go(self):
        while (mask := self.next_threads()) is not None:
            start = int(self.place[mask][0])
            functions, last, end = self.program.straight(start)
            all_or_mask = True if mask.all() else mask
            for i, (function, is_for_warps) in enumerate(functions):
                if is_for_warps and all_or_mask is not True:
                    all_or_mask = mask = self.whole_warps(mask, start + i)
                    if not mask.any():
                        break
                function(all_or_mask)
                self.steps += 1
            else:
                if end == len(self.program.kernel.instructions) and last is None:
                    raise PtxError(f"{self.program.kernel.name}: the kernel ends without ret")
                self.place[mask] = end
                if last is not None:
                    self.leave(last, mask, end)

    def whole_warps(self, mask, place):
        """Those threads of the mask whose warp is complete. The others wait here for the rest of their warp."""
        is_early = mask & ~np.repeat(mask.reshape(-1, LANES).all(axis=1), LANES)
        self.place[is_early] = place
        self.is_early |= is_early
        lanes = self.is_early.reshape(-1, LANES)
        places = self.place.reshape(-1, LANES)
        is_complete = lanes.all(axis=1) & (places == places[:, :1]).all(axis=1)
        self.is_early &= ~np.repeat(is_complete, LANES)
        return mask & ~is_early

    def next_threads(self):
        """The threads that run next, or None if all have ended."""
        can_run = ~self.is_waiting & ~self.is_early & (self.place != NEVER)
        if not can_run.any():
            if self.is_early.any():
                first = int(np.flatnonzero(self.is_early)[0])
                instruction = self.program.kernel.instructions[self.place[first]]
                warp = slice(first // LANES * LANES, first // LANES * LANES + LANES)
                raise PtxError(f"{self.machine.where(instruction)}: only {self.is_early[warp].sum()} threads of warp "
                               f"{first // LANES} execute it")
            if (self.place != NEVER).any():
                raise PtxError(f"{self.program.kernel.name}: some threads wait at a barrier for others for ever")
            return None
        if self.order is not None:
            can_run &= self.machine.warp == next(w for w in self.order if can_run[self.machine.warp == w].any())
        place = np.where(can_run, self.place, NEVER)
        return place == place.min()

    def leave(self, instruction, mask, end):
        """Executes a jump, a barrier or the end of the threads in `mask`."""
        taken = mask
        if instruction.guard:
            taken = mask & self.machine.predicate(instruction.guard)()
        name, labels = instruction.opcode[0], self.program.kernel.labels
        if name == "bra":
            self.place[taken] = labels[instruction.operands[0]]
        elif name == "brx":
            table = self.program.kernel.tables[instruction.operands[1]]
            index = self.machine.source(instruction.operands[0], "u32")
            self.place[taken] = np.array([labels[label] for label in table])[index[taken]]
        elif name in ("ret", "exit"):
            self.place[taken] = NEVER
        else:
            self.barrier(instruction, taken)
        self.release()

    def barrier(self, instruction, taken):
        if instruction.operands not in (["0"], ["0", str(self.machine.block_size)]):
            raise PtxError(f"{self.machine.where(instruction)}: only barrier 0 for all threads is supported")
        ptx_warp.whole_warps(self.machine, instruction, True if taken.all() else taken)
        self.is_waiting |= taken

    def release(self):
        """Lets the threads of those blocks go on whose threads have all arrived or ended."""
        if self.is_waiting.any():
            shape = (self.machine.blocks, self.machine.block_size)
            arrived = (self.is_waiting | (self.place == NEVER)).reshape(shape).all(axis=1)
            self.is_waiting &= ~np.repeat(arrived, self.machine.block_size)


def launch(kernel, grid, block_size, parameters, global_memory, shared_size=0, order=None):
    """Runs `kernel` for all blocks of `grid` (x, y, z). Returns the number of executed instructions.

    parameters: the bytes of all parameters, as ptx_parser.Kernel.parameters places them.
    shared_size: the size of the dynamic array in shared memory, in bytes.
    """
    shared_size += max([kernel.shared_size, *kernel.shared.values()])
    with np.errstate(all="ignore"):
        run = Run(Machine(kernel, grid, block_size, shared_size, parameters, global_memory), order)
        run.go()
    return run.steps
