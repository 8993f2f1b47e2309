#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""plot_cuda.py PEERS.json OUT.svg: share of cuBLAS's dense product over rows an expert, ours and peers, on a GPU.

plot_cuda.py --self: the same from rows made up

PEERS.json is what bench/cuda/peers.py wrote. One panel for each direction and model, evenly routed; SonicMoE's shapes have one
number of tokens each, and are left to the table. A share is the median over rounds in which the dense product of equal size
took turns with the product.
"""
import json
import sys
from pathlib import Path

from plot import COLOURS, GAP, HEIGHT, LEFT, TOP, WIDTH, document, legend, panel, text

STAGES = {"gemm_up": "forward: up, with SwiGLU", "gemm_down": "forward: down",
          "gemm_up_backward": "gradient of the input", "gemm_up_weights": "gradient of the weights"}


def shares(result):
    """model -> stage -> who -> [(rows an expert, percent)]."""
    rows_of = {shape["name"].rsplit("/", 1)[0]: shape["tokens"] * shape["slots"] / shape["experts"]
               for shape in result["shapes"]}
    found = {}
    for row in result["rows"]:
        model, tokens, routing, stage, *kind = row["name"].split("/")
        case = f"{model}/{tokens}/{routing}"
        drawn = routing == "uniform" and stage in STAGES and not model.startswith("sonic_") and not (kind and kind[0].startswith("fp8"))
        if not drawn or row["peer"] == "dense" or "dense_ratio" not in row:
            continue
        who = "_".join(["moiety", *kind]) if row["peer"] == "ours" else row["peer"]
        points = found.setdefault(model, {}).setdefault(stage, {}).setdefault(who, [])
        points.append((rows_of[case], min(100 * row["dense_ratio"], 100)))
    return found


def plot(result):
    out, seen, found = [], [], shares(result)
    for line, (model, stages) in enumerate(found.items()):
        counts = sorted({rows for lines in stages.values() for points in lines.values() for rows, _ in points})
        for column, (stage, title) in enumerate((stage, title) for stage, title in STAGES.items() if stage in stages):
            seen += [who for who in stages[stage] if who not in seen]
            out += panel(LEFT + column * (WIDTH + GAP), TOP + line * (HEIGHT + GAP + 10), f"{model}, {title}",
                         stages[stage], [round(rows) if rows == round(rows) else rows for rows in counts])
    width, bottom = LEFT + len(STAGES) * (WIDTH + GAP), TOP + len(found) * (HEIGHT + GAP + 10)
    title = (f"% of cuBLAS's dense product over rows an expert, {result.get('device', '')}, "
             f"{result.get('date', '')[:10]}")
    return document(width, bottom, [text(width / 2, 24, title, size=14), *out, *legend(seen, bottom)])


def self_test():
    shapes = [{"name": f"qwen3/{tokens}/uniform/shape", "tokens": tokens, "slots": 8, "experts": 128}
              for tokens in (64, 1024)]
    row = {"name": "qwen3/64/uniform/gemm_up", "peer": "ours", "dense_ratio": 0.9}
    rows = [row, {**row, "name": "qwen3/64/uniform/gemm_up/portable", "dense_ratio": 0.5},
            {**row, "name": "qwen3/1024/uniform/gemm_up", "dense_ratio": 1.2},
            {**row, "peer": "torch", "dense_ratio": 0.7},
            {**row, "peer": "dense", "dense_ratio": 1}, {**row, "name": "qwen3/64/zipf/gemm_up"},
            {"name": "qwen3/64/uniform/gather", "peer": "ours"}]
    result = {"device": "none", "date": "2026-01-01 00:00", "shapes": shapes, "rows": rows}
    assert shares(result) == {"qwen3": {"gemm_up": {"moiety": [(4, 90), (64, 100)], "moiety_portable": [(4, 50)],
                                                    "torch": [(4, 70)]}}}, shares(result)
    drawn = plot(result)
    assert drawn.count("<polyline") == 3 and "qwen3, forward: up" in drawn and f'stroke="{COLOURS["torch"]}"' in drawn


if __name__ == "__main__":
    if sys.argv[1:] == ["--self"]:
        self_test()
    elif len(sys.argv) != 3:
        sys.exit(__doc__)
    else:
        Path(sys.argv[2]).write_text(plot(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), encoding="utf-8")
