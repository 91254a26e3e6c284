#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes a small number of files that together check that every header of attend compiles alone.

A header is checked if only headers that it includes itself, directly or indirectly, are included before it. One file
may therefore include a chain of headers, each of which includes the previous one. The chains are made greedily.

    header_chains.py <include folder> <output folder> <header>...
"""

import pathlib
import re
import sys


def main():
    include, output = map(pathlib.Path, sys.argv[1:3])
    headers = [pathlib.Path(path).relative_to(include).as_posix() for path in sys.argv[3:]]

    reached = {}  # all headers that a header includes

    def reach(header):
        if header not in reached:
            text = (include / header).read_text()
            direct = [name for name in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', text, re.M)
                      if (include / name).is_file()]
            reached[header] = set(direct).union(*map(reach, direct))
        return reached[header]

    chains = []
    for header in sorted(headers, key=lambda header: (len(reach(header)), header)):
        ends = [chain for chain in chains if chain[-1] in reached[header]]
        if ends:
            max(ends, key=lambda chain: len(reached[chain[-1]])).append(header)
        else:
            chains.append([header])

    output.mkdir(parents=True, exist_ok=True)
    files = set()
    for chain in chains:
        # Named after the last header, so that a new header moves few others into other files.
        file = output / f"{chain[-1].replace('/', '_').removesuffix('.h')}.cpp"
        text = "".join(f"#include <{header}>\n" for header in chain)
        if not file.exists() or file.read_text() != text:  # an unchanged file is not compiled again
            file.write_text(text)
        files.add(file)
    for file in set(output.glob("*.cpp")) - files:
        file.unlink()
    print(";".join(sorted(map(str, files))), end="")


main()
