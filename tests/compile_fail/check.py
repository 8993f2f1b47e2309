#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""check.py CASE.cpp COMPILER FLAG...: what must not compile, and the sentence that says why.

A case opens with `// expect: SENTENCE` (or `// expect-regex: PATTERN`). The case must fail to compile with the sentence
in the first error and one error in all, and compile once MOIETY_CORRECT is defined, which mends the mistake alone.
`// errors: N` allows N errors where the compiler, not the library, finds the fault.
"""
import os
import re
import subprocess
import sys
from pathlib import Path


def compile_case(command, case, *flags):
    run = subprocess.run([*command, "-fsyntax-only", *flags, str(case)], capture_output=True, text=True,
                         env={**os.environ, "LC_ALL": "C"})
    errors = [line for line in run.stderr.splitlines() if re.search(r"\berror: ", line)]
    return run.returncode, errors, run.stderr


def judge(case, command):
    """The complaints about one case; none is good."""
    comments = dict(re.findall(r"^// (expect|expect-regex|errors): (.*)$", case.read_text(encoding="utf-8"), re.M))
    if "expect" in comments:
        pattern = re.escape(comments["expect"])
    elif "expect-regex" in comments:
        pattern = comments["expect-regex"]
    else:
        return ["the case says no expectation"]

    status, errors, output = compile_case(command, case)
    complaints = []
    if status == 0:
        complaints.append("the mistake compiles")
    elif not errors or not re.search(pattern, errors[0]):
        complaints += [f"expected first: {pattern}", "the compiler said:", output]
    elif len(errors) > int(comments.get("errors", 1)):
        complaints += [f"one mistake gives {len(errors)} errors:", *errors]

    status, _, output = compile_case(command, case, "-DMOIETY_CORRECT")
    if status != 0:
        complaints += ["the corrected case does not compile:", output]
    return complaints


if __name__ == "__main__":
    found = judge(Path(sys.argv[1]), sys.argv[2:])
    print("\n".join(found) if found else "refused, and said why")
    sys.exit(bool(found))
