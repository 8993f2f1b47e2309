#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The mutation harness on a library of one line: a seen bug, an unseen one, a stale patch, a test that fails
anyway, kernels that are tested on the CPU."""
import subprocess
import sys
import tempfile
from pathlib import Path

FILES = {
    "include/one.hpp": "inline int one() { return 1; }\n",
    "tests/main.cpp": "bool test();\nint main() { return test() ? 0 : 1; }\n",
    "tests/one_test.cpp": "#include <one.hpp>\nbool test() { return one() == 1; }\n",
    "tests/blind_test.cpp": "#include <one.hpp>\nbool test() { return one() > 0; }\n",
    "tests/sick_test.cpp": "bool test() { return false; }\n",
    "tests/cuda_on_cpu/cuda_runtime.h": "#define __global__\n",
    "tests/one_test.cu": "#include <cuda_runtime.h>\n#include <one.hpp>\nbool test() { return one() < 2; }\n",
    "tests/half_test.cu": "#include <cuda_runtime.h>\n#include <one.hpp>\n__global__ int two() { return 2 * one(); }\n",
    "tests/half_test.cpp": "int two();\nbool test() { return two() == 2; }\n",
}
PATCH = """# two for one
# kills: {test}
--- a/include/one.hpp
+++ b/include/one.hpp
@@ -1 +1 @@
-inline int one() {{ return {old}; }}
+inline int one() {{ return 2; }}
"""
CASES = [  # patch, exit status, what must be printed
    (PATCH.format(test="one_test.cpp", old=1), 0, ["killed    case: exit status 1", "killed 1 of 1"]),
    (PATCH.format(test="one_test.cu", old=1), 0, ["killed    case: exit status 1", "killed 1 of 1"]),
    (PATCH.format(test="half_test.cpp half_test.cu", old=1), 0, ["killed    case: exit status 1", "killed 1 of 1"]),
    (PATCH.format(test="blind_test.cpp", old=1), 1, ["SURVIVED  case", "killed 0 of 1"]),
    (PATCH.format(test="one_test.cpp", old=3), 1, ["BROKEN    case: the patch no longer applies", "killed 0 of 1"]),
    (PATCH.format(test="one_test.cpp", old=1).replace("return 2", "return"), 1, ["BROKEN    case: does not compile"]),
    (PATCH.format(test="sick_test.cpp", old=1), 1, ["BROKEN    unpatched sick_test.cpp"]),
    ("# no tests named\n", 1, ["BROKEN    case: "]),
]

failures = []
for patch, status, printed in CASES:
    with tempfile.TemporaryDirectory() as name:
        for file, text in {**FILES, "tests/mutations/case.patch": patch}.items():
            path = Path(name, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        run = subprocess.run([sys.executable, "-B", Path(__file__).with_name("run.py"), "--root", name, *sys.argv[1:]],
                             capture_output=True, text=True)
    if run.returncode != status or any(text not in run.stdout for text in printed):
        failures.append(f"expected {status} and {printed}, found {run.returncode} and\n{run.stdout}{run.stderr}")
print("\n".join(failures) if failures else f"{len(CASES)} cases judged as they should be")
sys.exit(bool(failures))
