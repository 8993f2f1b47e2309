#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""terminal.py TRAIN_LM TEXT: on a terminal one line rewrites itself, elsewhere lines are plain; with text sampled at the end."""
import os
import pty
import subprocess
import sys

COMMAND = [sys.argv[1], "--text", sys.argv[2], "--steps", "40", "--batch", "2", "--context", "16", "--layers", "1",
           "--hidden", "64", "--heads", "2", "--sample", "20", "--csv", "", "--html", ""]
SHOWN = ("bits/byte", "balance", " z ", "max/mean load", "tokens/s", "s left")


def on_a_terminal():
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(COMMAND[0], COMMAND)
    output = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end is closed
            part = b""
        if not part:
            break
        output += part
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, output
    return output.decode(errors="replace").replace("\r\n", "\n")


live = on_a_terminal()
plain = subprocess.run(COMMAND, capture_output=True, check=True).stdout.decode(errors="replace")
for text in (live, plain):
    steps = [line for line in text.split("\n") if "step " in line and "bits/byte" in line]
    assert steps and all(word in steps[-1] for word in SHOWN), text
    assert "\nsample, after the prompt in brackets:\n[" in text, text
assert "\r" in live and "\033[K" in live, live
assert live.split("validation")[0].strip("\n").count("\n") == 0, live
assert "\r" not in plain and "\033" not in plain, plain
assert len([line for line in plain.split("\n") if line.startswith("step ")]) == 20, plain
print("a live line on a terminal, plain lines elsewhere")
