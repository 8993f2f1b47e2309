# SPDX-License-Identifier: Apache-2.0
"""The peers of peers.py: clocks, inputs, and what PyTorch and libraries on it do in each stage."""
import ctypes
import time
from functools import partial

import torch
from torch.nn.functional import silu

SETS = 3
LOOPED_LAYER = 16  # at most so many experts of a layer that is a loop, which reads counts on the host
grouped_mm = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
torch.set_grad_enabled(False)  # but in the passes that train


class Clock:
    """Times of calls; clock and power of the device from the library behind nvidia-smi, zeros where there is none."""

    def __init__(self, device):
        self.cuda, self.nvml, self.handle = device == "cuda", None, ctypes.c_void_p()
        try:
            nvml = ctypes.CDLL("libnvidia-ml.so.1")
            if self.cuda and not nvml.nvmlInit_v2() and not nvml.nvmlDeviceGetHandleByIndex_v2(
                    torch.cuda.current_device(), ctypes.byref(self.handle)):
                self.nvml = nvml
        except OSError:
            pass

    def state(self, when):
        mhz, milliwatts = ctypes.c_uint(0), ctypes.c_uint(0)
        if self.nvml:
            self.nvml.nvmlDeviceGetClockInfo(self.handle, 1, ctypes.byref(mhz))
            self.nvml.nvmlDeviceGetPowerUsage(self.handle, ctypes.byref(milliwatts))
        return {f"clock_{when}": mhz.value, f"watts_{when}": milliwatts.value // 1000}

    def time(self, call):
        """Microseconds on the device."""
        if not self.cuda:
            start = time.perf_counter()
            call()
            return 1e6 * (time.perf_counter() - start)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return 1e3 * start.elapsed_time(end)

    def release(self):
        """Gives memory back. Throws where the device is lost."""
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def replays(self, call, graph, most):
        """(calls, one replay for each set, whether they are graphs): each begins with another set of inputs."""
        for s in range(SETS):
            call(s)
        calls = min(max(int(500 / max(self.time(lambda: call(0)), 1)), 1), most)

        def body(first):
            for i in range(calls):
                call((first + i) % SETS)

        bodies = [partial(body, s) for s in range(SETS)]
        if not self.cuda or not graph:
            return calls, bodies, False
        try:
            return calls, self.captured(bodies), True
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # it waits for the host
            return calls, bodies, False

    @staticmethod
    def captured(bodies):
        pool, stream, graphs = torch.cuda.graph_pool_handle(), torch.cuda.Stream(), []
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            bodies[0]()
            torch.cuda.synchronize()
            for put in bodies:
                graphs.append(torch.cuda.CUDAGraph())
                graphs[-1].capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    put()
                finally:
                    graphs[-1].capture_end()
        torch.cuda.synchronize()
        return [graph.replay for graph in graphs]


class Model:
    """Weights, and the layer as users of PyTorch write it. experts(x, weights, ids) may be another's."""

    def __init__(self, shape, device):
        self.device, self.dtype = device, torch.bfloat16
        self.H, self.I, self.E, self.K = (shape[k] for k in ("hidden", "ffn", "experts", "slots"))
        self.w1, self.w2 = self.random(self.E, 2 * self.I, self.H), self.random(self.E, self.H, self.I)
        self.router = self.random(self.E, self.H, scale=0.01)
        self.router.diagonal().add_(1)  # value e of a token speaks for expert e: see Case
        self.every = torch.arange(self.E, device=device)
        for weight in (self.w1, self.w2, self.router):
            weight.requires_grad_()

    def random(self, *shape, scale=None):
        values = torch.randn(shape, device=self.device, dtype=self.dtype)
        return values.mul_(shape[-1] ** -0.5 if scale is None else scale)

    def looped(self, rows, weights, offs):
        ends = [0, *offs.tolist()]
        return torch.cat([rows[a:b] @ weights[e] for e, (a, b) in enumerate(zip(ends, ends[1:]))])

    def route(self, x):
        weights, ids = torch.softmax((x @ self.router.t()).float(), -1).topk(self.K, -1)
        return weights / weights.sum(-1, keepdim=True), ids

    def order(self, ids):
        """Slots in the order of their experts, and where the rows of each end."""
        flat = ids.flatten()
        order = flat.argsort(stable=True)
        return order, torch.searchsorted(flat[order], self.every, right=True, out_int32=True)

    def experts(self, x, weights, ids, product=grouped_mm):
        order, ends = self.order(ids)
        tokens = order // self.K
        gate, up = product(x.index_select(0, tokens), self.w1.transpose(1, 2), offs=ends).chunk(2, -1)
        rows = product(silu(gate) * up, self.w2.transpose(1, 2), offs=ends)
        return torch.zeros_like(x).index_add(0, tokens, rows * weights.flatten()[order].unsqueeze(1).to(rows.dtype))

    def layer(self, x, experts=None):
        return (experts or self.experts)(x, *self.route(x))


class Case:
    """Sets of tokens of which each expert has as many rows as it had of ours."""

    def __init__(self, model, shape):
        self.model, self.counts = model, shape["counts"]
        self.T, self.R = shape["tokens"], shape["tokens"] * model.K
        to = {"device": model.device}
        self.x, self.dy = ([model.random(self.T, model.H, scale=1) for _ in range(SETS)] for _ in range(2))
        self.ids, self.tokens, self.ends, self.weights = [], [], [], []
        for x, counts in zip(self.x, self.counts):
            # No expert has more than T rows: laid out column after column, the rows of a T x K table are distinct.
            ids = torch.arange(model.E, **to).repeat_interleave(torch.tensor(counts, **to)).view(model.K, self.T).t()
            ids = ids[torch.randperm(self.T, **to)].contiguous()
            x.scatter_add_(1, ids, torch.full(ids.shape, 16, dtype=model.dtype, **to))
            x.requires_grad_()
            self.ids.append(ids)
            self.tokens.append(ids.flatten().argsort(stable=True) // model.K)
            self.ends.append(torch.tensor(counts, **to).cumsum(0).int())
            self.weights.append(torch.rand(self.T, model.K, **to))

    def rows(self, width):
        return [self.model.random(self.R, width, scale=1) for _ in range(SETS)]

    def spans(self, s):
        ends = [0, *self.ends[s].tolist()]
        return [(e, a, b) for e, (a, b) in enumerate(zip(ends, ends[1:])) if b > a]


def ragged_rows(case, rows, weights):
    """Products of which each expert has its rows: rows [R x n], weights [E x n x m]."""
    spans = [case.spans(s) for s in range(SETS)]
    out = rows[0].new_empty(case.R, weights.shape[2])

    def loop(s):
        for e, a, b in spans[s]:
            torch.mm(rows[s][a:b], weights[e], out=out[a:b])
        return out

    return agreeing(case, {"torch": lambda s: grouped_mm(rows[s], weights, offs=case.ends[s]), "loop": loop,
                           "dense": lambda s: torch.mm(rows[s], weights[0]), **deep_gemm(case, rows, weights)})


def ragged_sums(case, left, right):
    """Products that sum over the rows of each expert: gradients of its weights."""
    spans = [case.spans(s) for s in range(SETS)]
    out = right[0].new_zeros(case.model.E, left[0].shape[1], right[0].shape[1])

    def loop(s):
        for e, a, b in spans[s]:
            torch.mm(left[s][a:b].t(), right[s][a:b], out=out[e])
        return out

    return agreeing(case, {"torch": lambda s: grouped_mm(left[s].t(), right[s], offs=case.ends[s]), "loop": loop,
                           "dense": lambda s: torch.mm(left[s].t(), right[s])})


def agreeing(case, peers):
    """The peers of a product, unless they differ. What an expert without rows is given is its own affair."""
    loop, grouped = (peers[peer](0).float() for peer in ("loop", "torch"))
    if loop.dim() == 3:
        loop, grouped = (sums[[e for e, *_ in case.spans(0)]] for sums in (loop, grouped))
    if not (loop - grouped).norm() <= 0.02 * loop.norm():
        raise RuntimeError("grouped_mm and the loop disagree")
    return peers


def deep_gemm(case, rows, weights):
    """Its rows of an expert begin at multiples of 128; weights [E x m x n] whose rows are contiguous."""
    try:
        import deep_gemm as library
    except ImportError as e:
        return {"deep_gemm": f"{type(e).__name__}: {e}"}
    weights, sets = weights.transpose(1, 2), []
    if weights.stride(2) != 1:
        return {}
    for s in range(SETS):
        owners, places, at = [], [], 0
        for e, a, b in case.spans(s):
            owners += [e] * (b - a) + [-1] * ((a - b) % 128)
            places += range(at, at + b - a)
            at = len(owners)
        owner = torch.tensor(owners, dtype=torch.int32, device=case.model.device)
        padded = rows[s].new_zeros(at, rows[s].shape[1])
        padded[torch.tensor(places, device=case.model.device)] = rows[s]
        sets.append((padded, weights, padded.new_empty(at, weights.shape[1]), owner))
    return {"deep_gemm": lambda s: library.m_grouped_bf16_gemm_nt_contiguous(*sets[s])}


def scattermoe(model):
    from scattermoe.mlp import GLUMLP
    mlp = GLUMLP(input_size=model.H, hidden_size=model.I, num_experts=model.E, top_k=model.K)
    mlp = mlp.to(model.device, model.dtype)
    return lambda x: model.layer(x, lambda x, weights, ids: mlp(x, weights.to(x.dtype), ids)), [*mlp.parameters()]


def liger(model):
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction as function
    experts = lambda x, weights, ids: function.apply(x, model.w1, model.w2, ids.int(), weights)
    return lambda x: model.layer(x, experts), [model.w1, model.w2]


def sonicmoe(model):
    from sonicmoe import MoE, KernelBackendMoE
    from sonicmoe.enums import ActivationType
    moe = MoE(num_experts=model.E, num_experts_per_tok=model.K, hidden_size=model.H, intermediate_size=model.I,
              activation_function=ActivationType.SWIGLU, add_bias=False, std=0.02).to(model.device, model.dtype)
    moe.router.weight.copy_(model.router)
    return lambda x: moe(x, kernel_backend_moe=KernelBackendMoE.sonicmoe)[0], [*moe.parameters()]


def stages(case, compiled):
    """(stage, what makes its peers): peer -> call of a set, or the reason why there is none."""
    m = case.model
    up, down = m.w1.transpose(1, 2), m.w2.transpose(1, 2)

    def fused(s):
        gate, rows = grouped_mm(case.x[s].index_select(0, case.tokens[s]), up, offs=case.ends[s]).chunk(2, -1)
        return silu(gate) * rows

    def route():
        logits = [(x @ m.router.t()).float() for x in case.x]
        return {"torch": lambda s: torch.softmax(logits[s], -1).topk(m.K, -1)}

    def combine():
        rows, weights = case.rows(m.H), [w.flatten().unsqueeze(1).to(m.dtype) for w in case.weights]
        return {"torch": lambda s: torch.zeros_like(case.x[s]).index_add_(0, case.tokens[s], rows[s] * weights[s])}

    yield "router_logits", lambda: {"torch": lambda s: case.x[s] @ m.router.t()}
    yield "route", route
    yield "index", lambda: {"torch": lambda s: m.order(case.ids[s])}
    yield "gather", lambda: {"torch": lambda s: case.x[s].index_select(0, case.tokens[s])}
    yield "gemm_up", lambda: {**ragged_rows(case, case.rows(m.H), up), "torch_fused": fused}
    yield "gemm_down", lambda: ragged_rows(case, case.rows(m.I), down)
    yield "gemm_down_backward", lambda: ragged_rows(case, case.rows(m.H), m.w2)
    yield "gemm_up_backward", lambda: ragged_rows(case, case.rows(2 * m.I), m.w1)
    yield "gemm_up_weights", lambda: ragged_sums(case, [z[:, :m.I] for z in case.rows(2 * m.I)], case.rows(m.H))
    yield "gemm_down_weights", lambda: ragged_sums(case, case.rows(m.H), case.rows(m.I))
    yield "combine", combine
    forwards, absent = layers(m, compiled)

    def passes(stage):
        for x, counts in zip(case.x, case.counts):
            if m.route(x)[1].flatten().bincount(minlength=m.E).tolist() != counts:
                raise RuntimeError("the layer routes otherwise than ours")
        passes_of = {peer: layer_pass(case, stage, *of) for peer, of in forwards.items()}
        return {**passes_of, "dense": dense_layer(case, stage == "layer_step"), **absent}

    for stage in ("layer_infer", "layer_forward", "layer_step"):
        yield stage, partial(passes, stage)


def layers(model, compiled):
    """peer -> (forward, weights); and peer -> reason, for those that are not there."""
    weights, absent = [model.router, model.w1, model.w2], {}
    found = {"torch": (model.layer, weights)}
    if compiled:
        torch.compiler.reset()  # it gives up on a function that it compiled for too many models
        found["torch_compile"] = (torch.compile(model.layer, dynamic=False), weights)
    if model.E <= LOOPED_LAYER:
        looped = lambda x, weights, ids: model.experts(x, weights, ids, model.looped)
        found["loop"] = (lambda x: model.layer(x, looped), weights)
    for make in (scattermoe, liger, sonicmoe):
        try:
            forward, weights_of = make(model)
            found[make.__name__] = (forward, [model.router, *weights_of])
        except Exception as e:  # not installed, or another version: the others are measured all the same
            absent[make.__name__] = f"{type(e).__name__}: {e}"
    return found, absent


def dense_layer(case, backward):
    """The products of a layer as if all rows were one expert's."""
    m = case.model
    x, z, a = (m.random(case.R, width, scale=1) for width in (m.H, 2 * m.I, m.I))

    def products(s):
        for left, right in ((x, m.w1[0].t()), (a, m.w2[0].t())):
            torch.mm(left, right)
        if backward:
            for left, right in ((x, m.w2[0]), (z, m.w1[0]), (z.t(), x), (x.t(), a)):
                torch.mm(left, right)

    return products


def layer_pass(case, stage, forward, weights):
    def infer(s):
        return forward(case.x[s])

    def train(s):
        with torch.enable_grad():
            return forward(case.x[s])

    def step(s):
        return torch.autograd.grad(train(s), [case.x[s], *weights], case.dy[s], allow_unused=True)

    return {"layer_infer": infer, "layer_forward": train, "layer_step": step}[stage]
