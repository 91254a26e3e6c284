# SPDX-License-Identifier: MIT
"""Builds a target of one file whose namespaces must not compile. Each namespace must cause the error that stands in the
comment above it. Arguments: cmake, the build folder, the target, the file."""

import re
import subprocess
import sys


def main():
    cmake, build, target, source = sys.argv[1:]
    with open(source, encoding="utf-8") as file:
        lines = file.read().splitlines()
    cases, begin = [], None  # name, expected error, first and last line
    for number, line in enumerate(lines, start=1):
        if re.match(r"namespace \w+ {", line):
            begin = number
        elif re.match(r"}  // namespace", line):
            cases.append((lines[begin - 1].split()[1], lines[begin - 2].removeprefix("// "), begin, number))

    output = subprocess.run(
        [cmake, "--build", build, "--target", target],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout
    errors, context = [], ""  # an error, and what g++ prints before it: where the code was instantiated
    for line in output.splitlines():
        if ": note: " in line:
            continue
        context += line + "\n"
        if ": error: " in line:
            errors.append((line, context))
            context = ""

    def is_of(context, name, first, last):
        places = [int(place) for place in re.findall(r"/compile_fail\.cpp:(\d+):", context)]
        return f"{name}::" in context or any(first <= place <= last for place in places)

    failed = [
        (name, expected) for name, expected, first, last in cases
        if not any(expected in error and is_of(context, name, first, last) for error, context in errors)
    ]
    print(f"{len(cases) - len(failed)} of {len(cases)} cases cause their error")
    for name, expected in failed:
        print(f"{name} does not cause: {expected}")
    if failed:
        print(output)
    return 0 if cases and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
