#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What Python libraries make of the shapes that moiety_bench_cuda measured: one JSON and one table, ours and theirs.

peers.py OURS.json OUT.json [--rows FILE] [--only TEXT] [--seconds N] [--rounds N] [--cpu] [key=value ...]
peers.py --self     statistics, floors and the table, from rows made up and without PyTorch

OURS.json is what report.py wrote. The same sizes and the same number of rows an expert are given to

  torch          grouped_mm on rows that lie in order; the layer is topk, argsort, index_select, grouped_mm, silu * mul,
                 grouped_mm, index_add, and autograd
  torch_fused    gemm_up as ours does it: with the gather in front and the activation behind
  torch_compile  the layer, compiled; the largest evenly routed shape of a model
  loop           torch.mm for each expert; a layer of at most 16 experts
  dense          one matmul of equal M * N * K; in place of a layer its products, as if all rows were one expert's
  scattermoe, liger, sonicmoe, deep_gemm   where they can be imported

Peers of a stage take turns in every round, over three sets of random inputs, each round a CUDA graph of at least half a
millisecond; what waits for the host cannot be captured and is launched (`graph` is false). Ours ran in a process of its
own, so `ratio`, our time over theirs, compares two runs; `by_dense` compares through cuBLAS's dense product, which took
turns with each in its run, and so does not move with the clocks. Below 1 ours is faster. Floors are those of report.py.

