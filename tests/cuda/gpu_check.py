#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""gpu_check.py ROOT: scripts/gpu-check among programs that pretend: no GPU, a failure, time that runs out, markers."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAMS = {
    "nvidia-smi": """case "$*" in *name*) echo "GPU 1" ;; *) echo 580 ;; esac""",
    "cmake": "exit 0",
    "compute-sanitizer": """echo "$@" >>sanitizers""",
    "ctest": """
if [[ "$*" == *-N* ]]; then
  printf '  Test  #1: gpu/kernels/a\\n  Test #12: gpu/layer/b\\n\\nTotal Tests: 2\\n' && exit
fi
[[ "$*" != *layer/b* || -e fixed ]]""",
}
BENCH = """#!/usr/bin/env python3
import json, os, sys
asked = dict(zip(sys.argv[1::2], sys.argv[2::2]))
common = dict(us=1000.0, p10=1.0, p90=2.0, replays=30, calls=1, clock_before=1, clock_after=1)
with open(asked["--out"], "a") as file:
    for name, flops, bytes in (("ceiling/copy", 0, 1e9), ("ceiling/bf16", 1e12, 0), ("ceiling/float", 1e10, 0),
                               ("64/x/y", 0, 1e6)):
        row = dict(name=asked["--model"] + "/" + name, flops=flops, bytes=bytes, tensor_cores=False, **common)
        file.write(json.dumps(row) + "\\n")
sys.exit(0 if asked["--model"] == "qwen3" or os.path.exists("fixed") else 75)
"""
PEERS = """import pathlib, sys
ours, out = map(pathlib.Path, sys.argv[1:3])
if not ours.exists() or sys.argv[3] != "--rows" or float(sys.argv[6]) > 540:
    sys.exit(1)
print("peers of", ours.name)
out.write_text("{}")
sys.exit(0 if pathlib.Path("ready").exists() else 75)
"""
PLOT = """import pathlib, sys
pathlib.Path(sys.argv[2]).write_text(pathlib.Path(sys.argv[1]).read_text())
"""


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if text.startswith("#!") else "#!/usr/bin/env bash\n" + text + "\n", encoding="utf-8")
    path.chmod(0o755)


def run(root, *arguments):
    done = subprocess.run([str(root / "scripts" / "gpu-check"), *arguments], capture_output=True, text=True,
                          env={**os.environ, "PATH": f"{root / 'bin'}:{os.environ['PATH']}"})
    return done.returncode, done.stdout + done.stderr


def expect(wanted, result, *sentences):
    status, text = result
    if status != wanted or not all(sentence in text for sentence in sentences):
        sys.exit(f"expected {wanted} and {sentences}, found {status}:\n{text}")


with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    shutil.copytree(Path(sys.argv[1], "scripts"), root / "scripts")
    shutil.copytree(Path(sys.argv[1], "bench", "cuda"), root / "bench" / "cuda")
    program(root / "bin" / "nvidia-smi", "exit 9")
    expect(77, run(root), "no GPU on this machine")
    expect(2, run(root, "tests"), "usage")
    for name, text in PROGRAMS.items():
        program(root / "bin" / name, text)
    program(root / "build" / "cuda" / "bench" / "cuda" / "moiety_bench_cuda", BENCH)
    expect(1, run(root, "test"), "passed   gpu/kernels/a", "FAILED   gpu/layer/b", "== test FAILED")
    expect(1, run(root, "peers"), "bench has written nothing")
    expect(75, run(root, "build", "sanitize", "bench"), "passed   racecheck/gpu/kernels/a", "start it again")
    sanitizers = (root / "sanitizers").read_text().splitlines()
    if len(sanitizers) != 4 or any("*/tests/kernels/a_test.cu" not in line for line in sanitizers):
        sys.exit(f"the sanitizers were asked for {sanitizers}")
    (root / "fixed").touch()
    expect(0, run(root), "== build: done before", "passed   gpu/layer/b", "== sanitize: done before", "mixtral/64/x/y",
           "peers were not measured")
    (document,) = (root / "bench" / "results").glob("*.json")
    if len(json.loads(document.read_text())["rows"]) != 4:
        sys.exit("the JSON does not hold the four rows")
    expect(0, run(root), "== bench: done before", "== peers: done before")
    (root / "build" / "gpu-check" / "unknown.peers.done").unlink()
    (root / "bench" / "cuda" / "peers.py").write_text(PEERS)
    (root / "bench" / "plot_cuda.py").write_text(PLOT)
    expect(75, run(root, "peers"), f"peers of {document.name}", "start it again")
    (root / "ready").touch()
    expect(0, run(root, "peers"), f"peers of {document.name}")
    if document.with_name(document.stem + "-peers.svg").read_text() != "{}":
        sys.exit("the plot is not drawn from the JSON of the peers")
