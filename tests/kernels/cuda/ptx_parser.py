# SPDX-License-Identifier: MIT
"""Reads the PTX text that nvcc writes: kernels, their parameters, registers, instructions and labels."""

import dataclasses
import re
import struct


class PtxError(Exception):
    """The interpreter cannot run this program, or the program has a fault."""


@dataclasses.dataclass
class Instruction:
    """For example `@!%p1 ld.global.v2.f32 {%f1, %f2}, [%rd1+8];`"""

    line: int  # in the PTX text, from 1
    text: str
    guard: str | None  # "%p1" or "!%p1"
    opcode: list[str]  # ["ld", "global", "v2", "f32"]
    operands: list[str]  # ["{%f1, %f2}", "[%rd1+8]"]


@dataclasses.dataclass
class Kernel:
    name: str
    parameters: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)  # name: (offset, size) in bytes
    parameter_size: int = 0
    shared: dict[str, int] = dataclasses.field(default_factory=dict)  # name: offset of a static array
    shared_size: int = 0  # of the static arrays
    local: dict[str, int] = dataclasses.field(default_factory=dict)  # the same for the memory of one thread
    local_size: int = 0
    registers: dict[str, str] = dataclasses.field(default_factory=dict)  # name: type
    instructions: list[Instruction] = dataclasses.field(default_factory=list)
    labels: dict[str, int] = dataclasses.field(default_factory=dict)  # name: index of the next instruction
    tables: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # name: labels of a .branchtargets


SIZES = {"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2, "b32": 4, "u32": 4, "s32": 4,
         "f32": 4, "f16x2": 4, "bf16x2": 4, "tf32": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8, "pred": 1}

# The space, the alignment, the type, the name and the number of elements of a variable or parameter.
VARIABLE = re.compile(r"\.(param|shared|local|global|const)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
                      r"(?:\.ptr\s+)?(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?([\w$%.]+)\s*(?:\[(\d*)\])?")
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.+)")
LABEL = re.compile(r"\s*([\w$]+)\s*:(?!:)")
BLANKED = re.compile(r"/\*.*?\*/|//[^\n]*|^\s*\.(?:version|target|address_size|loc|file)\b[^\n]*",
                     re.DOTALL | re.MULTILINE)  # comments, and directives that end with the line
GUARD = re.compile(r"@(!?)\s*(%?[\w$]+)\s+")


