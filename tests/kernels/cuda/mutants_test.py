# SPDX-License-Identifier: MIT
"""Plants faults in the tensor-core kernels, one at a time, and tests that the harness or a wrong result shows each.

A fault is a replacement in a copy of one header, with which one of the programs is compiled: forward_mutant.cpp,
decode_mutant.cpp, backward_mutant.cpp or tf32_mutant.cpp. A replacement that no longer fits the header is an error.

    mutants_test.py [--include FOLDER] [--program NAME] [name …]    only one program; only the faults with these names
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile

TESTS = pathlib.Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("ATTEND_COMPILER", "c++")
RACE, READ, DIVERGED = "race between warps", "read before wait", "diverged "
WAIT = "      copy_async_wait<0>();\n      finish_copies(buffer, is_first);"
NO_WAIT = "      finish_copies(buffer, is_first);"
GLOBAL, OUTPUT, GRADIENT = "outside of global memory", "wrong output", "wrong gradient"


@dataclasses.dataclass(frozen=True)
class Mutant:
    name: str
    header: str  # in kernels/cuda/
    old: str
    new: str
    expected: str  # in what the program prints


FORWARD = [
    Mutant("no transpose", "tile", "load_matrix_x4_transposed(registers,", "load_matrix_x4(registers,", OUTPUT),
    Mutant("no swizzle", "tile", "(chunk ^ swizzle) * 8", "chunk * 8 + 0 * swizzle", "bank conflict"),
    Mutant("swizzle of too few rows", "tile", "row & 7", "row & 3", "bank conflict"),
    Mutant("registers of operand A in another order", "tile",
           "load_matrix_x4(a, view_.sub(moved(place(lane % 16, lane / 16)",
           "load_matrix_x4(a, view_.sub(moved(place(lane / 16 * 8 + lane % 8, lane / 8 % 2)", OUTPUT),
    Mutant("registers of operand B in another order", "tile", "b[i / 2][i % 2]", "b[i % 2][i / 2]", OUTPUT),
    Mutant("a row too far is copied", "copy_rows", "i >= rows.begin && i < rows.end", "i >= rows.begin && i <= rows.end",
           GLOBAL),
    Mutant("the condition of a copy is missing", "tile", "from != nullptr && column < columns", "column < columns",
           GLOBAL),
    Mutant("no barrier after the wait", "forward", "      barrier();", "      ", RACE),
    Mutant("no wait", "forward", WAIT, NO_WAIT, READ),
    Mutant("a wait for one group too few", "forward", WAIT, WAIT.replace("0", "1"), READ),
    Mutant("the next tile into the same buffer", "forward", "copy_keys_and_values(next.key, buffer ^ 1)",
           "copy_keys_and_values(next.key, buffer)", RACE),
    Mutant("no commit", "forward", "buffer ^ 1);\n      copy_async_commit();", "buffer ^ 1);", READ),
    Mutant("values where the next keys are", "forward", "(2 * buffer + 1) * Shape::KeyTile::kBytes",
           "(2 * buffer + 2) * Shape::KeyTile::kBytes", "outside of shared memory"),
    Mutant("no mask at the end", "forward", "cover == MaskCover::kFull", "true", OUTPUT),
    Mutant("no rescale", "forward", "output_[m][k] *= rescale[k / 2 % 2];", "(void)rescale;", OUTPUT),
    Mutant("rescale of the other row", "forward", "rescale[k / 2 % 2]", "rescale[1 - k / 2 % 2]", OUTPUT),
    Mutant("largest number of two lanes", "softmax", "largest_of_lanes<4>", "largest_of_lanes<2>", OUTPUT),
    Mutant("sum over two lanes", "softmax", "sum_of_lanes<4>", "sum_of_lanes<2>", OUTPUT),
    Mutant("weights in swapped halves", "operands", "pack<kType>(sum(2 * i), sum(2 * i + 1))",
           "pack<kType>(sum(2 * i + 1), sum(2 * i))", OUTPUT),
    Mutant("tensor cores in a branch", "forward", "      add_tile(tile, buffer);",
           "      if (query_of(0, 0) < scores_.sequence().queries.end) add_tile(tile, buffer);", DIVERGED),
    Mutant("a shuffle in a branch", "forward", "        const float sum = softmax_[m].sum(r);",
           "        if (query_of(m, r) >= sequence.queries.end) continue;\n        const float sum = softmax_[m].sum(r);",
           DIVERGED + "collective"),
    Mutant("a store past the last query", "forward", "if (i >= sequence.queries.end) continue;", "",
           "race in global memory"),
    Mutant("columns of another lane", "operands", "return run * 8 + lane_index() % 4 * 2;",
           "return run * 8 + lane_index() % 4;", "misaligned"),
    Mutant("dropout words of another lane", "dropout", "words[2 + c], 1)", "words[2 + c], 2)", OUTPUT),
    Mutant("rotary: angles of another row", "rotate", "*const cos = rows.cos(i), *const sin = rows.sin(i)",
           "*const cos = rows.cos(i / 2), *const sin = rows.sin(i / 2)", OUTPUT),
    Mutant("rotary: swapped sign", "rotate", "first * cos - second * sin", "first * cos + second * sin", OUTPUT),
    Mutant("rotary: the other layout", "rotate", "call.rotary_layout == RotaryLayout::kInterleaved",
           "call.rotary_layout != RotaryLayout::kInterleaved", OUTPUT),
    Mutant("rotary: angles of other halves", "rotate", "cos + 8 * k, sin + 8 * k", "cos, sin", OUTPUT),
    Mutant("rotary: angles of other neighbours", "rotate", "cos + 4 * k, sin + 4 * k", "cos, sin", OUTPUT),
    Mutant("rotary: no warp_barrier before the rotation", "rotate",
           "  warp_barrier();  // the copies of the other lanes have arrived", "", READ),
    Mutant("rotary: rows that other warps have copied", "rotate", "int row = thread / kThreadsPerRow;",
           "int row = kStep - 1 - thread / kThreadsPerRow;", RACE),
    Mutant("rotary: queries before their copies have arrived", "forward", "    copy_async_wait<0>();\n    rotate_rows",
           "    rotate_rows", READ),
    Mutant("rotary: keys after the barrier", "forward",
           "      if (rotates<kType>(call_)) rotate_keys(tile.key, buffer);\n      barrier();",
           "      barrier();\n      if (rotates<kType>(call_)) rotate_keys(tile.key, buffer);", RACE),
    Mutant("rotary: keys twice", "forward", "      if (rotates<kType>(call_)) rotate_keys(tile.key, buffer);",
           "      if (rotates<kType>(call_)) rotate_keys(tile.key, buffer), rotate_keys(tile.key, buffer);", OUTPUT),
]

DECODE = [
    Mutant("no warp_barrier after the wait", "decode", "      warp_barrier();", "      ", "race between lanes"),
    Mutant("no wait", "decode", WAIT, NO_WAIT, READ),
    Mutant("the next tile into the same buffer", "decode", "copy_keys_and_values(next, buffer ^ 1)",
           "copy_keys_and_values(next, buffer)", READ),
    Mutant("warps with the same shared memory", "decode", "warp_index() * Shape::kWarpBytes + index", "index", RACE),
    Mutant("a warp that some lanes leave", "decode", "if (any_in_warp(!is_empty)) return key;",
           "if (!is_empty) return key;", DIVERGED + "collective"),
    Mutant("keys of no part", "decode", "(tiles + call_.splits - 1) / call_.splits", "tiles / call_.splits", OUTPUT),
    Mutant("parts in the place of others", "combine", "(row * call.splits + split)", "(row + split)",
           "race in global memory"),
    Mutant("rows that do not exist", "decode", "if (!rows_[r].exists) continue;", "", "race in global memory"),
    Mutant("rows of other lanes", "decode", "first_row_ + lane_index() / 4 + 8 * r",
           "first_row_ + lane_index() % 8 + 8 * r", "race in global memory"),
    Mutant("parts without their weights", "combine", "exp2_fast((load_global(part) - shift) * kLog2e)", "1", OUTPUT),
    Mutant("rotary: queries by their rows in the tile", "decode", "? row % call_.queries : -1", "? row : -1", GLOBAL),
    Mutant("rotary: queries are not rotated", "decode", "if (kHasOptions && rotates<kType>(call_)) rotate_queries();", "",
           OUTPUT),
    Mutant("rotary: keys are not rotated", "decode", "if (kHasOptions && rotates<kType>(call_)) rotate_keys(key, buffer);",
           "", OUTPUT),
]

BACKWARD = [
    Mutant("keys: no barrier after the wait", "backward_keys", "      barrier();", "      ", RACE),
    Mutant("keys: no wait", "backward_keys", WAIT, NO_WAIT, READ),
    Mutant("keys: the next step into the same buffer", "backward_keys", "copy(after, buffer ^ 1)",
           "copy(after, buffer)", RACE),
    Mutant("keys: sums of the row before", "backward_keys", "sums.load(n * 8 + column + i % 2)",
           "sums.load(n * 8 + column)", GRADIENT),
    Mutant("keys: the sums of the last row are not copied", "backward_keys", "if (i >= Shape::kStep) return;",
           "if (i >= Shape::kStep - 1) return;", "read of an unwritten word"),
    Mutant("keys: no scale", "backward_keys", "static_cast<float>(forward_.scale), key_sums_", "1.0f, key_sums_",
           GRADIENT + " of key"),
    Mutant("queries: no barrier after the wait", "backward_queries", "      barrier();", "      ", RACE),
    Mutant("queries: no wait", "backward_queries", WAIT, NO_WAIT, READ),
    Mutant("queries: a row too far", "copy_rows", "i >= rows.begin && i < rows.end",
           "i >= rows.begin && i <= rows.end", GLOBAL),
    Mutant("rows where columns are summed", "backward_tile", "step.load_b_of_columns(row, n * 8, b)",
           "step.load_b_of_rows(row, n * 8, b)", GRADIENT),
    Mutant("registers of operand A in another order", "backward_tile", "factors[row / 8 + k / 4][k % 4]",
           "factors[row / 8 + k / 4][(k + 2) % 4]", GRADIENT),
    Mutant("a store past the last row", "backward_tile", "if (i < rows.begin || i >= rows.end) continue;",
           "", GLOBAL),
    Mutant("no delta", "backward_tile", "(gradients[n][i] - sums.delta)", "gradients[n][i]", GRADIENT),
    Mutant("dropout does not reach the gradient", "backward_tile", "kept[i] * gradients[n][i]", "gradients[n][i]",
           GRADIENT),
    Mutant("queries: dropout words of another lane", "dropout", "words[2 + c], 1)", "words[2 + c], 2)",
           GRADIENT + " of query"),
    Mutant("keys: dropout words of another lane", "dropout", "columns[c][1], 8)", "columns[c][1], 16)",
           GRADIENT + " of key"),
    Mutant("keys: dropout words in another order", "dropout", "g / 2 % 2 * 8}", "g / 2 % 2 * 4}", GRADIENT + " of key"),
    Mutant("rotary: keys are not rotated back", "backward_keys", "      if (rotates<kType>(forward_))\n        store_rows",
           "      if (false)\n        store_rows", GRADIENT + " of key"),
    Mutant("rotary: queries are not rotated back", "backward_queries", "    if (rotates<kType>(forward_))\n      store_rows",
           "    if (false)\n      store_rows", GRADIENT + " of query"),
    Mutant("rotary: rotated back by the positive angle", "rotate", "-load_global(sin(i) + pair)",
           "load_global(sin(i) + pair)", GRADIENT),
    Mutant("rotary: rotated back by the angles of another row", "backward_tile", "rotary.rotated_back(rotated, i, pair)",
           "rotary.rotated_back(rotated, first, pair)", GRADIENT),
    Mutant("rotary: no barrier before the tiles are written", "backward_tile",
           "  barrier();  // other warps may still read the tiles", "", RACE),
    Mutant("rotary: no warp_barrier between the lanes of a pair", "backward_tile", "  warp_barrier();", "",
           "race between lanes"),
    Mutant("rotary: the tile of the keys is not rotated", "backward_keys",
           "    if (rotates<kType>(forward_) && step.head < forward_.group) rotate_keys();", "", GRADIENT),
    Mutant("rotary: keys before their copies have arrived", "backward_keys", "    copy_async_wait<0>();\n    rotate_rows",
           "    rotate_rows", READ),
    Mutant("rotary: queries after the barrier", "backward_keys",
           "      if (rotates<kType>(forward_)) rotate_queries(step, buffer);\n      barrier();",
           "      barrier();\n      if (rotates<kType>(forward_)) rotate_queries(step, buffer);", RACE),
    Mutant("a sum over half of the lanes", "row_sums", "sum_of_lanes<kWarpSize>", "sum_of_lanes<kWarpSize / 2>",
           GRADIENT),
]

TF32 = [
    Mutant("rows of values in another order", "tf32_tile", "lane % 4 * 2 + i", "lane % 4 + 4 * i", OUTPUT),
    Mutant("columns of values in another order", "tf32_tile", "numbers.words[j]", "numbers.words[3 - j]", OUTPUT),
    Mutant("weights in another order", "operands", "sum(i % 2 * 2 + i / 2)", "sum(i)", OUTPUT),
    Mutant("columns of another lane", "operands", "lane_index() % 4 * 8 + run % 2 * 4",
           "lane_index() % 4 * 4 + run % 2 * 16", OUTPUT),
    Mutant("sums of another run", "operands", "4 * (run / 2 * 4 + j) + run % 2", "4 * (run / 2 * 4 + j) + 1 - run % 2",
           OUTPUT),
    Mutant("values that are truncated", "tf32_tile", "round_to_tf32(__builtin_bit_cast(float, numbers.words[i]))",
           "numbers.words[i]", OUTPUT),
    Mutant("weights that are truncated", "operands", "round_to_tf32(sum(i % 2 * 2 + i / 2))",
           "__builtin_bit_cast(std::uint32_t, sum(i % 2 * 2 + i / 2))", OUTPUT),
    Mutant("numbers of another thread are rounded", "tile", "origin = place(thread / kThreadsPerRow, ",
           "origin = place((thread / kThreadsPerRow) ^ 1, ", "read of an unwritten word"),
    Mutant("rounded before the wait", "forward", WAIT, NO_WAIT + "\n      copy_async_wait<0>();", READ),
    Mutant("rounded after the barrier", "forward", "      finish_copies(buffer, is_first);\n      is_first = false;\n"
           "      if (rotates<kType>(call_)) rotate_keys(tile.key, buffer);\n      barrier();",
           "      barrier();\n      finish_copies(buffer, is_first);\n      is_first = false;", RACE),
    Mutant("queries: rounded after the barrier", "backward_queries",
           "      finish_copies(buffer, is_first);\n      if (rotates<kType>(forward_)) rotate_keys(step, buffer);\n"
           "      barrier();", "      barrier();\n      finish_copies(buffer, is_first);", RACE),
    Mutant("keys: rounded after the barrier", "backward_keys",
           "      finish_copies(buffer, is_first);\n      if (rotates<kType>(forward_)) rotate_queries(step, buffer);\n"
           "      barrier();", "      barrier();\n      finish_copies(buffer, is_first);", RACE),
]

PROGRAMS = {"forward_mutant": FORWARD, "decode_mutant": DECODE, "backward_mutant": BACKWARD, "tf32_mutant": TF32}


class Programs:
    """Compiles the programs in a folder and runs them."""

    def __init__(self, include, folder):
        self.include, self.folder = include, folder
        self.flags = [COMPILER, "-std=c++20", "-O0", "-w"]  # -O0, because compiling takes most of the time
        # What no fault touches is compiled once. g++ finds the file by its name.
        (folder / "support").mkdir()
        self.compile(TESTS / "support/cuda_block.h", folder / "support/cuda_block.h.gch", [], ["-x", "c++-header"])

    def compile(self, source, output, folders, options=()):
        paths = [f"-I{path}" for path in (*folders, self.folder, self.include, TESTS)]
        done = subprocess.run([*self.flags, *options, *paths, source, "-o", output], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{source.name} does not compile:\n{done.stderr[:2000]}")

    def printed(self, program, mutant=None):
        """What the program prints, with a fault or without."""
        with tempfile.TemporaryDirectory(dir=self.folder) as own:
            own, folders = pathlib.Path(own), []
            if mutant is not None:
                header = f"attend/kernels/cuda/{mutant.header}.cuh"
                text = (self.include / header).read_text()
                if text.count(mutant.old) != 1:
                    raise RuntimeError(f"{header} has {text.count(mutant.old)} times, not once: {mutant.old}")
                (own / header).parent.mkdir(parents=True)
                (own / header).write_text(text.replace(mutant.old, mutant.new))
                folders = [own]
            self.compile(TESTS / f"kernels/cuda/{program}.cpp", own / "program", folders)
            done = subprocess.run([own / "program"], capture_output=True, text=True, timeout=120)
            if done.returncode not in (0, 1):
                raise RuntimeError(f"the program ended with {done.returncode}: {done.stderr}")
            return done.stdout


def failure(programs, program, mutant):
    """Why a program with a fault, or without one, does not print what it should; None if it does."""
    name = f"{program}: {mutant.name if mutant else 'no fault'}"
    try:
        printed = programs.printed(program, mutant)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return f"{name}: {error}"
    print(f"{name}: {printed.splitlines()[0] if printed else 'nothing is reported'}", flush=True)
    if mutant is None:
        return f"{name}: the kernel is reported:\n{printed}" if printed else None
    if mutant.expected not in printed:
        return f"{name}: expected '{mutant.expected}', but the program printed:\n{printed}"
    return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--include", type=pathlib.Path, default=TESTS.parent / "include")
    parser.add_argument("--program", choices=PROGRAMS)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    jobs = [(program, mutant) for program, mutants in PROGRAMS.items()
            for mutant in (None, *mutants)
            if options.program in (None, program) and (mutant is None or not options.names or mutant.name in options.names)]
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(options.include, pathlib.Path(folder))
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            failures = [found for found in pool.map(lambda job: failure(programs, *job), jobs) if found]
    print("\n".join(failures) or f"all {len(jobs)} programs print what they should")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
