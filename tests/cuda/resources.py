#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the compiler gives each kernel: no spilled register, no asynchronous products in sequence, and not more registers
than registers.json says.

resources.py NVCC INCLUDE ARCH... [--update]   compiles SOURCES for each ARCH (80, 90a, ...) and compares; or writes what it
                                               finds into registers.json, for these ARCHs
resources.py --self                            reads two short reports
registers.json: {"sm_90a": {"kernel": the most registers of its instances}}. A kernel is its name without parameters;
those of other libraries are not looked at.
"""
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TABLE = Path(__file__).with_name("registers.json")
SOURCES = [Path(__file__).with_name(name) for name in ("instances.cu", "policies.cu")]
OURS = "6moiety"
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SERIAL = re.compile(r"\(C75\d\d\)")  # products that ptxas makes wait for each other


def base_name(mangled):
    """The last source name of a mangled nested name, before its template arguments: _ZN1a1bIiEEvv is b."""
    rest = re.sub(r"^_ZN?K?", "", mangled)
    name = mangled
    while found := re.match(r"(\d+)", rest):
        length = int(found[1])
        name = rest[found.end():found.end() + length]
        rest = rest[found.end() + length:]
        if rest.startswith("I"):
            break
    return name


def read(report):
    """{(arch, kernel): most registers}, and the kernels that spill, of one report of -Xptxas -v."""
    registers, spills, entry = {}, [], None
    for line in report.splitlines():
        if found := ENTRY.search(line):
            entry = (found[2], base_name(found[1])) if OURS in found[1] else None
        elif found := SPILL.search(line):
            if entry and (int(found[1]) or int(found[2])):
                spills.append((*entry, int(found[1]), int(found[2])))
        elif (found := USED.search(line)) and entry:
            registers[entry] = max(registers.get(entry, 0), int(found[1]))
            entry = None
    return registers, spills


def serial(report):
    return [line.strip() for line in report.splitlines() if SERIAL.search(line)]


def compare(registers, spills, table):
    faults = [f"{arch} {kernel}: spills {stores} bytes of stores and {loads} of loads"
              for arch, kernel, stores, loads in spills]
    for (arch, kernel), used in sorted(registers.items()):
        allowed = table.get(arch, {}).get(kernel)
        if allowed is None:
            faults.append(f"{arch} {kernel}: {used} registers, and the table does not know it")
        elif used > allowed:
            faults.append(f"{arch} {kernel}: {used} registers, and the table allows {allowed}")
    for arch in sorted({arch for arch, _ in registers}):
        faults += [f"{arch} {kernel}: in the table, but there is no such kernel"
                   for kernel in table.get(arch, {}) if (arch, kernel) not in registers]
    return faults


def compile_for(nvcc, include, architectures, source):
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([nvcc, "-std=c++20", "--fmad=false", "-Werror", "all-warnings", *codes, "-Xptxas", "-v",
                               "-I", include, "-c", str(source), "-o", str(Path(folder, "instances.o"))],
                              capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit("\n".join((done.stdout + done.stderr).splitlines()[:40]) or "nvcc failed")
    return done.stdout + done.stderr


def self_test():
    report = ("ptxas info    : Compiling entry function '_ZN6moiety5v0_1_2fmIiEEvv' for 'sm_80'\n"
              "    0 bytes stack frame, {} bytes spill stores, 0 bytes spill loads\n"
              "ptxas info    : Used 40 registers, used 1 barriers\n"
              "ptxas info    : Compiling entry function '_ZN6moiety5v0_1_2fmIlEEvv' for 'sm_80'\n"
              "ptxas info    : Used 32 registers\n")
    registers, spills = read(report.format(0))
    assert registers == {("sm_80", "fm"): 40} and not spills
    assert compare(registers, spills, {"sm_80": {"fm": 40}}) == []
    assert "allows 39" in compare(registers, spills, {"sm_80": {"fm": 39}})[0]
    assert "does not know" in compare(registers, spills, {})[0]
    assert "no such kernel" in compare(registers, spills, {"sm_80": {"fm": 40, "g": 1}})[0]
    assert "spills 8 bytes" in compare(*read(report.format(8)), {"sm_80": {"fm": 40}})[0]
    assert base_name("_Z5plainv") == "plain"
    assert serial(report) == [] and len(serial("ptxas info : (C7510) Potential Performance Loss: wgmma\n" + report)) == 1


def main(arguments):
    if arguments == ["--self"]:
        return self_test()
    update = "--update" in arguments
    nvcc, include, *architectures = (a for a in arguments if a != "--update")
    report = "".join(compile_for(nvcc, include, architectures, source) for source in SOURCES)
    registers, spills = read(report)
    table = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    if update:
        for arch in {arch for arch, _ in registers}:
            table[arch] = {kernel: used for (of, kernel), used in sorted(registers.items()) if of == arch}
        TABLE.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    faults = compare(registers, spills, table) + serial(report)
    print("\n".join(faults) if faults else f"{len(registers)} kernels, none spills or takes more registers than the table says")
    return 1 if faults or not registers else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
