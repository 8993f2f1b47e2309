#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""ends.py {zero,nonzero} SECONDS TEXT COMMAND...: the command ends so, in time, has said the text, and nothing wrong."""
import subprocess
import sys

wanted, seconds, text, *command = sys.argv[1:]
try:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=float(seconds))
except subprocess.TimeoutExpired as late:
    print(late.output)
    sys.exit(f"the job has not ended after {seconds} seconds")
print(done.stdout)
if (done.returncode == 0) != (wanted == "zero"):
    sys.exit(f"the job ended with {done.returncode}, and should with {wanted}")
if "wrong: " in done.stdout:
    sys.exit("the job said what it must not")
if text not in done.stdout:
    sys.exit(f"the job did not say: {text}")
