#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""demo.py TRAIN_LM: the defaults beat the bigram baseline by half a bit per byte, within four minutes."""
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path

BITS = 0.5
SECONDS = 240


def busy_seconds():
    """Processor seconds that the whole machine has spent on anything."""
    user, nice, system = Path("/proc/stat").read_text(encoding="utf-8").split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def own_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def number(word, text):
    found = re.search(rf"^{word} +([0-9.]+)", text, re.M)
    assert found, text
    return float(found.group(1))


with tempfile.TemporaryDirectory() as folder:
    csv, html = Path(folder) / "steps.csv", Path(folder) / "page.html"
    start, busy = time.monotonic(), busy_seconds()
    run = subprocess.run([sys.argv[1], "--csv", str(csv), "--html", str(html)], capture_output=True, check=True)
    seconds, own = time.monotonic() - start, own_seconds()
    others = busy_seconds() - busy - own
    text = run.stdout.decode(errors="replace")
    lines = csv.read_text(encoding="utf-8").splitlines()
    page = html.read_text(encoding="utf-8")

validation, bigram = number("validation", text), number("bigram", text)
steps = int(number("training", text))
processors = len(os.sched_getaffinity(0))
print(f"{validation} bits per byte, bigram {bigram}, {steps} steps, {seconds:.0f} s, {own:.0f} processor seconds on "
      f"{processors} processors, {others:.0f} of others")
assert validation <= bigram - BITS, text
assert bigram < number("unigram", text), text
assert len(lines) == steps + 1, lines[-1]
xml.etree.ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
assert "\nsample, after the prompt in brackets:\n[" in text, text
assert own <= SECONDS * processors, f"{own:.0f} processor seconds"
# A clock says nothing where other programs have the processors.
assert seconds <= SECONDS or others > 0.1 * own, f"{seconds:.0f} s"
