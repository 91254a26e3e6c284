# SPDX-License-Identifier: MIT
"""The memory that a kernel sees in the interpreter: global memory, shared memory, parameters and copies in flight.

Each access is checked: its address must be a multiple of its size, and all its bytes must be in a buffer.
"""

import ctypes

import numpy as np

from ptx_parser import PtxError

# Generic addresses of shared memory, parameters and local memory lie in these windows, in which no host address lies.
# Their lower 32 bits are no addresses of shared memory, so that a missing conversion is an error.
SHARED_WINDOW = 0x1000_0000_7000_0000
PARAMETER_WINDOW = 0x2000_0000_7000_0000
LOCAL_WINDOW = 0x3000_0000_7000_0000
WINDOWS = {"global": 0, "shared": SHARED_WINDOW, "param": PARAMETER_WINDOW, "local": LOCAL_WINDOW}
WINDOW_SIZE = 1 << 28
SHARED_BASE = 0x400  # the first byte of shared memory, so that address 0 is an error
PARAMETER_BASE = 0x100
LOCAL_BASE = 0x1000

READ, WRITE = 1, 3
POISON = 0xFF  # a NaN in each floating-point type


class GlobalMemory:
    """Buffers of this process that a kernel may read, or read and write, at their own addresses."""

    def __init__(self, buffers):
        """`buffers`: (address, size in bytes, READ or WRITE) of each, in any order. They must outlive this object."""
        buffers = sorted(buffer for buffer in buffers if buffer[1] > 0)
        if not buffers:
            raise PtxError("a kernel needs a buffer")
        self.starts, sizes, self.access = (np.array(column, np.int64) for column in zip(*buffers))
        self.ends = self.starts + sizes
        if (self.starts[1:] < self.ends[:-1]).any():
            raise PtxError("two buffers overlap")
        self.base = int(self.starts[0]) // 16 * 16
        size = -(-(int(self.ends.max()) - self.base) // 16) * 16
        # From the first buffer to the last. What lies between them is never touched, because index() refuses it.
        self.bytes = np.frombuffer((ctypes.c_uint8 * size).from_address(self.base), np.uint8)

    def index(self, address, size, is_write, where):
        start = address.astype(np.int64)
        buffer = np.maximum(np.searchsorted(self.starts, start, side="right") - 1, 0)
        wanted = WRITE if is_write else READ
        bad = ((start < self.starts[buffer]) | (start + size > self.ends[buffer]) |
               (self.access[buffer] & wanted != wanted))
        if bad.any():
            verb = "writes to" if is_write else "reads"
            place = self.describe(int(start[bad][0]))
            raise PtxError(f"{where} {verb} global memory that is in no such buffer: {place}")
        return start - self.base

    def describe(self, address):
        nearest = int(np.argmin(np.abs(self.starts - address)))
        return (f"byte {address - self.starts[nearest]} of buffer {nearest}, which has "
                f"{self.ends[nearest] - self.starts[nearest]} bytes")


class ByteRange:
    """Memory at small addresses: parameters, the shared memory of all blocks, or the local memory of all threads."""

    def __init__(self, name, base, size, data):
        self.name, self.base, self.size, self.bytes = name, base, size, data

    def index(self, address, size, is_write, where):
        index = address.astype(np.int64) - self.base
        bad = (index < 0) | (index + size > self.size)
        if bad.any():
            verb = "writes to" if is_write else "reads"
            raise PtxError(f"{where} {verb} {self.name} memory at byte {int(index[bad][0])} of {self.size}")
        return index


def check_alignment(index, size, where):
    if (index & (size - 1)).any():
        raise PtxError(f"{where}: an address is no multiple of {size}")


class Memory:
    def __init__(self, global_memory, parameters, blocks, block_of_thread, shared_size, local_size):
        self.row = -(-(shared_size + 1) // 256) * 256  # bytes from the shared memory of one block to that of the next
        self.local_row = -(-local_size // 16) * 16
        self.block_of_thread = block_of_thread
        self.spaces = {
            "global": global_memory,
            "param": ByteRange("parameter", PARAMETER_BASE, len(parameters), padded(parameters)),
            "shared": ByteRange("shared", SHARED_BASE, shared_size, np.full(blocks * self.row, POISON, np.uint8)),
            "local": ByteRange("local", LOCAL_BASE, local_size,
                               np.full(len(block_of_thread) * self.local_row, POISON, np.uint8)),
        }
        threads = len(block_of_thread)
        self.committed = np.zeros(threads, np.int64)  # groups of copies that each thread has closed
        self.in_flight = []  # (threads, index in shared memory, bytes, group)

    def index(self, space, address, threads, size, is_write, where):
        """Where the accesses of `threads` begin in the bytes of `space`."""
        index = self.spaces[space].index(address, size, is_write, where)
        if space == "shared":
            index += self.block_of_thread[threads] * self.row
        elif space == "local":
            index += threads * self.local_row
        return index

    def load(self, space, address, threads, dtype, count, where):
        """`count` numbers for each thread, as an array (count, threads)."""
        size = np.dtype(dtype).itemsize
        if space == "generic":
            values = np.empty((count, len(threads)), dtype)
            for part, offset, chosen in self.parts(address):
                values[:, chosen] = self.load(part, offset, threads[chosen], dtype, count, where)
            return values
        index = self.index(space, address, threads, size * count, False, where)
        check_alignment(index, size * count, where)
        return self.spaces[space].bytes.view(dtype)[index // size + np.arange(count)[:, None]]

    def store(self, space, address, threads, values, where):
        """Stores `values` (count, threads)."""
        count, size = len(values), values.dtype.itemsize
        if space == "generic":
            for part, offset, chosen in self.parts(address):
                self.store(part, offset, threads[chosen], values[:, chosen], where)
            return
        index = self.index(space, address, threads, size * count, True, where)
        check_alignment(index, size * count, where)
        self.spaces[space].bytes.view(values.dtype)[index // size + np.arange(count)[:, None]] = values

    @staticmethod
    def parts(address):
        """Sorts generic addresses: yields a space, addresses in it, and which of `address` they are."""
        for space, window in list(WINDOWS.items())[1:]:
            chosen = (address >= window) & (address < window + WINDOW_SIZE)
            if chosen.any():
                yield space, address[chosen] - np.uint64(window), chosen
        chosen = address < SHARED_WINDOW
        if chosen.any():
            yield "global", address[chosen], chosen

    # ---- cp.async: the bytes arrive when they are waited for -------------------------------------------------------

    def copy_async(self, to, source, threads, size, source_size, where):
        """`source_size` bytes come from global memory, the others of `size` are zero."""
        index = self.index("shared", to, threads, size, True, where)
        check_alignment(index, size, where)
        target = index[:, None] + np.arange(size)
        self.spaces["shared"].bytes[target] = POISON
        check_alignment(source.astype(np.int64), size, where)
        data = np.zeros((len(threads), size), np.uint8)
        for count in np.unique(source_size[source_size > 0]):
            chosen = source_size == count
            start = self.spaces["global"].index(source[chosen], int(count), False, where)
            data[chosen, :count] = self.spaces["global"].bytes[start[:, None] + np.arange(count)]
        self.in_flight.append((threads, target, data, self.committed[threads]))

    def commit(self, threads):
        self.committed[threads] += 1

    def wait(self, threads, pending):
        """Delivers the groups of these threads, except for the newest `pending` ones. None: also the open group."""
        is_waiting = np.zeros(len(self.committed), bool)
        is_waiting[threads] = True
        left = []
        for owners, target, data, group in self.in_flight:
            if pending is None:
                arrives = is_waiting[owners]
            else:
                arrives = is_waiting[owners] & (group < self.committed[owners] - pending)
            self.spaces["shared"].bytes[target[arrives]] = data[arrives]
            if not arrives.all():
                stays = ~arrives
                left.append((owners[stays], target[stays], data[stays], group[stays]))
        self.in_flight = left


def padded(data):
    """The bytes as an array whose size is a multiple of 16, so that it can be viewed as any type."""
    return np.frombuffer(bytes(data) + bytes(-len(data) % 16), np.uint8)
