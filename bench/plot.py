#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""plot.py BENCH.json OUT.svg [SHAPE]: share of the limit over rows an expert, ours and peers, one thread.

One panel for each direction and type; the horizontal axis is logarithmic. Plain SVG without outside references.
"""
import math
import sys
from html import escape
from pathlib import Path

from report import DIRECTIONS, Run

COLOURS = {"moiety": "#c0392b", "moiety_packed": "#e67e22", "openblas": "#2471a3", "blis": "#1e8449",
           "onednn": "#7d3c98", "eigen": "#7f8c8d", "libxsmm": "#17202a", "libxsmm_in_place": "#85929e",
           "moiety_portable": "#e67e22", "torch": "#2471a3", "torch_fused": "#1e8449", "loop": "#7f8c8d",
           "deep_gemm": "#7d3c98"}
WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 190, 46, 64, 46


def text(x, y, words, anchor="middle", size=11, extra=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{extra}>{escape(str(words))}</text>'


def panel(x0, y0, title, lines, counts):
    """lines: who -> [(rows, percent)]."""
    span = math.log2(counts[-1] / counts[0]) or 1
    x = lambda rows: x0 + 12 + (WIDTH - 24) * math.log2(rows / counts[0]) / span
    y = lambda percent: y0 + HEIGHT * (1 - percent / 100)
    out = [text(x0 + WIDTH / 2, y0 - 8, title, size=12, extra=' font-weight="bold"')]
    for percent in range(0, 101, 20):
        out.append(f'<line x1="{x0}" x2="{x0 + WIDTH}" y1="{y(percent):.1f}" y2="{y(percent):.1f}" stroke="#ddd"/>')
        out.append(text(x0 - 6, y(percent) + 4, percent, "end"))
    out += [text(x(rows), y0 + HEIGHT + 15, rows) for rows in counts]
    for who, points in sorted(lines.items(), key=lambda item: item[0].startswith("moiety")):
        ours = who.startswith("moiety")
        colour, width = COLOURS.get(who, "#000"), 2.6 if ours else 1.3
        dash = ' stroke-dasharray="5 3"' if who.startswith("libxsmm") else ""
        path = " ".join(f"{x(rows):.1f},{y(percent):.1f}" for rows, percent in sorted(points))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>')
        for rows, percent in points:
            out.append(f'<circle cx="{x(rows):.1f}" cy="{y(percent):.1f}" r="{width}" fill="{colour}"/>')
    return out


def plot(run, shape):
    products = {key: row for key, row in run.products().items() if key[2] == shape}
    counts = sorted({key[3] for key in products})
    directions = [d for d in DIRECTIONS if d != "nt2" and any(key[0] == d for key in products)]
    kinds = [kind for kind in ("float", "bf16") if any(key[1] == kind for key in products)]
    out, seen = [], []
    for column, direction in enumerate(directions):
        for line, kind in enumerate(kinds):
            lines = {}
            for key, row in products.items():
                if key[:2] == (direction, kind):
                    lines.setdefault(key[4], []).append((key[3], min(row.limit, 100)))
            seen += [who for who in lines if who not in seen]
            out += panel(LEFT + column * (WIDTH + GAP), TOP + line * (HEIGHT + GAP + 10),
                         f"{DIRECTIONS[direction]}, {kind}", lines, counts)
    width = LEFT + len(directions) * (WIDTH + GAP)
    bottom = TOP + len(kinds) * (HEIGHT + GAP + 10)
    out.insert(0, text(width / 2, 24, f"% of limit over rows an expert, {shape}, one thread, "
                       f"{run.context.get('processor', '')}, {run.context['date'][:10]}", size=14))
    return document(width, bottom, [*out, *legend(seen, bottom)])


def legend(seen, bottom):
    out = []
    for i, who in enumerate(sorted(seen, key=lambda w: list(COLOURS).index(w) if w in COLOURS else 99)):
        at, dash = LEFT + i * 125, ' stroke-dasharray="5 3"' if who.startswith("libxsmm") else ""
        out.append(f'<line x1="{at}" x2="{at + 22}" y1="{bottom}" y2="{bottom}" stroke="{COLOURS.get(who, "#000")}" '
                   f'stroke-width="{3 if who.startswith("moiety") else 1.5}"{dash}/>')
        out.append(text(at + 27, bottom + 4, who, "start"))
    return out


def document(width, bottom, out):
    size = f'width="{width}" height="{bottom + 24}" viewBox="0 0 {width} {bottom + 24}"'
    style = 'font-family="sans-serif" fill="#222"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>',
                      '<rect width="100%" height="100%" fill="#fff"/>', *out, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(plot(Run(sys.argv[1]), sys.argv[3] if len(sys.argv) > 3 else "2048x768"))
