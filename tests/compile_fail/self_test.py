#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The harness itself: it accepts a good case, and names what is wrong with each bad one."""
import sys
import tempfile
from pathlib import Path

from check import judge

REFUSED = 'static_assert(false, "a {0} is no {1}.");\n'
TWICE = 'static_assert(false, "another fault.");\n'


def case(head, wrong, right=""):
    return f"{head}\n#ifdef MOIETY_CORRECT\n{right}#else\n{wrong}#endif\n"


CASES = [
    (case("// expect: a {0} is no {1}.", REFUSED), None),
    (case("// expect-regex: a .* is no", REFUSED), None),
    (case("// expect: a {0} is no {1}.\n// errors: 2", REFUSED + TWICE), None),
    (case("", REFUSED), "the case says no expectation"),
    (case("// expect: a {0} is no {1}.", ""), "the mistake compiles"),
    (case("// expect: something else", REFUSED), "expected first"),
    (case("// expect: a {0} is no {1}.", TWICE + REFUSED), "expected first"),
    (case("// expect: a {0} is no {1}.", REFUSED + TWICE), "one mistake gives 2 errors"),
    (case("// expect: a {0} is no {1}.", REFUSED, REFUSED), "the corrected case does not compile"),
]

failures = []
with tempfile.TemporaryDirectory() as folder:
    for text, expected in CASES:
        path = Path(folder, "case.cpp")
        path.write_text(text, encoding="utf-8")
        found = judge(path, [*sys.argv[1:], "-std=c++20"])
        if (expected is None) != (not found) or (expected and expected not in found[0]):
            failures.append(f"expected {expected}, found {found[:1]} for:\n{text}")
print("\n".join(failures) if failures else f"{len(CASES)} cases judged as they should be")
sys.exit(bool(failures))