Rows go to FILE as they are measured, and those that stand there are not measured again; large and evenly routed shapes
come first. --only takes those whose MODEL/TOKENS/ROUTING has the text in it. --cpu tries everything on the processor.
Ends with 75 when time ran out, 77 without PyTorch or a device.
"""
import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import report

ORDER = ("torch", "torch_fused", "torch_compile", "loop", "dense", "scattermoe", "liger", "sonicmoe", "deep_gemm")


def quantile(values, at):
    return sorted(values)[int(at * (len(values) - 1) + 0.5)]


def statistics(times, dense):
    """times of each round; those of the dense product in the same rounds, or nothing."""
    row = {"us": quantile(times, 0.5), "p10": quantile(times, 0.1), "p90": quantile(times, 0.9), "rounds": len(times)}
    if dense:
        row["dense_us"] = quantile(dense, 0.5)
        row["dense_ratio"] = quantile([theirs / mine for theirs, mine in zip(dense, times)], 0.5)
    return row


def interleave(ready, rounds, clock):
    """Times of a call, all peers in every round, warmed up. ready: peer -> (calls in a replay, a replay for each set)."""
    times = {peer: [] for peer in ready}
    for i in range(-max((len(replays) for _, replays, *_ in ready.values()), default=0), rounds):
        for peer, (calls, replays, *_) in ready.items():
            taken = clock(replays[i % len(replays)]) / calls
            if i >= 0:
                times[peer].append(taken)
    return times


def measure(name, make, clock, rounds):
    """The rows of one stage; make() gives its peers: a call of a set, or the reason why there is none."""
    layer, ready, rows = "/layer_" in name, {}, []
    most = 1 if name.endswith("step") else 8 if layer else 64

    def left_out(peer, why):
        rows.append({"name": f"{name}/{peer}", "left_out": (str(why).strip().splitlines() or [repr(why)])[0][:200]})

    try:
        peers = make()
    except Exception as e:  # memory, as a rule
        left_out("all", e)
        return rows
    for peer, call in peers.items():
        try:
            if isinstance(call, str):
                left_out(peer, call)
            else:
                ready[peer] = clock.replays(call, not (layer and peer in ("loop", "liger", "sonicmoe")), most)
        except Exception as e:
            left_out(peer, e)
    before = clock.state("before")
    try:
        times = interleave(ready, rounds, clock.time)
    except Exception as e:
        left_out("all", e)
        return rows
    about = before | clock.state("after")
    for peer, (calls, _, graph) in ready.items():
        rows.append({"name": f"{name}/{peer}", **statistics(times[peer], times.get("dense")), "calls": calls,
                     "graph": graph, **about})
    return rows


def measure_all(ours, file, asked):
    """False where time ran out."""
    import torch_peers
    known = {row["name"] for row in lines(file)}
    device, largest, model, of = "cpu" if asked.cpu else "cuda", {}, None, None
    clock = torch_peers.Clock(device)

    def add(rows):
        with open(file, "a", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)

    for shape in ours["shapes"]:
        largest[shape["name"].split("/")[0]] = max(shape["tokens"], largest.get(shape["name"].split("/")[0], 0))
    for shape in sorted(ours["shapes"], key=lambda shape: ("/uniform/" not in shape["name"], -shape["tokens"])):
        prefix = shape["name"].rsplit("/", 1)[0]
        name = prefix.split("/")[0]
        if asked.only not in prefix or f"{prefix}/done" in known:
            continue
        if of != name:
            model = None  # before the next takes memory
            model, of = torch_peers.Model(shape, device), name
        case = torch_peers.Case(model, shape)
        for stage, make in torch_peers.stages(case, "/uniform" in prefix and shape["tokens"] == largest[name]):
            stage = f"{prefix}/{stage}"
            if any(row.startswith(stage + "/") for row in known):
                continue
            if time.monotonic() > asked.deadline:
                return False
            rows = measure(stage, make, clock, asked.rounds)
            clock.release()
            add(rows)
            print(stage, *(f"{row['name'].split('/')[-1]} {row['us']:.1f}" for row in rows if "us" in row), flush=True)
        add([{"name": f"{prefix}/done"}])
        case = None
    return True


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def document(ours, rows, about):
    """Our rows and theirs, by one floor."""
    mine = {row["name"]: row for row in ours["rows"]}
    out, left_out = [{**row, "peer": "ours"} for row in ours["rows"]], list(ours["left_out"])
    for row in rows:
        stage, _, peer = row["name"].rpartition("/")
        if "left_out" in row:
            left_out.append(f"{row['name']}: {row['left_out']}")
        elif "us" in row and stage in mine:
            our = mine[stage]
            out.append({**row, "name": stage, "peer": peer, "of_floor": our["floor_us"] / row["us"],
                        **{key: our[key] for key in ("flops", "bytes", "bound_by", "floor_us")},
                        "ratio": our["us"] / row["us"]})
            if "dense_ratio" in row and "dense_ratio" in our:
                out[-1]["by_dense"] = row["dense_ratio"] / our["dense_ratio"]
    return {**ours, **about, "left_out": left_out, "rows": out,
            "interleaved": "peers of a stage take turns, and so do ours and cuBLAS; peers ran after ours, not in turn"}


def cell(row):
    rate = (f"{row['flops'] / row['us'] / 1e6:5.0f} TF" if row["bound_by"] == "compute"
            else f"{row['bytes'] / row['us'] / 1e3:5.0f} GB")
    beside = f" {row.get('by_dense', row['ratio']):5.2f}" if "ratio" in row else ""
    return f"{row['us']:9.1f} {rate} {100 * row['of_floor']:3.0f} %{beside}"


def table(result):
    """A line a stage that has peers, a column for each of them."""
    stages, peers = {}, set()
    for row in result["rows"]:
        stages.setdefault(row["name"], {})[row["peer"]] = row
        peers.add(row["peer"])
    peers = sorted(peers - {"ours"}, key=lambda peer: ORDER.index(peer) if peer in ORDER else len(ORDER))
    text = [f"{result.get('device', 'device')}: us, TFLOP/s or GB/s, share of the floor; and our time over theirs, below "
            "1 where ours is faster, through cuBLAS's where it took turns with both: " + result["interleaved"],
            f"{'model/tokens/routing/stage':44} {'ours':24} " + " ".join(f"{peer:30}" for peer in peers)]
    for stage, of in stages.items():
        if len(of) > 1:
            text.append(f"{stage:44} {cell(of['ours']):24} " +
                        " ".join(f"{cell(of[peer]) if peer in of else '':30}" for peer in peers).rstrip())
    reasons = sorted({what.rpartition("/")[2] for what in result["left_out"]})
    return "\n".join(text + [f"left out: {what}" for what in reasons])


def write(out, ours, rows, about):
    result = document(ours, rows, about)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


class FakeClock:
    """Time goes by where a call says so."""

    def time(self, call):
        return call() or 0

    def replays(self, call, graph, most):
        return 2, [lambda s=s: 2 * call(s) for s in range(3)], graph

    def state(self, when):
        return {f"clock_{when}": 1980, f"watts_{when}": 700}


def self_test():
    turns = []

    def peer(name, times):  # one time for each set
        return lambda s: turns.append(name) or times[s]

    def absent(s):
        raise RuntimeError("no such kernel\nand more")

    prefix = "qwen3/64/uniform"
    rows = measure(f"{prefix}/gemm_up", lambda: {
        "torch": peer("torch", [80.0, 100.0, 120.0]), "dense": peer("dense", [40.0, 40.0, 60.0]), "liger": "not there"},
        FakeClock(), 4)
    assert turns == ["torch", "dense"] * 7, turns
    by_peer = {row["name"].rsplit("/", 1)[1]: row for row in rows}
    torch = by_peer["torch"]  # sets 0 1 2 0: 80 100 120 80; dense over it: 0.5 0.4 0.5 0.5
    assert (torch["us"], torch["p10"], torch["p90"], torch["rounds"]) == (100.0, 80.0, 120.0, 4), torch
    assert torch["dense_ratio"] == 0.5 and torch["dense_us"] == 40.0 and by_peer["dense"]["dense_ratio"] == 1
    assert torch["graph"] and torch["clock_after"] == 1980 and by_peer["liger"]["left_out"] == "not there"
    (failed,) = measure(f"{prefix}/gather", lambda: absent(0), FakeClock(), 4)
    assert failed == {"name": f"{prefix}/gather/all", "left_out": "no such kernel"}
    loop = measure(f"{prefix}/layer_infer", lambda: {"loop": lambda s: 1.0}, FakeClock(), 2)
    assert not loop[0]["graph"] and loop[0]["us"] == 1 and "dense_ratio" not in loop[0]

    common = {"p10": 1, "p90": 2, "replays": 30, "calls": 1, "clock_before": 1, "clock_after": 1}
    ours = report.document([
        {"name": "qwen3/ceiling/copy", "us": 500.0, "flops": 0, "bytes": 2e9, "tensor_cores": False, **common},
        {"name": "qwen3/ceiling/bf16", "us": 1000.0, "flops": 7e11, "bytes": 0, "tensor_cores": True, **common},
        {"name": "qwen3/ceiling/float", "us": 1000.0, "flops": 5e10, "bytes": 0, "tensor_cores": False, **common},
        {"name": f"{prefix}/shape", "tokens": 64, "counts": [[60, 4]] * 3},
        {"name": f"{prefix}/gemm_up", "us": 50.0, "flops": 2.8e10, "bytes": 4e6, "tensor_cores": True, "dense_us": 45.0,
         "dense_ratio": 0.8, **common},
        {"name": f"{prefix}/gather", "us": 20.0, "flops": 0, "bytes": 4e7, "tensor_cores": False, **common},
    ], {"device": "none"})
    assert ours["shapes"][0]["counts"] == [[60, 4]] * 3
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        assert lines(file) == []
        file.write_text("".join(json.dumps(row) + "\n" for row in rows + [failed, {"name": f"{prefix}/done"}]))
        write(Path(folder, "new", "out.json"), ours, lines(file), {"torch": "none"})
        result = json.loads(Path(folder, "new", "out.json").read_text())
    found = {(row["name"].rsplit("/", 1)[1], row["peer"]): row for row in result["rows"]}
    assert sorted(found) == [("gather", "ours"), ("gemm_up", "dense"), ("gemm_up", "ours"), ("gemm_up", "torch")]
    theirs = found["gemm_up", "torch"]
    assert abs(theirs["of_floor"] - 0.4) < 1e-9 and theirs["ratio"] == 0.5 and theirs["by_dense"] == 0.5 / 0.8
    text = table(result)
    assert "280 TF  40 %  0.62" in text and "560 TF  80 %" in text and "gather" not in text.split("left out")[0], text
    assert "left out: liger: not there" in text and "left out: all: no such kernel" in text


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("ours"), parser.add_argument("out"), parser.add_argument("about", nargs="*")
    parser.add_argument("--rows", type=Path), parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=540), parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cpu", action="store_true")
    asked = parser.parse_intermixed_args()
    asked.deadline = time.monotonic() + asked.seconds
    try:
        import torch
    except ImportError:
        print("There is no PyTorch here: its peers were not measured.")
        return 77
    if not asked.cpu and not torch.cuda.is_available():
        print("PyTorch finds no GPU: its peers were not measured.")
        return 77
    ours = json.loads(Path(asked.ours).read_text(encoding="utf-8"))
    file = asked.rows or Path(asked.out).with_suffix(".jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    finished = measure_all(ours, file, asked)
    about = dict(argument.split("=", 1) for argument in asked.about)
    write(asked.out, ours, lines(file), {**about, "torch": torch.__version__, "torch_cuda": torch.version.cuda})
    return 0 if finished else 75


if __name__ == "__main__":
    if sys.argv[1:] == ["--self"]:
        self_test()
    else:
        sys.exit(main())