def split_operands(text):
    """Splits at the commas that are in no brackets."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return parts + [last] if last else parts


def immediate(text):
    """The number that a literal stands for, or None."""
    if match := re.fullmatch(r"0([fF])([0-9a-fA-F]{8})|0([dD])([0-9a-fA-F]{16})", text):
        return struct.unpack("<f" if match[1] else "<d", bytes.fromhex(match[2] or match[4])[::-1])[0]
    if match := re.fullmatch(r"(-?)(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", text):
        digits = match[2]
        value = int(digits, 8) if re.fullmatch(r"0[0-7]+", digits) else int(digits, 0)
        return -value if match[1] else value
    return None


class Parser:
    def __init__(self, text):
        self.kernels = {}
        self.external_shared = {}  # name: alignment; the dynamic array
        self.module_shared, self.module_shared_size = {}, 0  # static arrays outside kernels
        self.kernel = None
        self.scopes = []  # in a kernel: for each brace {name in the text: unique name}
        self.read(BLANKED.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text))

    def read(self, text):
        statement, line = "", 1
        for piece in re.findall(r"[;{}]|[^;{}]+", text):
            line += piece.count("\n")
            if piece == ";":
                self.statement(" ".join(statement.split()), line)
            elif piece == "{" and not self.kernel and "=" not in statement:
                self.begin_kernel(statement, line)
            elif piece == "{" and self.kernel and not statement.strip():
                self.scopes.append({})
            elif piece == "}" and "{" not in statement:
                self.scopes.pop()
                if not self.scopes:
                    self.kernel = None
            else:  # part of a statement, with the braces of its operands
                statement += piece
                if self.kernel:
                    statement = self.take_labels(statement)
                continue
            statement = ""

    def take_labels(self, statement):
        """Removes the labels at the beginning of a statement."""
        while (match := LABEL.match(statement)) and not statement[match.end():].lstrip().startswith(".branchtargets"):
            self.kernel.labels[match[1]] = len(self.kernel.instructions)
            statement = statement[match.end():]
        return statement

    def begin_kernel(self, header, line):
        match = re.search(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?", header, re.DOTALL)
        if not match:
            raise PtxError(f"PTX line {line}: only kernels are supported, not: {' '.join(header.split())}")
        self.kernel = Kernel(match[1], shared=dict(self.module_shared), shared_size=self.module_shared_size)
        self.scopes = [{}]
        self.kernels[match[1]] = self.kernel
        for text in split_operands(match[2] or ""):
            parameter = VARIABLE.match(text)
            _, align, kind, name, count = parameter.groups()
            size = SIZES[kind] * int(count or 1)
            align = int(align or SIZES[kind])
            offset = -(-self.kernel.parameter_size // align) * align
            self.kernel.parameters[name] = (offset, size)
            self.kernel.parameter_size = offset + size

    def statement(self, text, line):
        if not text:
            return
        if match := REGISTERS.fullmatch(text):
            for name in split_operands(match[2]):
                self.declare(name, match[1])
        elif match := VARIABLE.match(re.sub(r"^\.(extern|visible|weak)\s+", "", text)):
            self.variable(match, text)
        elif match := re.match(r"([\w$]+) ?: ?\.branchtargets (.*)", text):
            self.kernel.tables[match[1]] = split_operands(match[2])
        elif not text.startswith(".pragma"):
            self.instruction(text, line)

    def declare(self, name, kind):
        if match := re.fullmatch(r"(%?[\w$]+)<(\d+)>", name):
            for i in range(int(match[2])):
                self.declare(f"{match[1]}{i}", kind)
            return
        unique = name
        while unique in self.kernel.registers:
            unique += "'"
        self.scopes[-1][name] = unique
        self.kernel.registers[unique] = kind

    def variable(self, match, text):
        space, align, kind, name, count = match.groups()
        if text.startswith(".extern") and space == "shared":
            self.external_shared[name] = int(align or 1)
        elif space == "shared":
            align, size = int(align or SIZES[kind]), SIZES[kind] * int(count or 1)
            owner = self.kernel or self
            names, field = (owner.shared, "shared_size") if self.kernel else (self.module_shared, "module_shared_size")
            offset = -(-getattr(owner, field) // align) * align
            names[name] = offset
            setattr(owner, field, offset + size)
        elif space == "local":
            align, size = int(align or SIZES[kind]), SIZES[kind] * int(count or 1)
            offset = -(-self.kernel.local_size // align) * align
            self.kernel.local[name] = offset
            self.kernel.local_size = offset + size
        # Variables in .global and .const memory: an instruction that names one is an error.

    def instruction(self, text, line):
        guard = None
        if match := GUARD.match(text):
            guard = match[1] + self.unique(match[2])
            text_of_operation = text[match.end():]
        else:
            text_of_operation = text
        opcode, _, operands = text_of_operation.partition(" ")
        operands = [re.sub(r"%?[A-Za-z_$][\w$]*(?:\.[xyzw])?", lambda name: self.unique(name[0]), operand)
                    for operand in split_operands(operands)]
        self.kernel.instructions.append(Instruction(line, text, guard, opcode.split("."), operands))

    def unique(self, name):
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return name


def parse(text):
    """Returns {name: Kernel} for the text of one PTX file."""
    parser = Parser(text)
    for kernel in parser.kernels.values():
        for name, align in parser.external_shared.items():  # the dynamic array follows the static ones
            kernel.shared[name] = -(-kernel.shared_size // align) * align
    return parser.kernels
