#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the rows of one run of the benchmarks say together.

report.py BENCH.json                 prints summaries and goals as Markdown tables
report.py BENCH.json --into FILE     writes them, and the share of the limit of every product, between the marks of FILE
"""
import json
import re
import sys
from pathlib import Path
from statistics import geometric_mean, median, mode

DIRECTIONS = {"nt": "forward (nt)", "nt2": "gate and up (nt2)", "nn": "input gradient (nn)",
              "tn": "weight gradient (tn)"}
TYPES = ("float", "bf16", "double")
PEERS = ("openblas", "blis", "onednn", "eigen", "libxsmm", "libxsmm_in_place")
BEGIN, END = "<!-- results: written by bench/report.py -->", "<!-- end of results -->"


class Row:
    """The repetitions of one row, as medians."""

    def __init__(self, runs):
        middle = lambda key: median(run[key] for run in runs)
        self.time = middle("real_time") * {"ns": 1e-9, "us": 1e-6, "ms": 1e-3}[runs[0]["time_unit"]]
        self.flops, self.bytes, self.items = runs[0]["flops"], runs[0]["bytes"], runs[0]["items"]
        self.limit = 100 * middle("floor_s") / self.time
        self.peak = 100 * self.flops / self.time / middle("fma_rate")  # % of the loop on registers
        self.busy = middle("busy")
        self.bound_by = mode(run["label"] for run in runs)
        self.nanoseconds = self.time / self.items * 1e9


class Run:
    """Rows by (name, threads)."""

    def __init__(self, path):
        document = json.loads(Path(path).read_text())
        self.context = document["context"]
        self.processes = [json.loads(of.read_text()) for of in sorted(Path(path).parent.glob("mpi_*.json"))]
        runs = {}
        for run in document["benchmarks"]:
            name = re.match(r"(.+)/threads:(\d+)", run["name"])
            if run["run_type"] == "iteration" and not run.get("error_occurred"):
                runs.setdefault((name[1], int(name[2])), []).append(run)
        self.rows = {key: Row(value) for key, value in runs.items()}
        self.all_threads = max((threads for _, threads in self.rows), default=1)

    def get(self, name, threads=1):
        return self.rows.get((name, threads))

    def products(self, threads=1):
        """(direction, type, shape, rows, who) -> Row of every grouped product."""
        found = {}
        for (name, row_threads), row in self.rows.items():
            parts = name.split("/")
            if parts[0] == "grouped_gemm" and row_threads == threads:
                found[(*parts[1:4], int(parts[4].removeprefix("rows:")), parts[5])] = row
        return found


def table(head, lines):
    if not lines:
        return ""
    rule = ["---"] + ["--:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [head, rule, *lines]) + "\n"


def section(title, text, body):
    return f"### {title}\n\n{text}\n\n{body}\n" if body else ""


def sets_of(products):
    """(direction, type, shape) in the order of the table."""
    return sorted({key[:3] for key in products}, key=lambda s: (list(DIRECTIONS).index(s[0]), TYPES.index(s[1]), s[2]))


def ratio_to(products, kind, who, ours="moiety"):
    """Geometric mean over rows an expert of our time over theirs; None where there is no pair."""
    mine = {key[3]: row for key, row in products.items() if key[:3] == kind and key[4] == ours}
    ratios = [row.time / theirs.time for rows, row in mine.items() if (theirs := products.get((*kind, rows, who)))]
    return geometric_mean(ratios) if ratios else None


def beside_peers(run):
    products = run.products()
    lines = []
    for kind in sets_of(products):
        ratios = [ratio_to(products, kind, peer) for peer in PEERS]
        if any(ratios):
            lines.append([f"{kind[0]} {kind[1]} {kind[2]}"] + [f"{r:.2f}" if r else "" for r in ratios])
    return section("Our time over a peer's", "Geometric mean over rows an expert, one thread; below 1 ours is faster. "
                   "`libxsmm` has packed the weights beforehand and is the ceiling.", table(["product", *PEERS], lines))


def gains(run):
    """(direction, type) -> [(speed-up of all threads over one, that of the limit, the row of all, rows an expert)]."""
    one, found = run.products(), {}
    for key, row in run.products(run.all_threads).items() if run.all_threads > 1 else ():
        if key[4] == "moiety" and (alone := one.get(key)):
            gain = alone.time / row.time
            found.setdefault(key[:2], []).append((gain, gain * alone.limit / row.limit, row, key[3]))
    return found


def two_threads(run):
    lines = []
    for kind, rows in gains(run).items():
        compute = [gain for gain, _, row, _ in rows if row.bound_by == "compute"]
        memory = [(gain, possible) for gain, possible, row, _ in rows if row.bound_by != "compute"]
        cells = lambda values: [f"{median(values):.2f}", f"{min(values):.2f}"] if values else ["", ""]
        busy = sum(row.busy >= 0.9 for _, _, row, _ in rows)
        lines.append([" ".join(kind), *cells(compute), *cells([gain for gain, _ in memory]),
                      *cells([possible for _, possible in memory]), f"{busy} of {len(rows)}"])
    return section(f"{run.all_threads} threads over one", "Speed-up of our products over all shapes, where arithmetic is the "
                   "limit of all threads and where memory is; `memory` is what the best bandwidth seen gained. Rows that keep "
                   "the threads busy for less than 90 % do not spread, or had neighbours.",
                   table(["product", "arithmetic: median", "least", "memory-bound: median", "least", "memory: median",
                          "least", "rows busy"], lines))


def layer(run):
    lines = []
    for (name, threads), ours in run.rows.items():
        found = re.match(r"moe_layer/(forward_backward|forward)/(\w+)/(rows:\d+)/moiety$", name)
        if not found or threads != 1:
            continue
        for who in ("moiety_packed", "torch", "torch_keeping_memory", "libxsmm_products"):
            if theirs := run.get(name.replace("/moiety", "/" + who)):
                lines.append([f"{found[1]} {found[2]} {found[3]}", who, f"{ours.time * 1e3:.1f}",
                              f"{theirs.time * 1e3:.1f}", f"{theirs.time / ours.time:.2f}", f"{ours.limit:.1f}"])
    text = ("32 experts of 2048 x 768, 4 a token, one thread. `torch_keeping_memory` is PyTorch with an allocator that "
            "keeps its memory; `moiety_packed` is our layer on packed weights, packed outside the clock; `libxsmm_products` "
            "are the bare products of a forward, on weights packed beforehand.")
    return section("A whole layer", text,
                   table(["call", "beside", "ours, ms", "theirs, ms", "theirs / ours", "our % limit"], lines))


PLAIN_ROUTINGS = ("partial_sort", "nth_element", "torch")


def costs_of_routing(run):
    """tokens -> ns a token on one thread, ascending."""
    return dict(sorted((int(found[1]), row.nanoseconds) for (name, threads), row in run.rows.items()
                       if threads == 1 and (found := re.match(r"routing/tokens:(\d+)/moiety$", name))))


def routing(run):
    lines = []
    for (name, threads), ours in run.rows.items():
        if not re.match(r"routing/tokens:16384/moiety$", name):
            continue
        for who in PLAIN_ROUTINGS:
            if theirs := run.get(name.replace("/moiety", "/" + who), threads):
                lines.append([threads, who, f"{ours.nanoseconds:.0f}", f"{theirs.nanoseconds:.0f}",
                              f"{theirs.time / ours.time:.2f}"])
    grown = costs_of_routing(run)
    text = "softmax, top 8 of 128 and weights that sum to one, of 16384 tokens of float logits."
    if grown:
        text += (" Our ns a token on one thread: " + ", ".join(f"{t:.0f} at {n} tokens" for n, t in grown.items()) + ".")
    return section("Routing beside plain ways", text,
                   table(["threads", "beside", "ours, ns a token", "theirs", "theirs / ours"], lines))


def scaling(run):
    series = {"in_tokens": [], "in_experts": []}
    for name, _ in run.rows:
        if found := re.match(r"scaling/(\w+)/experts:(\d+)/tokens:(\d+)$", name):
            series[found[1]].append((int(found[2]), int(found[3]), run.get(name)))
    lines = [[experts, tokens, f"{row.time * 1e3:.2f}", f"{row.nanoseconds:.0f}"]
             for rows in series.values() for experts, tokens, row in rows]
    text = "Forward and backward of a layer of 256 x 128, 2 experts a token, float, one thread."
    if costs := [row.nanoseconds for _, tokens, row in series["in_tokens"] if tokens >= 1024]:
        text += f" From 1024 tokens up, the largest cost of a token is {max(costs) / min(costs):.2f} times the least."
    if len(rows := series["in_experts"]) > 2:
        slopes = [(b[2].time - a[2].time) / (b[0] - a[0]) * 1e6 for a, b in zip(rows, rows[1:])]
        text += (" An expert more, at the same number of rows, costs " + ", ".join(f"{s:.1f}" for s in slopes) +
                 " us between " + ", ".join(str(r[0]) for r in rows) + " experts.")
    return section("Growth", text, table(["experts", "tokens", "ms", "ns a token"], lines))


DISPATCH = r"dispatch/(\w+)/(\w+)/top:(\d+)/(\w+)/tokens:(\d+)"


def thread_ranks(run):
    """(ranks, dispatcher, type, slots, routing, tokens) -> Row."""
    found = ((re.match(DISPATCH + r"/ranks:(\d+)$", name), row) for (name, _), row in run.rows.items())
    return {(int(m[6]), *m.groups()[:5]): row for m, row in found if m}


def process_ranks(run):
    """The same of processes -> % of memcpy, and (ranks, bytes) -> ratio to MPI_Alltoallv."""
    shares, ratios = {}, {}
    for of in run.processes:
        for row in of["rows"]:
            if m := re.match(DISPATCH, row["name"]):
                shares[(of["ranks"], *m.groups())] = row["ours_s"], 100 * row["theirs_s"] / row["ours_s"]
            else:
                ratios[(of["ranks"], int(row["name"].split(":")[1]))] = row["ours_s"] / row["theirs_s"]
    return shares, ratios


def share_of_statistics(run, ranks):
    """% of a forward."""
    found = {name.split("/")[1]: row for (name, _), row in run.rows.items()
             if name.startswith("rank_sums/") and name.endswith(f"/ranks:{ranks}")}
    return 100 * found["statistics"].time / found["forward"].time if len(found) == 2 else None


def ranks(run):
    shares, ratios = process_ranks(run)
    lines = [["threads", *key, f"{row.time * 1e3:.2f}", f"{row.limit:.0f}"] for key, row in thread_ranks(run).items()]
    lines += [["processes", *key, f"{time * 1e3:.2f}", f"{share:.0f}"] for key, (time, share) in shares.items()]
    text = ("Rows of 4 KB to their experts and back, of so many tokens a rank; % of memcpy on as many threads, or on all "
            "processors where there are more ranks, each row being read and written once a way.")
    body = table(["ranks are", "ranks", "dispatcher", "type", "top", "routing", "tokens", "ms", "% memcpy"], lines)
    if ratios:
        sizes = sorted({size for _, size in ratios})
        body += "\nTime of `all_to_all_v` on processes over that of `MPI_Alltoallv`, by bytes a pair:\n\n" + table(
            ["ranks", *sizes], [[n] + [f"{ratios[n, size]:.2f}" if (n, size) in ratios else "" for size in sizes]
                                for n in sorted({n for n, _ in ratios})])
    costs = [f"{cost:.2f} % on {n}" for n in (2, 4) if (cost := share_of_statistics(run, n)) is not None]
    if costs:
        body += ("\nThe exact statistics of all ranks, of the forward of a layer of 128 experts of 512 x 256, top 8, 4096 "
                 "tokens a rank: " + ", ".join(costs) + " ranks.\n")
    return section("Ranks", text, body)


def engine_rows(run):
    """(ranks, "plain" or "recorded") -> Row, whose items are actions."""
    found = ((re.match(r"pipeline/idle/(\w+)/ranks:(\d+)$", name), row) for (name, _), row in run.rows.items())
    return {(int(m[2]), m[1]): row for m, row in found if m}


def engine(run):
    lines = [[*key, f"{row.nanoseconds / 1e3:.2f}", f"{100 * row.busy:.0f}"]
             for key, row in sorted(engine_rows(run).items())]
    return section("The pipeline engine", "Steps of stages that do nothing, on thread ranks: 64 micro-batches by 1F1B, with "
                   "messages of 4 KB. A rank that has to be woken waits for the system's scheduler, and for neighbours.",
                   table(["ranks", "timeline", "us an action", "% busy"], lines))


def rank_goals(run):
    least = lambda values: min(values, default=None)
    shares, ratios = process_ranks(run)
    threads = [row.limit for key, row in thread_ranks(run).items() if key[:2] == (2, "all_to_all")]
    processes = [share for key, (_, share) in shares.items() if key[:2] == (2, "all_to_all")]
    yield goal_line("dispatch and combine, 2 thread ranks: % of memcpy", least(threads), 60, 60)
    yield goal_line("dispatch and combine, 2 processes: % of memcpy", least(processes), 60, 60)
    for size in sorted({size for _, size in ratios}):
        yield goal_line(f"all_to_all_v, {size} bytes a pair: our time over MPI_Alltoallv's",
                        max(ratio for (_, of), ratio in ratios.items() if of == size), 1.1, 1.1, 2, less=True)
    costs = [cost for n in (2, 4) if (cost := share_of_statistics(run, n)) is not None]
    yield goal_line("exact statistics of all ranks: % of a forward", max(costs, default=None), 2, 2, 2, less=True)
    idle = engine_rows(run).get((2, "plain"))
    yield goal_line("pipeline engine, 2 ranks: us an action", idle.nanoseconds / 1e3 if idle else None, 5, 5, 2, less=True)


# (what, direction, type, whose, {rows an expert: (first release, goal)}) in % of the loop on registers.
PACKED = {(64, 256, 1024): (87, 93), (16,): (72, 85)}
PRODUCT_GOALS = [
    ("forward, packed", "nt", "float", "moiety_packed", PACKED),
    ("forward, packed", "nt", "bf16", "moiety_packed", PACKED),
    ("input gradient, packed", "nn", "float", "moiety_packed", {(64, 256, 1024): (87, 93)}),
    ("input gradient, packed", "nn", "bf16", "moiety_packed", {(64, 256, 1024): (87, 93)}),
    ("forward", "nt", "float", "moiety", {(256, 1024): (87, 93), (64,): (78, 84), (16,): (50, 60)}),
    ("forward", "nt", "bf16", "moiety", {(256, 1024): (87, 93), (64,): (78, 84), (16,): (50, 60)}),
    ("input gradient", "nn", "float", "moiety", {(256, 1024): (80, 90), (64,): (64, 78), (16,): (34, 52)}),
    ("input gradient", "nn", "bf16", "moiety", {(256, 1024): (80, 90), (64,): (60, 70), (16,): (30, 40)}),
    ("weight gradient", "tn", "float", "moiety", {(256, 1024): (83, 90), (64,): (68, 82), (16,): (40, 58)}),
    ("weight gradient", "tn", "bf16", "moiety", {(256, 1024): (80, 90), (64,): (57, 72), (16,): (27, 36)}),
    ("forward", "nt", "double", "moiety", {(256,): (60, 60)}),
    ("input gradient", "nn", "double", "moiety", {(256,): (60, 60)}),
    ("weight gradient", "tn", "double", "moiety", {(256,): (60, 60)}),
]
# (what, row, first release, goal): ns a token; then % of limit.
TIME_GOALS = [(f"softmax and top 8 of {experts}, ns a token", f"route/{experts}_experts_top_8/tokens:4096", *goal)
              for experts, goal in ((64, (200, 130)), (128, (320, 200)))]
LIMIT_GOALS = [("permute, % of a non-temporal copy", "permute_rows/top_8_of_2048/tokens:4096", 65, 80),
               ("combine, % of memcpy", "combine/top_8_of_2048/tokens:4096", 75, 95)]
LAYER_GOALS = {"float": {16: (2, 3), 64: (1.5, 2), 256: (1.15, 1.3)},
               "bf16": {16: (1, 1.4), 64: (1.05, 1.3), 256: (1.05, 1.2)}}


def goal_line(what, value, first, goal, digits=1, less=False):
    """less: smaller is better."""
    reaches = lambda bound: value <= bound if less else value >= bound
    if value is None:
        return [what, first, goal, "", "not measured"]
    reached = "goal" if reaches(goal) else "first release" if reaches(first) else "**missed**"
    return [what, first, goal, f"{value:.{digits}f}", reached]


def product_goals(run):
    products = run.products()
    least = lambda values: min(values, default=None)
    for what, direction, kind, who, goals in PRODUCT_GOALS:
        for rows, (first, goal) in goals.items():
            value = least(row.peak for key, row in products.items()
                          if key[:2] == (direction, kind) and key[3] in rows and key[4] == who)
            yield goal_line(f"{what}, {kind}, {'/'.join(map(str, rows))} rows: % of peak", value, first, goal)
    for direction in ("nt", "nn"):
        for kind in ("float", "bf16"):
            value = least(row.limit for key, row in products.items()
                          if key[:2] == (direction, kind) and key[3] == 1 and key[4].startswith("moiety"))
            yield goal_line(f"{DIRECTIONS[direction]}, {kind}, 1 row: % of read bandwidth", value, 70, 90)
    for direction in ("nt", "nn", "tn"):
        for peer in ("openblas", "blis", "onednn", "eigen"):
            kinds = [k for k in sets_of(products) if k[0] == direction]
            for kind in TYPES[:2]:
                ratios = [r for k in kinds if k[1] == kind and (r := ratio_to(products, k, peer))]
                if ratios:
                    yield goal_line(f"{direction}, {kind}: our time over {peer}'s", geometric_mean(ratios), 1, 1, 2,
                                    less=True)


def goals(run, with_missing):
    lines = list(product_goals(run))
    for what, name, first, goal in TIME_GOALS:
        lines.append(goal_line(what, row.nanoseconds if (row := run.get(name)) else None, first, goal, 0, less=True))
    for what, name, first, goal in LIMIT_GOALS:
        lines.append(goal_line(what, row.limit if (row := run.get(name)) else None, first, goal))
    for kind, by_rows in LAYER_GOALS.items():
        for rows, (first, goal) in by_rows.items():
            name = f"moe_layer/forward_backward/{kind}/rows:{rows}/"
            torch = run.get(name + "torch")
            for who, what in (("moiety", "layer"), ("moiety_packed", "layer, packed")):
                ours = run.get(name + who)
                lines.append(goal_line(f"{what}, {kind}, {rows} rows: PyTorch's time over ours",
                                       torch.time / ours.time if ours and torch else None, first, goal, 2))
    for kind in LAYER_GOALS:
        name = f"moe_layer/forward/{kind}/rows:64/"
        bare = run.get(name + "libxsmm_products")
        for who, what in (("moiety", "layer forward"), ("moiety_packed", "layer forward, packed")):
            ours = run.get(name + who)
            lines.append(goal_line(f"{what}, {kind}, 64 rows: our time over libxsmm's products",
                                   ours.time / bare.time if ours and bare else None, 1.15, 1.15, 2, less=True))
    for threads in sorted({1, run.all_threads}):
        ours = run.get("routing/tokens:16384/moiety", threads)
        plain = [row.time for who in PLAIN_ROUTINGS if (row := run.get("routing/tokens:16384/" + who, threads))]
        lines.append(goal_line(f"routing, {threads} thread{'s' if threads > 1 else ''}: the fastest plain way's time over ours",
                               min(plain) / ours.time if ours and plain else None, 1, 3, 2))
    grown = costs_of_routing(run)
    growth = grown[65536] / grown[1024] if {1024, 65536} <= grown.keys() else None
    lines.append(goal_line("routing, 1 thread: cost of a token at 65536 tokens over that at 1024", growth, 1.25, 1.25, 2,
                           less=True))
    arithmetic = [[gain for gain, _, row, count in rows if count >= 16 and row.bound_by == "compute"]
                  for rows in gains(run).values()]
    lines.append(goal_line("all threads over one where arithmetic is the limit, from 16 rows: the least product's median",
                           min((median(rows) for rows in arithmetic if rows), default=None), 1.85, 1.85, 2))
    lines += rank_goals(run)
    if not with_missing:
        lines = [line for line in lines if line[3]]
    return section("Goals", "The least over shapes counts, and one thread, unless said otherwise.",
                   table(["piece", "first release", "goal", "measured", "reached"], lines))


def limits(run):
    products = run.products()
    counts, shapes = sorted({key[3] for key in products}), sorted({key[2] for key in products})
    order = {who: i for i, who in enumerate(("moiety", "moiety_packed", *PEERS))}
    cell = lambda row: "" if row is None else f"{row.limit:.0f}" + ("" if row.bound_by == "compute" else "*")
    lines = []
    for kind in dict.fromkeys(key[:2] for key in sets_of(products)):
        for who in sorted({key[4] for key in products if key[:2] == kind}, key=lambda w: order.get(w, 99)):
            lines.append([" ".join(kind), who] + [cell(products.get((*kind, shape, count, who)))
                                                  for shape in shapes for count in counts])
    head = [f"{shape}: {count}" if count == counts[0] else count for shape in shapes for count in counts]
    return section("Share of the limit", "Percent, one thread, over rows an expert; * where memory is the limit.",
                   table(["product", "by", *head], lines))


def head(run):
    c = run.context
    rates = lambda n: ", ".join(f"{float(c[k]):.1f} {k.split('_')[0]}" for k in
                                (f"{t}_gflops_threads_{n}" for t in TYPES) if k in c)
    moved = lambda n: ", ".join(f"{name} {float(c[k]):.1f}" for name in ("read", "16 rows", "write", "memcpy", "nt copy")
                                if (k := f"{name}_gbytes_per_s_threads_{n}") in c)
    lines = [f"{c['date'][:10]}, {c.get('processor', '')}, {c.get('compiler', '')}.", ""]
    lines += [f"- {n} thread{'s' if n > 1 else ''}: {rates(n)} GFLOP/s on registers; GB/s {moved(n)}"
              for n in sorted({1, run.all_threads})]
    lines += [f"- {peer}" for peer in c.get("peers", "").split("; ") if peer]
    if c.get("peers_left_out"):
        lines += [f"- left out: {c['peers_left_out']}"]
    return "\n".join(lines) + "\n\n"


def summaries(run, with_missing=False):
    """with_missing: name goals that were not measured, too."""
    return beside_peers(run) + layer(run) + routing(run) + two_threads(run) + scaling(run) + ranks(run) + engine(
        run) + goals(run, with_missing)


def main(arguments):
    run = Run(arguments[0])
    if arguments[1:2] == ["--into"]:
        path = Path(arguments[2])
        before, rest = path.read_text().split(BEGIN)
        after = rest.split(END)[1]
        path.write_text(f"{before}{BEGIN}\n\n{head(run)}{limits(run)}{summaries(run, with_missing=True)}{END}{after}")
    else:
        print(summaries(run), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
