#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""agree.py PROGRAM...: builds of one program for several instruction sets compute the same bits.

Each is run with --hashes: a line that says how a multiply-add rounds, then a line for every step. Those that round once
must print the same steps. Ends with 77, for skipped, where fewer than two of them can run on this processor.
"""
import subprocess
import sys
from pathlib import Path

first = None
compared = 0
differ = False
for program in sys.argv[1:]:
    ran = subprocess.run([program, "--hashes"], capture_output=True, text=True)
    name, (about, *steps) = Path(program).name, ran.stdout.splitlines() or [""]
    if ran.returncode not in (0, 77):
        sys.exit(f"{name} ended with status {ran.returncode}: {ran.stderr}")
    if ran.returncode == 77 or about.endswith("twice"):
        print(f"{name}: {about}: not compared")
        continue
    print(f"{name}: {about}: {len(steps)} steps")
    compared += 1
    first = first or (name, steps)
    if not steps or len(steps) != len(first[1]):
        sys.exit("another number of steps")
    for mine, other in zip(steps, first[1]):
        if mine != other:
            differ = True
            print(f"  {mine}\n  {other} in {first[0]}")
sys.exit(1 if differ else 0 if compared >= 2 else 77)
