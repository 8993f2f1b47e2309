#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""documents.py ROOT: code in the documents is code that ctest compiles.

Every ```cpp block of README.md stands, line after line, in a program under examples/; those of docs/ in examples/,
include/ or tests/. Blank lines and the indentation of a whole block do not count; a line of `// ...` alone skips lines.
Links to files of this tree lead somewhere, and a command `scripts/NAME` exists.
"""
import re
import sys
import textwrap
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
SCRIPT = re.compile(r"(?<![\w/])scripts/[\w-]+")
ELLIPSIS = "// ..."


def pieces(block):
    """The block cut at its ellipses; each piece as dedented lines without blank ones."""
    for piece in re.split(rf"^\s*{re.escape(ELLIPSIS)}\s*$", block, flags=re.M):
        lines = [line.rstrip() for line in textwrap.dedent(piece).splitlines() if line.strip()]
        if lines:
            yield lines


def stands_in(block, source):
    """Whether the pieces follow each other in the lines of the source."""
    at = 0
    for wanted in pieces(block):
        for start in range(at, len(source) - len(wanted) + 1):
            window = textwrap.dedent("\n".join(source[start:start + len(wanted)])).splitlines()
            if window == wanted:
                at = start + len(wanted)
                break
        else:
            return False
    return True


def check(root):
    root = Path(root)
    readme = root / "README.md"
    if not readme.is_file():
        return ["README.md is missing"]
    faults = []
    sources = {}

    def lines_under(*folders):
        for folder in folders:
            for path in sorted((root / folder).rglob("*")):
                if path.suffix in (".cpp", ".hpp", ".cu", ".cuh"):
                    if path not in sources:
                        sources[path] = [l.rstrip() for l in path.read_text(encoding="utf-8").splitlines() if l.strip()]
                    yield sources[path]

    for document in [readme, *sorted((root / "docs").glob("*.md"))]:
        name = document.relative_to(root)
        text = document.read_text(encoding="utf-8")
        folders = ["examples"] if document == readme else ["examples", "include", "tests"]
        for block in FENCE.finditer(text):
            if block[1] == "cpp" and not any(stands_in(block[2], source) for source in lines_under(*folders)):
                line = text.count("\n", 0, block.start()) + 1
                faults.append(f"{name}:{line}: the block stands in no file under {', '.join(folders)}")
        for target in LINK.findall(FENCE.sub("", text)):
            if not (document.parent / target).exists():
                faults.append(f"{name}: the link leads nowhere: {target}")
        for script in sorted(set(SCRIPT.findall(text))):
            if not (root / script).exists():
                faults.append(f"{name}: there is no {script}")
    return faults


if __name__ == "__main__":
    found = check(sys.argv[1])
    print("\n".join(found) if found else "every block is compiled, every link leads somewhere")
    sys.exit(bool(found))
