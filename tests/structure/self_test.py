#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The structure checks against small trees: a good one passes, and each way to break a rule is named."""
import sys
import tempfile
from pathlib import Path

import documents
from check import EXAMPLE_LINES, FUNCTION_LINES, HEADER_LINES, Check

HEAD = "// SPDX-License-Identifier: Apache-2.0\n"
HEADER = HEAD + "#pragma once\n"

GOOD = {
    "include/moiety/core/a.hpp": HEADER + "#include <vector>\n",
    "include/moiety/kernels/host/b.hpp": HEADER + "#include <moiety/core/a.hpp>\n#include <moiety/batch/c.hpp>\n"
                                         + "//\n" * HEADER_LINES,
    "include/moiety/batch/c.hpp": HEADER,
    "include/moiety/core/config.hpp": HEADER + "#if defined(__CUDACC__)\n#endif\n",
    "include/moiety/moiety.hpp": HEADER + "#include <moiety/core/a.hpp>\n",
    "tests/core/a_test.cpp": HEAD + "#include <moiety/core/a.hpp>\n",
    "tests/core/config_test.cpp": HEAD + "#include <moiety/core/config.hpp>\n",
    "tests/kernels/b_test.cpp": HEAD + "#include <moiety/kernels/host/b.hpp>\n",
    "tests/batch/c_test.cpp": HEAD + "#include <moiety/batch/c.hpp>\n",
    "scripts/run": "#!/usr/bin/env bash\n" + HEAD,
}

TESTED = {"tests/core/x_test.cpp": HEAD + "#include <moiety/core/x.hpp>\n"}


def core(text):
    return {"include/moiety/core/x.hpp": text, **TESTED}


# What is added to the good tree, and the one line that it must lead to.
BAD = [
    (core(HEADER + "#include <moiety/batch/c.hpp>\n"), "core/x.hpp:3: core is below batch"),
    ({"include/moiety/mesh/x.hpp": HEADER + "#include <moiety/batch/c.hpp>\n",
      "tests/mesh/x_test.cpp": HEAD + "#include <moiety/mesh/x.hpp>\n"}, "mesh/x.hpp:3: mesh and batch are siblings"),
    ({"include/moiety/batch/x.hpp": HEADER + "#include <moiety/kernels/host/b.hpp>\n",
      "tests/batch/x_test.cpp": HEAD + "#include <moiety/batch/x.hpp>\n"}, "x.hpp:3: batch and kernels are siblings"),
    (core(HEADER + "#include <moiety/moiety.hpp>\n"), "core/x.hpp:3: a room includes an umbrella"),
    (core(HEADER + "#include <moiety/core/none.hpp>\n"), "core/x.hpp:3: included file is missing"),
    (core(HEADER + '#include "a.hpp"\n'), "core/x.hpp:3: own headers are included as <moiety/...>"),
    ({**core(HEADER + "#include <moiety/core/d.cuh>\n"), "include/moiety/core/d.cuh": HEADER,
      "tests/core/d_test.cu": HEAD + "#include <moiety/core/d.cuh>\n"}, "core/x.hpp:3: a .hpp includes a .cuh"),
    ({"include/moiety/core/d.cuh": HEADER, "tests/core/d_test.cu": HEAD + "#include <vector>\n"},
     "tests/core/d_test.cu:2: the first include of the test is not its header"),
    (core(HEADER + "#include <cuda_runtime.h>\n"), "core/x.hpp:3: a header that works without CUDA includes"),
    (core(HEADER + "#include <mpi.h>\n"), "core/x.hpp:3: a header that works without MPI includes"),
    (core(HEADER + "#include <nccl.h>\n"), "core/x.hpp:3: a header that works without NCCL includes"),
    ({"include/moiety/core/x.cuh": HEADER + "#include <cub/cub.cuh>\n",
      "tests/core/x_test.cu": HEAD + "#include <moiety/core/x.cuh>\n"}, "x.cuh:3: an include that costs every user"),
    ({"include/moiety/core/a.cuh": HEADER}, "core/a.cuh:1: the header has no test: tests/core/a_test.cu"),
    (core(HEADER + "#ifdef __CUDACC__\n#endif\n"), "core/x.hpp:3: __CUDACC__"),
    (core(HEADER + "//\n" * HEADER_LINES), f"the header has more than {HEADER_LINES} lines"),
    (core(HEADER + "void f() {\n" + "  ;\n" * FUNCTION_LINES + "}\n"), "core/x.hpp:3: the function has more than"),
    (core(HEAD), "core/x.hpp:1: #pragma once is missing"),
    (core("#pragma once\n"), "core/x.hpp:1: the file does not begin with SPDX"),
    ({"include/moiety/core/x.hpp": HEADER}, "core/x.hpp:1: the header has no test: tests/core/x_test.cpp"),
    ({"include/moiety/cellar/x.hpp": HEADER}, "cellar/x.hpp:1: the file is in no known room"),
    ({"include/moiety/x.hpp": HEADER}, "moiety/x.hpp:1: the file is in no known room and is no known umbrella"),
    ({"include/moiety/core/x.h": HEADER}, "core/x.h:1: a header is a .hpp or a .cuh"),
    ({**core(HEADER), "tests/core/x_test.cpp": HEAD + "#include <vector>\n"}, "the first include of the test is not"),
    ({"tests/core/x_test.cpp": HEAD}, "tests/core/x_test.cpp:1: the test has no header of its name"),
    ({"examples/1.cpp": HEAD + "//\n" * EXAMPLE_LINES}, f"the example has more than {EXAMPLE_LINES} lines"),
    ({"docs/x.md": "To be written: TO" "DO\n"}, "docs/x.md:1: unfinished word"),
    ({"scripts/x": "cd /ho" "me/somebody\n"}, "scripts/x:1: a path of one machine"),
]


