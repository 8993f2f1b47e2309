#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""From the rows of moiety_bench_cuda to one JSON and one table.

report.py OUT.json ROWS.jsonl... [key=value ...]   writes OUT.json (key=value: device, commit, ...), prints the table
report.py --self                                   the same from rows made up

The floor of a row is the larger of its bytes at the rate of the copy and its FLOPs at the best rate of cuBLAS in the same
run: bf16, for rows of fp8 too, or float for products without tensor cores. `of floor` is floor / time; `of dense` is the time of cuBLAS's dense
product of equal size, or of those of a layer, replayed between ours, over ours: the number to judge by, as clocks move
both. `shapes` says how many rows each expert had, for peers.py.
"""
import json
import sys
import tempfile
from pathlib import Path

CEILINGS = ("copy", "bf16", "float")


def read(paths):
    rows = {}
    for path in paths:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            if line.strip():
                row = json.loads(line)
                rows[row["name"]] = row
    return list(rows.values())


def ceilings(rows):
    """The best of the run: bytes/s, and FLOP/s of cuBLAS in bf16 and float."""
    best = dict.fromkeys(CEILINGS, 0.0)
    for row in rows:
        parts = row["name"].split("/")
        if len(parts) == 3 and parts[1] == "ceiling":
            best[parts[2]] = max(best[parts[2]], (row["flops"] or row["bytes"]) / row["us"] * 1e6)
        elif row.get("dense_us") and row["tensor_cores"] and "/layer_" not in row["name"]:  # without the router's
            best["bf16"] = max(best["bf16"], row["flops"] / row["dense_us"] * 1e6)
    return best


def judge(row, best):
    compute = row["flops"] / best["bf16" if row["tensor_cores"] else "float"] if row["flops"] else 0.0
    memory = row["bytes"] / best["copy"]
    row["floor_us"] = 1e6 * max(compute, memory)
    row["bound_by"] = "compute" if compute > memory else "memory"
    row["of_floor"] = row["floor_us"] / row["us"]
    return row


def document(rows, about):
    best = ceilings(rows)
    if not all(best.values()):
        raise SystemExit("the rows hold no ceilings: " + ", ".join(name for name in CEILINGS if not best[name]))
    measured = [judge(row, best) for row in rows if "us" in row and "/ceiling/" not in row["name"]]
    left_out = [row["name"].rsplit("/", 1)[0] + ": " + row["left_out"] for row in rows if "left_out" in row]
    return {**about, "ceilings": {"copy_bytes_per_s": best["copy"], "bf16_flops": best["bf16"],
                                  "float_flops": best["float"]}, "left_out": left_out,
            "shapes": [row for row in rows if "counts" in row],
            "memory": [row for row in rows if "most_bytes" in row], "rows": measured}


def table(result):
    lines = [f"{result.get('device', 'device')}: copy {result['ceilings']['copy_bytes_per_s'] / 1e12:.2f} TB/s, "
             f"bf16 {result['ceilings']['bf16_flops'] / 1e12:.0f} TFLOP/s, "
             f"float {result['ceilings']['float_flops'] / 1e12:.1f} TFLOP/s",
             f"{'model/tokens/routing/stage':44} {'us':>11} {'p90':>11} {'floor us':>11} {'of floor':>8} {'bound by':>8} "
             f"{'rate':>14} {'of dense':>8} {'MHz':>5} {'W':>4}"]
    for row in result["rows"]:
        rate = (f"{row['flops'] / row['us'] / 1e6:.1f} TFLOP/s" if row["bound_by"] == "compute"
                else f"{row['bytes'] / row['us'] / 1e6:.2f} TB/s")
        dense = f"{100 * row['dense_ratio']:.0f} %" if "dense_ratio" in row else ""
        lines.append(f"{row['name']:44} {row['us']:11.1f} {row['p90']:11.1f} {row['floor_us']:11.1f} "
                     f"{100 * row['of_floor']:6.0f} % {row['bound_by']:>8} {rate:>14} {dense:>8} "
                     f"{row['clock_after']:5.0f} {row.get('watts_after', 0):4.0f}")
    for row in result["memory"]:
        described, least = row["most_bytes"] / row["described_bytes"], row["saved_bytes"] / row["floor_bytes"]
        lines.append(f"{row['name']:44} {row['most_bytes'] / 1e6:.1f} MB at most, {100 * described:.1f} % of what describe "
                     f"says; kept for backward {100 * least:.1f} % of x and pre-activations")
    return "\n".join(lines + [f"left out: {what}" for what in result["left_out"]])


def write(out, paths, about):
    result = document(read(paths), about)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


def self_test():
    common = {"p10": 1, "p90": 300.0, "replays": 30, "calls": 1, "clock_before": 1980, "clock_after": 1755}
    rows = [
        {"name": "qwen3/ceiling/copy", "us": 500.0, "flops": 0, "bytes": 2e9, "tensor_cores": False, **common},
        {"name": "qwen3/ceiling/bf16", "us": 1000.0, "flops": 7e11, "bytes": 0, "tensor_cores": True, **common},
        {"name": "qwen3/ceiling/float", "us": 1000.0, "flops": 5e10, "bytes": 0, "tensor_cores": False, **common},
        {"name": "qwen3/64/uniform/gemm_up", "us": 200.0, "flops": 7e10, "bytes": 4e7, "tensor_cores": True,
         "dense_us": 100.0, "dense_ratio": 0.5, **common},
        {"name": "qwen3/64/uniform/layer_infer", "us": 200.0, "flops": 9e11, "bytes": 4e7, "tensor_cores": True,
         "dense_us": 100.0, "dense_ratio": 0.5, **common},
        {"name": "qwen3/64/uniform/gather", "us": 20.0, "flops": 0, "bytes": 4e7, "tensor_cores": False, **common},
        {"name": "qwen3/64/uniform/memory", "most_bytes": 990, "described_bytes": 1000, "saved_bytes": 102,
         "floor_bytes": 100},
        {"name": "qwen3/64/uniform/shape", "tokens": 64, "counts": [[500, 12]]},
        {"name": "qwen3/64/uniform/done", "left_out": "out of memory"},
    ]
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder, "rows.jsonl")
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = document(read([lines]), {"device": "none"})
        up, _, gather = result["rows"]
        assert result["ceilings"]["bf16_flops"] == 7e14 and result["ceilings"]["copy_bytes_per_s"] == 4e12
        assert up["bound_by"] == "compute" and abs(up["floor_us"] - 100) < 1e-9 and abs(up["of_floor"] - 0.5) < 1e-9
        assert gather["bound_by"] == "memory" and abs(gather["floor_us"] - 10) < 1e-9
        assert result["shapes"] == [rows[7]] and result["memory"] == [rows[6]]
        text = table(result)
        assert "350.0 TFLOP/s" in text and "2.00 TB/s" in text and "qwen3/64/uniform: out of memory" in text
        assert "99.0 % of what describe says; kept for backward 102.0 %" in text
        write(Path(folder, "new", "out.json"), [lines], {"device": "none"})
        assert len(json.loads(Path(folder, "new", "out.json").read_text())["rows"]) == 3


if __name__ == "__main__":
    if sys.argv[1:] == ["--self"]:
        self_test()
    elif len(sys.argv) < 3:
        sys.exit(__doc__)
    else:
        about = dict(argument.split("=", 1) for argument in sys.argv[2:] if "=" in argument)
        write(sys.argv[1], [argument for argument in sys.argv[2:] if "=" not in argument], about)
