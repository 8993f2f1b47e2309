#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""check.py DUMP: compares every schedule of schedules.json with what the library makes, through the program DUMP."""
import hashlib
import json
import subprocess
import sys
from pathlib import Path

NAMES = {
    "1f1b": "one_f_one_b",
    "interleaved_1f1b_ep_overlap": "interleaved_1f1b_overlapped",
    "dualpipe": "dual_pipe",
    "dualpipe_v": "dual_pipe_v",
}


def ask(dump, requests):
    lines = "".join(f"{NAMES.get(n, n)} {p} {v} {m} {g}\n" for n, p, v, m, g in requests)
    out = subprocess.run([dump], input=lines, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(out) == len(requests)
    return [json.loads(line) for line in out]


class Checker:
    def __init__(self):
        self.checks = 0
        self.failures = []

    def equal(self, what, expected, got):
        self.checks += 1
        if isinstance(expected, float) and isinstance(got, (int, float)):
            same = abs(expected - got) < 1e-5
        else:
            same = expected == got
        if not same:
            self.failures.append(f"{what}: expected {str(expected)[:200]}, got {str(got)[:200]}")


def homes(stage_to_rank):
    """The rank of each stage, for the first and for the last micro-batch."""
    first, last = stage_to_rank.get("mb<m/2", stage_to_rank), stage_to_rank.get("mb>=m/2", stage_to_rank)
    return [[first[str(s)], last[str(s)]] for s in range(len(first))]


def check_schedule(check, want, got):
    label = f"{want['name']} p={want['p']} v={want['v']} m={want['m']}"
    if "error" in got:
        return check.equal(label, "a schedule", got["error"])
    check.equal(label + " actions", [",".join(r) for r in want["actions"]], got["csv"].split("\n"))
    check.equal(label + " hash", want["sha256"], hashlib.sha256(got["csv"].encode()).hexdigest())
    for model, metrics in want["metrics"].items():
        ours = got["metrics"][model]
        ours["bubble_over_ideal"] = ours["bubble_time"] / max(ours["work_per_rank"])
        for name, value in metrics.items():
            check.equal(f"{label} {model} {name}", value, ours[name])
    if "start_times_unit" in want:
        check.equal(label + " starts", want["start_times_unit"], got["starts"])
        check.equal(label + " stages", want["num_stages"], got["stages"])
        check.equal(label + " homes", homes(want["stage_to_rank"]), got["homes"])
        check.equal(label + " operations", want["lowered"]["lists"], got["lowered"])
        check.equal(label + " buffers", want["lowered"]["max_received_not_consumed"], got["buffers"])
        descending = want["weight_grad_accumulation_order"] == "descending"
        check.equal(label + " gradients", descending, bool(got["descending"]))


def check_grid_row(check, columns, row, got):
    want = dict(zip(columns, row))
    label = f"{want['name']} p={want['p']} v={want['v']} m={want['m']}"
    if "error" in got:
        return check.equal(label, "a schedule", got["error"])
    unit = got["metrics"]["unit"]
    check.equal(label + " makespan", want["makespan_unit"], unit["makespan"])
    check.equal(label + " span", want["max_rank_span_bubble_unit"], unit["max_rank_span_bubble"])
    check.equal(label + " peak", want["max_peak_until_W"], max(unit["peak_activations_until_W"]))
    check.equal(label + " skew", want["makespan_skew"], got["metrics"]["skew"]["makespan"])
    check.equal(label + " latency", want["makespan_latency1"], got["metrics"]["latency1"]["makespan"])
    check.equal(label + " hash", want["sha256_16"], hashlib.sha256(got["csv"].encode()).hexdigest()[:16])


def main():
    dump = sys.argv[1]
    golden = json.loads((Path(__file__).parent / "schedules.json").read_text())
    check = Checker()

    whole = golden["schedules"] + golden["schedules_more"]
    for want, got in zip(whole, ask(dump, [(s["name"], s["p"], s["v"], s["m"], 0) for s in whole])):
        check_schedule(check, want, got)

    columns, grid = golden["grid_columns"], golden["grid"]
    for row, got in zip(grid, ask(dump, [(r[0], r[1], r[2], r[3], 0) for r in grid])):
        check_grid_row(check, columns, row, got)

    refused = [n for n in golden["negative"] if "group" in n]
    for want, got in zip(refused, ask(dump, [(n["schedule"], n["p"], n["v"], n["m"], n["group"]) for n in refused])):
        check.equal(f"{want} is refused", True, "error" in got)

    slower = golden["legal_but_slower"]
    for want, got in zip(slower, ask(dump, [(n["schedule"], n["p"], n["v"], n["m"], n["group"]) for n in slower])):
        label = f"{want}"
        if want["makespan_unit"] != want["ideal_plus_standard_bubble"]:
            check.equal(label + " is refused", True, "error" in got)
        else:
            check.equal(label, want["makespan_unit"], got.get("metrics", {}).get("unit", {}).get("makespan"))

    print("\n".join(check.failures[:40]))
    print(f"{check.checks - len(check.failures)} of {check.checks} golden values agree")
    return 1 if check.failures or check.checks < 4600 else 0


if __name__ == "__main__":
    sys.exit(main())
