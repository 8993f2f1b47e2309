#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Known bugs, one a patch against include/, and whether the tests see them.

A patch opens with `# TITLE`, then `# kills: TEST [TEST ...]` (sources under tests/, built into one program; a *.cu is
built for the CPU, as tests/cuda_on_cpu does; mpi*_test.cpp run as two processes). Each patch is applied to a copy of
include/, the named tests are compiled against the copy and run: they must fail. The unpatched tests must pass first,
else a kill proves nothing. Prints `killed N of M`; succeeds where N = M.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN_SECONDS = 300
FLAGS = ["-std=c++20", "-march=native", "-ffp-contract=off", "-pthread", "-DOMPI_SKIP_MPICXX", "-DMPICH_SKIP_MPICXX"]
# Tests of the transport mpi run as two processes.
LAUNCHER = ["mpirun", "-n", "2"]
MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
# Whole layers take the compiler longer than their tests; kernels and sums the other way round.
OPTIMISED = ("kernels/", "losses/", "batch/", "core/", "schedule/")


class Broken(Exception):
    """A patch that cannot be judged."""


def build_and_run(options, include, sources, folder):
    """True if the tests pass; a mutant that crashes or hangs is seen too. One that does not compile is no mutant."""
    program, tests = folder / "program", options.root / "tests"
    compiler, main, launcher = options.compiler, options.main, []
    if of_processes(sources):
        compiler, main, launcher = "mpicxx", tests / "mpi" / "main.cpp", LAUNCHER
    environment = {**os.environ, **MPI, "OMPI_CXX": options.compiler, "MPICH_CXX": options.compiler}
    optimised = any(s.startswith(OPTIMISED) or s.endswith(".cu") for s in sources)
    folders = [part for place in (tests / "cuda_on_cpu", include, tests) for part in ("-I", place)]
    compiled = subprocess.run([compiler, *FLAGS, "-O1" if optimised else "-O0", *folders, "-x", "c++",
                               *(tests / s for s in sources), "-x", "none", main, "-rdynamic", "-o", program],
                              capture_output=True, text=True, env=environment)
    if compiled.returncode != 0:
        raise Broken("does not compile: " + next((l for l in compiled.stderr.splitlines() if "error" in l), ""))
    try:
        ran = subprocess.run([*launcher, program, "--abort-after=1"], capture_output=True, text=True, errors="replace",
                             timeout=RUN_SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return False, f"ran more than {RUN_SECONDS} s"
    failed = re.findall(r"^(?:.*ERROR: |cuda_on_cpu: )(.*)$", ran.stderr + ran.stdout, re.M)
    return ran.returncode == 0, failed[0] if failed else f"exit status {ran.returncode}"


def of_processes(sources):
    return any(Path(s).name.startswith("mpi") for s in sources)


def sources_of(patch):
    found = re.search(r"^# kills: (.+)$", patch.read_text(encoding="utf-8"), re.M)
    if not found:
        raise Broken("no line '# kills: TEST'")
    return tuple(found[1].split())


def judge(options, patch):
    """(killed, why) for one patch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(options.root / "include", folder / "include")
        applied = subprocess.run(["patch", "-p1", "--fuzz=0", "--batch", "-i", patch.resolve()], cwd=folder,
                                 capture_output=True, text=True)
        if applied.returncode != 0:
            raise Broken("the patch no longer applies: " + applied.stdout.strip().replace("\n", " "))
        passes, why = build_and_run(options, folder / "include", sources_of(patch), folder)
        return not passes, why


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("patches", nargs="*", type=Path, help="all of tests/mutations/*.patch if none is named")
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--root", type=Path, default=ROOT)
    options = parser.parse_args()
    options.root = options.root.resolve()
    patches = options.patches or sorted((options.root / "tests" / "mutations").glob("*.patch"))
    if not shutil.which("mpicxx"):
        print("left out, as MPI is not installed: patches of the transport mpi")
        patches = [p for p in patches if not of_processes(sources_of(p))]
    with ThreadPoolExecutor(options.jobs) as pool, tempfile.TemporaryDirectory() as folder:
        options.main = Path(folder, "main.o")
        subprocess.run([options.compiler, *FLAGS, "-c", options.root / "tests" / "main.cpp", "-o", options.main],
                       check=True)
        return report(patches, pool, options)


def report(patches, pool, options):
    def attempt(work):
        try:
            return work()
        except Broken as broken:
            return broken

    def healthy(sources):
        with tempfile.TemporaryDirectory() as folder:
            return attempt(lambda: build_and_run(options, options.root / "include", sources, Path(folder)))

    named = [attempt(lambda p=patch: sources_of(p)) for patch in patches]
    groups = sorted({s for s in named if not isinstance(s, Broken)})
    sick = False
    for sources, result in zip(groups, pool.map(healthy, groups)):
        passes, why = (False, result) if isinstance(result, Broken) else result
        if not passes:
            sick = True
            print(f"BROKEN    unpatched {' '.join(sources)}: {why}", flush=True)

    killed = 0
    for patch, result in zip(patches, pool.map(lambda p: attempt(lambda: judge(options, p)), patches)):
        if isinstance(result, Broken):
            sick = True
            print(f"BROKEN    {patch.stem}: {result}", flush=True)
            continue
        dead, why = result
        killed += dead
        print(f"killed    {patch.stem}: {why}" if dead else f"SURVIVED  {patch.stem}", flush=True)
    print(f"killed {killed} of {len(patches)}")
    return 0 if killed == len(patches) and not sick else 1


if __name__ == "__main__":
    sys.exit(main())
