#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The rules of the house, checked on the text of the tree: check.py ROOT. One line a violation: PATH:LINE: RULE."""
import re
import sys
from pathlib import Path

# A room includes itself and the rooms of lower floors, never a sibling.
FLOORS = (
    {"core"},
    {"backend", "transport", "schedule"},
    {"mesh", "batch", "kernels"},
    {"router", "capacity", "dispatcher", "experts", "losses"},
    {"layer"},
    {"pipeline", "training"},
    {"testing"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SIBLINGS = {("kernels", "batch")}  # kernels work on what batch describes
UMBRELLAS = {"moiety.hpp", "pipeline.hpp", "presets.hpp", "testing.hpp", "cuda.cuh", "mpi.hpp", "nccl.hpp"}

HEADER_LINES = 250  # kernels excepted
FUNCTION_LINES = 80
EXAMPLE_LINES = 60

OPTIONAL = {  # headers of optional dependencies, and where each may be included
    "MPI": (re.compile(r"mpi\.h$"), re.compile(r"moiety/(mpi\.hpp|(\w+/)*mpi\w*\.hpp)$")),
    "NCCL": (re.compile(r"nccl\.h$"), re.compile(r"moiety/(nccl\.hpp|(\w+/)*nccl\w*\.hpp)$")),
    "CUDA": (re.compile(r"(cuda\w*\.h|cublas\w*\.h|(cuda|cub|thrust|cooperative_groups)/.*)$"), re.compile(r"\.cuh$")),
}
COSTLY = re.compile(r"(cub/cub\.cuh|thrust/.*)$")

INCLUDE = re.compile(r'\s*#\s*include\s*[<"]([^>"]+)[>"]')
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
MACHINE = re.compile(r"(?<![\w.}])/(?:wo" r"rk|ho" r"me|ro" r"ot|Us" r"ers)/\w")
TEXT = {".hpp", ".cuh", ".cpp", ".cu", ".py", ".cmake", ".txt", ".md", ".json", ".in", ".sh", ".patch", ""}
SPDX = "SPDX-License-Identifier: Apache-2.0"
SPDX_SUFFIXES = {".hpp", ".cuh", ".cpp", ".cu", ".py", ".cmake"}
# Programs that are kept verbatim as others wrote them.
FOREIGN = ("tests/contract/",)


class Check:
    def __init__(self, root):
        self.root = Path(root)
        self.violations = []

    def fail(self, path, line, rule):
        self.violations.append(f"{path.relative_to(self.root).as_posix()}:{line}: {rule}")

    def run(self):
        include = self.root / "include" / "moiety"
        for path in sorted(include.rglob("*")):
            if path.is_file():
                self.header(path, path.relative_to(include).as_posix())
        for path in self.files():
            self.text(path)
        for suffix in ("cpp", "cu"):
            for path in sorted((self.root / "tests").rglob(f"*_test.{suffix}")):
                self.test(path)
        for path in sorted((self.root / "examples").glob("*.cpp")):
            if len(path.read_text(encoding="utf-8").splitlines()) > EXAMPLE_LINES:
                self.fail(path, EXAMPLE_LINES + 1, f"the example has more than {EXAMPLE_LINES} lines")
        return self.violations

    def files(self):
        for top in ("include", "tests", "bench", "examples", "scripts", "cmake", "docs", ".ci"):
            for path in sorted((self.root / top).rglob("*")):
                if path.is_file() and path.suffix in TEXT and "__pycache__" not in path.parts:
                    yield path
        for path in sorted(self.root.iterdir()):
            if path.is_file() and (path.suffix in TEXT - {""}):
                yield path

    def header(self, path, name):
        lines = path.read_text(encoding="utf-8").splitlines()
        if path.suffix not in (".hpp", ".cuh"):
            return self.fail(path, 1, "a header is a .hpp or a .cuh")
        umbrella = name in UMBRELLAS
        room = None if umbrella else name.split("/")[0]
        if not umbrella and ("/" not in name or room not in FLOOR):
            return self.fail(path, 1, "the file is in no known room and is no known umbrella")

        if "#pragma once" not in lines:
            self.fail(path, 1, "#pragma once is missing")
        if len(lines) > HEADER_LINES and room != "kernels":
            self.fail(path, HEADER_LINES + 1, f"the header has more than {HEADER_LINES} lines")
        self.functions(path, lines)
        if not umbrella:
            self.tested(path, name, room)

        for number, line in enumerate(lines, 1):
            if found := INCLUDE.match(line):
                self.included(path, number, name, room, found[1])
            if "no_unique_address" in line:
                self.fail(path, number, "host and device disagree where members lie beside [[no_unique_address]]")
            if re.match(r"\s*#\s*(if|elif).*__CUDACC__", line) and not umbrella and name != "core/config.hpp":
                self.fail(path, number, "__CUDACC__ is asked outside core/config.hpp and the umbrellas")

    def included(self, path, number, name, room, target):
        if target.startswith("moiety/"):
            inner = target.removeprefix("moiety/")
            if not (self.root / "include" / target).is_file():
                self.fail(path, number, f"included file is missing: {target}")
            if path.suffix == ".hpp" and inner.endswith(".cuh"):
                self.fail(path, number, f"a .hpp includes a .cuh: {target}")
            if room is None:
                return
            if inner in UMBRELLAS and room != "testing":
                return self.fail(path, number, f"a room includes an umbrella: {target}")
            other = inner.split("/")[0]
            if other not in FLOOR:
                return
            if FLOOR[other] > FLOOR[room]:
                self.fail(path, number, f"{room} is below {other}: {target}")
            elif FLOOR[other] == FLOOR[room] and other != room and (room, other) not in SIBLINGS:
                self.fail(path, number, f"{room} and {other} are siblings: {target}")
            return
        if '"' in path.read_text(encoding="utf-8").splitlines()[number - 1]:
            self.fail(path, number, f"own headers are included as <moiety/...>: {target}")
        for dependency, (header, place) in OPTIONAL.items():
            if header.match(target) and not place.search(f"moiety/{name}"):
                self.fail(path, number, f"a header that works without {dependency} includes {target}")
        if COSTLY.match(target):
            self.fail(path, number, f"an include that costs every user seconds: {target}")

    def tested(self, path, name, room):
        suffix = "cu" if path.suffix == ".cuh" else "cpp"
        if not any((self.root / "tests" / room).rglob(f"{Path(name).stem}_test.{suffix}")):
            wanted = Path(name).with_suffix("").as_posix()
            self.fail(path, 1, f"the header has no test: tests/{wanted}_test.{suffix}")

    def functions(self, path, lines):
        """Bodies by indentation: from a brace opened after a parameter list to the next one closed that far out."""
        for start, line in enumerate(lines):
            if not line.rstrip().endswith("{") or ")" not in line or line.lstrip().startswith(("namespace", "//", "#")):
                continue
            indent = len(line) - len(line.lstrip())
            for end in range(start + 1, len(lines)):
                text = lines[end].lstrip()
                if text.startswith("}") and len(lines[end]) - len(text) <= indent:
                    if end - start + 1 > FUNCTION_LINES:
                        self.fail(path, start + 1, f"the function has more than {FUNCTION_LINES} lines")
                    break

    def test(self, path):
        """The first include of a test is the header tested, so that the header is known to stand alone."""
        relative = path.relative_to(self.root / "tests")
        if len(relative.parts) == 1 or relative.parts[0] not in FLOOR:
            return
        name = path.stem.removesuffix("_test")
        headers = [h for suffix in ("hpp", "cuh")
                   for h in (self.root / "include" / "moiety" / relative.parts[0]).rglob(f"{name}.{suffix}")]
        if not headers:
            return self.fail(path, 1, "the test has no header of its name")
        wanted = {h.relative_to(self.root / "include").as_posix() for h in headers}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if found := INCLUDE.match(line):
                if found[1] not in wanted:
                    self.fail(path, number, f"the first include of the test is not its header: {found[1]}")
                return

    def text(self, path):
        relative = path.relative_to(self.root).as_posix()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            return
        foreign = relative.startswith(FOREIGN) and path.suffix in (".cpp", ".cu")
        if path.suffix in SPDX_SUFFIXES and not foreign:
            first = 1 if lines and lines[0].startswith("#!") else 0
            if len(lines) <= first or SPDX not in lines[first]:
                self.fail(path, first + 1, f"the file does not begin with {SPDX}")
        for number, line in enumerate(lines, 1):
            if found := UNFINISHED.search(line):
                self.fail(path, number, f"unfinished word: {found[0]}")
            if MACHINE.search(line):
                self.fail(path, number, "a path of one machine")


if __name__ == "__main__":
    violations = Check(sys.argv[1]).run()
    print("\n".join(violations) if violations else "every rule holds")
    sys.exit(bool(violations))