# The same for the documents.
PROGRAM = HEAD + "int main() {\n  int a = 1;\n\n  int b = 2;\n  return a - b;\n}\n"
GOOD_DOCUMENTS = {
    "examples/1.cpp": PROGRAM,
    "include/moiety/x.hpp": HEADER + "concept c = true;\n",
    "scripts/test": "",
    "README.md": "Run `scripts/test`, see [docs](docs/a.md) or [there](https://x.y).\n"
                 "```cpp\nint a = 1;\n\nint b = 2;\n```\n```cpp\nint main() {\n  // ...\n  return a - b;\n```\n"
                 "```\nany text\n```\n",
    "docs/a.md": "```cpp\nconcept c = true;\n```\n[up](../README.md#there)\n",
}
BAD_DOCUMENTS = [
    ({"README.md": "\n```cpp\nint a = 2;\n```\n"}, "README.md:2: the block stands in no file under examples"),
    ({"README.md": "```cpp\nint b = 2;\nint a = 1;\n```\n"}, "README.md:1: the block stands in no file"),
    ({"README.md": "```cpp\nreturn a - b;\n// ...\nint a = 1;\n```\n"}, "README.md:1: the block stands in no file"),
    ({"README.md": "```cpp\nconcept c = true;\n```\n"}, "README.md:1: the block stands in no file under examples"),
    ({"docs/b.md": "```cpp\nconcept d = true;\n```\n"}, "docs/b.md:1: the block stands in no file under examples,"),
    ({"README.md": "[docs](docs/none.md)\n"}, "README.md: the link leads nowhere: docs/none.md"),
    ({"README.md": "`scripts/none`\n"}, "README.md: there is no scripts/none"),
]


def structure(root):
    return Check(root).run()


def faults(check, files):
    with tempfile.TemporaryDirectory() as root:
        for name, text in files.items():
            path = Path(root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return check(root)


failures = []
for check, good, bad in (structure, GOOD, BAD), (documents.check, GOOD_DOCUMENTS, BAD_DOCUMENTS):
    failures += [f"the good tree: {fault}" for fault in faults(check, good)]
    for files, expected in bad:
        found = faults(check, {**good, **files})
        if len(found) != 1 or expected not in found[0]:
            failures.append(f"expected '{expected}', found {found}")
print("\n".join(failures) if failures else f"{len(BAD) + len(BAD_DOCUMENTS)} broken rules named")
sys.exit(bool(failures))
