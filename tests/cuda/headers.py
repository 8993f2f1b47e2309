#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What nvcc takes, for sm_90a and without a warning; two at a time.

headers.py INCLUDE NVCC         every .cuh, alone
headers.py INCLUDE NVCC TESTS   every *_test.cu under the folder TESTS
"""
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FLAGS = ["-std=c++20", "-gencode=arch=compute_90a,code=sm_90a", "-Werror", "all-warnings", "-Xcompiler",
         "-Wall,-Wextra,-Wconversion,-Wshadow", "-x", "cu", "-c"]


def compile_alone(include, nvcc, top, path, folder):
    name = path.relative_to(top).as_posix()
    source = Path(folder, name.replace("/", "_") + ".cu")
    source.write_text(f"#include <{name}>\n", encoding="utf-8")
    begin = time.monotonic()
    done = subprocess.run([nvcc, *FLAGS, "-I", str(include), "-I", str(top), "-I", str(path.parent), str(source), "-o",
                           str(source.with_suffix(".o"))], capture_output=True, text=True)
    return done.returncode, time.monotonic() - begin, (done.stdout + done.stderr).strip()


def finds_nccl(nvcc):
    run = subprocess.run([nvcc, "-E", "-x", "cu", "-"], input="#include <nccl.h>", capture_output=True, text=True)
    return run.returncode == 0


def main(include, nvcc, tests=None):
    top = Path(tests or include).resolve()
    paths = sorted(top.rglob("*_test.cu" if tests else "*.cuh"))
    paths = [path for path in paths if "cuda_on_cpu" not in path.parts]
    if not finds_nccl(nvcc):
        paths = [path for path in paths if not path.name.startswith("nccl")]
    failed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda path: compile_alone(Path(include).resolve(), nvcc, top, path, folder), paths)
        for path, (status, seconds, text) in zip(paths, results):
            print(f"{'ok    ' if status == 0 else 'FAILED'} {seconds:5.1f} s  {path.relative_to(top).as_posix()}")
            if status != 0:
                failed += 1
                print("\n".join(text.splitlines()[:12]))
    print(f"{len(paths)} files, {failed} failed")
    return failed != 0 or not paths


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
