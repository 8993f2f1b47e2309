#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""symbols.py NM FIRST.o SECOND.o: objects built for two instruction sets define no symbol of the library in common."""
import subprocess
import sys


def defined(nm, obj):
    """Mangled names that the object defines for the linker and that are made of the library's types."""
    out = subprocess.run([nm, "--defined-only", "--extern-only", "-P", obj], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in out.stdout.splitlines() if "6moiety" in line.split()[0]}


nm, first, second = sys.argv[1:]
one, two = defined(nm, first), defined(nm, second)
common = sorted(one & two)
if not one or not two:
    print("an object defines nothing of the library: this test has no sense")
elif common:
    print("both instruction sets define:", *common, sep="\n")
else:
    print(f"{len(one)} and {len(two)} symbols, none in common")
sys.exit(not one or not two or bool(common))
