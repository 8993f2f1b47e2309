#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""merge.py OUT.json PASS.json...: the repetitions of several passes as those of one run, with the best ceilings of all."""
import json
import sys
from pathlib import Path


def merged(passes):
    run = passes[0]
    run["benchmarks"] = [row for one in passes for row in one["benchmarks"] if row["run_type"] == "iteration"]
    for key in run["context"]:
        if "_gflops_" in key or "_gbytes_" in key:
            run["context"][key] = max((one["context"][key] for one in passes), key=float)
    return run


def main(arguments):
    out, *paths = map(Path, arguments)
    out.write_text(json.dumps(merged([json.loads(path.read_text()) for path in paths]), indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
