#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""headers.py INCLUDE NVCC: every .cuh compiles alone, for sm_90a and without a warning. Two at a time."""
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FLAGS = ["-std=c++20", "-gencode=arch=compute_90a,code=sm_90a", "-Werror", "all-warnings", "-Xcompiler",
         "-Wall,-Wextra,-Wconversion,-Wshadow", "-x", "cu", "-c"]


def compile_alone(include, nvcc, header, folder):
    source = Path(folder, header.relative_to(include).as_posix().replace("/", "_") + ".cu")
    source.write_text(f"#include <{header.relative_to(include).as_posix()}>\n", encoding="utf-8")
    begin = time.monotonic()
    done = subprocess.run([nvcc, *FLAGS, "-I", str(include), str(source), "-o", str(source.with_suffix(".o"))],
                          capture_output=True, text=True)
    return done.returncode, time.monotonic() - begin, (done.stdout + done.stderr).strip()


def main(include, nvcc):
    include = Path(include).resolve()
    headers = sorted(include.rglob("*.cuh"))
    failed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        for header, (status, seconds, text) in zip(
                headers, pool.map(lambda header: compile_alone(include, nvcc, header, folder), headers)):
            print(f"{'ok    ' if status == 0 else 'FAILED'} {seconds:5.1f} s  {header.relative_to(include).as_posix()}")
            if status != 0:
                failed += 1
                print("\n".join(text.splitlines()[:12]))
    print(f"{len(headers)} headers, {failed} failed")
    return failed != 0 or not headers


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
