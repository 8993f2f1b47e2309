#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make_golden.py OUT_DIR [NAME...]: small random instances of the MoE blocks of Hugging Face transformers, run forward
and backward on the CPU, one OUT_DIR/NAME.safetensors each. README.md beside this file says what the arrays are.

    python3 -m venv VENV && VENV/bin/pip install -r tests/golden/requirements.txt
    OMP_NUM_THREADS=1 VENV/bin/python tests/golden/make_golden.py tests/golden/transformers

Seeds are fixed: a second run on the same machine writes the same bytes.
"""
import importlib
import itertools
import json
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.overrides import TorchFunctionMode

INF = float("inf")
MARGIN = 2e-3  # least distance of any choice (top-k, threshold, clamp) from its tie
EXACT, ROUNDED = 1e-10, 1e-5  # tolerances: float64 throughout, float32 somewhere


@dataclass
class Case:
    name: str
    model: str  # transformers.models.MODEL
    block: str
    config: str
    values: dict  # of the config
    router: str = "gate"
    tokens: int = 10
    spread: dict = field(default_factory=dict)  # end of a parameter's name: (mean, standard deviation); else (0, 1/4)
    arguments: tuple = ()  # of the block's constructor after the config
    ids: int = 0  # token ids below this go into the block (0: none)
    other_mask: float | None = None  # run a second time with masked groups filled with this value
    differs: bool = False  # the second run routes some tokens otherwise (else: none)
    note: str = ""


BIAS = "e_score_correction_bias"
GROUPS = dict(n_routed_experts=8, n_group=4, topk_group=3, num_experts_per_tok=4)
V3 = dict(hidden_size=24, moe_intermediate_size=12, n_shared_experts=1, routed_scaling_factor=2.5, norm_topk_prob=True)
CASES = [
    Case("mixtral", "mixtral", "MixtralSparseMoeBlock", "MixtralConfig",
         dict(hidden_size=24, intermediate_size=12, num_local_experts=8, num_experts_per_tok=2,
              router_jitter_noise=0.0)),
    Case("olmoe", "olmoe", "OlmoeSparseMoeBlock", "OlmoeConfig",
         dict(hidden_size=24, intermediate_size=12, num_experts=10, num_experts_per_tok=3, norm_topk_prob=False)),
    Case("qwen2_moe", "qwen2_moe", "Qwen2MoeSparseMoeBlock", "Qwen2MoeConfig",
         dict(hidden_size=26, moe_intermediate_size=12, shared_expert_intermediate_size=20, num_experts=7,
              num_experts_per_tok=4, norm_topk_prob=False), tokens=9),
    Case("qwen3_moe", "qwen3_moe", "Qwen3MoeSparseMoeBlock", "Qwen3MoeConfig",
         dict(hidden_size=24, moe_intermediate_size=13, num_experts=9, num_experts_per_tok=3, norm_topk_prob=True)),
    Case("qwen3_next", "qwen3_next", "Qwen3NextSparseMoeBlock", "Qwen3NextConfig",
         dict(hidden_size=25, moe_intermediate_size=12, shared_expert_intermediate_size=12, num_experts=8,
              num_experts_per_tok=3, norm_topk_prob=True), tokens=11),
    Case("deepseek_v2_lite", "deepseek_v2", "DeepseekV2Moe", "DeepseekV2Config",
         dict(hidden_size=24, moe_intermediate_size=12, n_shared_experts=2, n_routed_experts=8, num_experts_per_tok=3,
              n_group=1, topk_group=1, topk_method="greedy", routed_scaling_factor=1.0, norm_topk_prob=False,
              num_attention_heads=2)),
    Case("deepseek_v2", "deepseek_v2", "DeepseekV2Moe", "DeepseekV2Config",
         dict(hidden_size=24, moe_intermediate_size=12, n_shared_experts=2, n_routed_experts=9, num_experts_per_tok=3,
              n_group=3, topk_group=2, topk_method="group_limited_greedy", routed_scaling_factor=16.0,
              norm_topk_prob=False, num_attention_heads=2), other_mask=-INF,
         note="groups are masked with 0, which is harmless as long as no probability underflows; norm_topk_prob is not "
              "read by the block"),
    Case("deepseek_v3", "deepseek_v3", "DeepseekV3MoE", "DeepseekV3Config", V3 | GROUPS, spread={BIAS: (0, 0.05)},
         other_mask=0.0, note="enough biased scores are positive for a mask of 0 to route alike"),
    Case("deepseek_v3_negative", "deepseek_v3", "DeepseekV3MoE", "DeepseekV3Config", V3 | GROUPS,
         spread={BIAS: (-0.5, 0.3)}, other_mask=0.0, differs=True,
         note="biased scores are negative: transformers up to 5.5.4 masked groups with 0 and took experts of masked "
              "groups, as in other_mask.* (its issue 45440); 5.6.0 masks with -inf as the paper does"),
    Case("axk2", "axk2", "AXK2MoE", "AXK2Config", V3 | GROUPS,
         spread={BIAS: (-0.5, 0.3)}, other_mask=-INF, differs=True,
         note="DeepSeek-V3's router, but groups are masked with 0 (on purpose, to match the model's reference code): "
              "experts of masked groups win where biased scores are negative; other_mask.* is what -inf gives"),
    Case("deepseek_v4", "deepseek_v4", "DeepseekV4SparseMoeBlock", "DeepseekV4Config",
         dict(hidden_size=24, moe_intermediate_size=12, n_routed_experts=7, num_experts_per_tok=3, swiglu_limit=10.0,
              scoring_func="sqrtsoftplus", routed_scaling_factor=1.5, num_hidden_layers=2,
              mlp_layer_types=["hash_moe", "moe"]), arguments=(1,),
         spread={"gate_up_proj": (0, 1), "gate_proj.weight": (0, 1), "up_proj.weight": (0, 1)}),
    Case("deepseek_v4_hash", "deepseek_v4", "DeepseekV4SparseMoeBlock", "DeepseekV4Config",
         dict(hidden_size=24, moe_intermediate_size=12, n_routed_experts=7, num_experts_per_tok=3, swiglu_limit=10.0,
              scoring_func="sqrtsoftplus", routed_scaling_factor=1.5, num_hidden_layers=2, vocab_size=23,
              mlp_layer_types=["hash_moe", "moe"]), arguments=(0,), ids=23),
    Case("gpt_oss", "gpt_oss", "GptOssMLP", "GptOssConfig",
         dict(hidden_size=24, intermediate_size=12, num_local_experts=8, num_experts_per_tok=3, swiglu_alpha=1.702,
              swiglu_limit=7.0), router="router", tokens=11, spread={"gate_up_proj": (0, 0.9), "_bias": (0, 1)}),
    Case("llama4", "llama4", "Llama4TextMoe", "Llama4TextConfig",
         dict(hidden_size=24, intermediate_size=12, num_local_experts=7, num_experts_per_tok=1), router="router",
         tokens=12),
    Case("llama4_top2", "llama4", "Llama4TextMoe", "Llama4TextConfig",
         dict(hidden_size=24, intermediate_size=12, num_local_experts=7, num_experts_per_tok=2), router="router"),
    Case("granitemoe", "granitemoe", "GraniteMoeMoE", "GraniteMoeConfig",
         dict(hidden_size=24, intermediate_size=12, num_local_experts=10, num_experts_per_tok=4), router="router"),
    Case("phimoe", "phimoe", "PhimoeSparseMoeBlock", "PhimoeConfig",
         dict(hidden_size=24, intermediate_size=12, num_local_experts=8, num_experts_per_tok=2, router_jitter_noise=0.1,
              input_jitter_noise=0.0), router="router", tokens=12,
         note="evaluation mode: SparseMixer without its random choice; router_jitter_noise is 0.01 in the real model "
              "and larger here so that more than one expert survives the threshold"),
    Case("glm4_moe", "glm4_moe", "Glm4MoeMoE", "Glm4MoeConfig",
         V3 | dict(n_routed_experts=9, num_experts_per_tok=3, n_group=1, topk_group=1, routed_scaling_factor=1.0),
         spread={BIAS: (0, 0.2)}),
    Case("longcat_flash", "longcat_flash", "LongcatFlashMoE", "LongcatFlashConfig",
         dict(hidden_size=24, expert_ffn_hidden_size=12, n_routed_experts=6, zero_expert_num=3, moe_topk=3,
              routed_scaling_factor=6.0), router="router", spread={BIAS: (0, 0.05)},
         note="experts 6, 7, 8 are the identity; their rows of gate_up_proj exist and are not read"),
    Case("dbrx", "dbrx", "DbrxFFN", "DbrxConfig",
         dict(d_model=24, ffn_config=dict(hidden_size=24, ffn_hidden_size=12, moe_num_experts=8, moe_top_k=4,
                                          moe_normalize_expert_weights=1.0)), router="router", tokens=9),
]
# load_balancing_loss_func: model, experts, k
LOSSES = [("mixtral", 8, 2), ("olmoe", 10, 3), ("qwen3_moe", 6, 2)]


class Lens(TorchFunctionMode):
    """Watches a block run: where it asks for float32, and how far its choices are from ties. It can lift float32 to
    float64, and change the value that masked groups are filled with."""

    def __init__(self, lift=False, fill=None):
        super().__init__()
        self.lift, self.fill = lift, fill
        self.casts, self.margin = {}, INF

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func.__name__
        if name == "float" or any(v is torch.float32 for v in (*args, *kwargs.values())):
            self.casts[f"{caller()} {name}"] = None
            if self.lift:
                func = torch.Tensor.double if name == "float" else func
                args = [torch.float64 if a is torch.float32 else a for a in args]
                kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        if name == "masked_fill" and self.fill is not None:
            args = [*args[:2], self.fill]
        if name == "topk":
            self.near(top_k_margin(args[0], args[1] if len(args) > 1 else kwargs["k"]))
        if name == "max" and len(args) == 1 and "dim" in kwargs:
            self.near(top_k_margin(args[0], 1))
        if name in ("gt", "__gt__") and args[0].is_floating_point():
            self.near((args[0] - args[1]).abs())
        if name == "clamp":
            for bound in (v for v in (*args[1:], *kwargs.values()) if isinstance(v, float)):
                self.near((args[0] - bound).abs())
        return func(*args, **kwargs)

    def near(self, distances):
        self.margin = min([self.margin, *distances.detach().flatten().tolist()])


def top_k_margin(scores, k):
    if k >= scores.shape[-1]:
        return torch.empty(0)
    ordered = scores.detach().sort(dim=-1, descending=True).values
    return (ordered[..., k - 1] - ordered[..., k]).nan_to_num(nan=0.0)


def caller():
    frame = sys._getframe(2)
    while "transformers" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def draw(rng, shape, mean=0.0, deviation=1.0):
    """Values that float32 holds exactly, so that a block's casts of its inputs lose nothing."""
    values = (mean + deviation * rng.standard_normal(shape)).astype(np.float32)
    return torch.from_numpy(values.astype(np.float64))


def module_of(model):
    return importlib.import_module(f"transformers.models.{model}.modeling_{model}")


def build(case, rng):
    config = getattr(transformers, case.config)(**case.values)
    config._experts_implementation = "eager"
    block = getattr(module_of(case.model), case.block)(config, *case.arguments).double().eval()
    state = {}
    for name, value in sorted(block.state_dict().items()):
        if value.is_floating_point():
            spread = next((s for end, s in case.spread.items() if name.endswith(end)), (0.0, 0.25))
            state[name] = draw(rng, value.shape, *spread)
        else:  # a table from token ids to k different experts
            experts = config.num_local_experts
            state[name] = torch.from_numpy(np.array([rng.permutation(experts)[: value.shape[1]] for _ in value]))
    block.load_state_dict(state)
    return config, block, state


def run(case, block, x, dy, ids, lens):
    """One forward and backward; what the router said is taken where the block hands it on."""
    seen = {}
    on_input = case.model == "llama4"  # its experts get weighted rows, its router gives ([T, E] weights, logits)

    def router(module, inputs, out):
        if on_input:
            seen["top_k_weights"], seen["top_k_index"] = out[0].topk(module.top_k)
        seen["router_logits"] = out if torch.is_tensor(out) else out[1 if on_input else 0]

    def experts(module, inputs):
        if not on_input:
            seen["top_k_index"], seen["top_k_weights"] = inputs[1:]

    hooks = [getattr(block, case.router).register_forward_hook(router),
             block.experts.register_forward_pre_hook(experts)]
    block.zero_grad()
    x = x[None].clone().requires_grad_()
    with lens:
        y = block(x, *([ids[None]] if case.ids else []))
    y = (y[0] if isinstance(y, tuple) else y).reshape(dy.shape)
    assert y.dtype == torch.float64
    y.backward(dy)
    for hook in hooks:
        hook.remove()
    grads = {f"grad.{name}": torch.zeros_like(p) if p.grad is None else p.grad.clone()
             for name, p in block.named_parameters()}
    return {"y": y, **seen, "dx": x.grad[0], **grads}


def error(a, b):
    return 0.0 if torch.equal(a, b) else ((a - b).abs().max() / b.abs().max()).item()


def attempt(case, values, seed):
    """The arrays and metadata of one seed, or None where the instance is near a tie or shows too little."""
    rng = np.random.default_rng(seed)
    config, block, state = build(case, rng)
    x, dy = (draw(rng, (case.tokens, values["hidden_size"])) for _ in range(2))
    ids = torch.from_numpy(rng.integers(0, max(case.ids, 1), case.tokens))
    lens = Lens()
    out = run(case, block, x, dy, ids, lens)
    experts = out["router_logits"].shape[1]
    empty = sorted(set(range(experts)) - set(out["top_k_index"].flatten().tolist()))
    if lens.margin < MARGIN or not empty:
        return None
    if case.model == "phimoe" and (out["top_k_weights"] < 0.9).sum() < 4:
        return None  # nearly everywhere one expert survived the threshold, with weight 1
    if case.model == "longcat_flash" and empty[0] >= config.n_routed_experts:
        return None  # an expert that computes is to be empty

    arrays = {"x": x, "dy": dy, **({"ids": ids} if case.ids else {})}
    arrays |= {f"weight.{n}": v for n, v in state.items()} | out
    if lens.casts:  # the same without the casts, for a comparison without their rounding
        lifted = run(case, block, x, dy, ids, Lens(lift=True))
        assert torch.equal(lifted["top_k_index"], out["top_k_index"])
        assert all(error(v.double(), lifted[n].double()) < ROUNDED / 10 for n, v in out.items()), case.name
        kept = ("y", "dx", "router_logits", "top_k_weights", f"grad.{case.router}")
        arrays |= {f"float64.{n}": v for n, v in lifted.items() if n.startswith(kept)}
    if case.other_mask is not None:
        other_lens = Lens(fill=case.other_mask)
        other = run(case, block, x, dy, ids, other_lens)
        moved = (other["top_k_index"].sort().values != out["top_k_index"].sort().values).any(dim=1)
        if other_lens.margin < MARGIN or not (3 <= moved.sum() < case.tokens if case.differs else not moved.any()):
            return None
        if case.differs:
            arrays |= {f"other_mask.{n}": other[n] for n in ("top_k_index", "top_k_weights", "y", "dx")}

    return arrays, {
        **about(case.name, case.model, case.block, lens, seed),
        "tokens": case.tokens,
        "experts": experts,
        "empty_experts": ",".join(map(str, empty)),
        "note": case.note,
        **{f"config.{k}": v for k, v in {"hidden_act": getattr(config, "hidden_act", "silu"), **values}.items()},
        **({"other_mask": str(case.other_mask)} if case.other_mask is not None else {}),
    }


def about(name, model, block, lens, seed):
    return {
        "model": name,
        "class": f"transformers.models.{model}.modeling_{model}.{block}",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "seed": seed,
        "margin": f"{lens.margin:.2g}",
        "computes": "float32 at " + ", ".join(lens.casts) if lens.casts else "float64 throughout",
        "tolerance": ROUNDED if lens.casts else EXACT,
    }


def block_file(case):
    values = {k: v for name, v in case.values.items() for k, v in (v if isinstance(v, dict) else {name: v}).items()}
    return next(found for seed in itertools.count() if (found := attempt(case, values, seed)))


def loss_file(model, experts, k, layers=2, sequences=2, length=7):
    """The loss of a batch of sequences, logits of all layers, with and without padding on the left."""
    function = module_of(model).load_balancing_loss_func
    mask = torch.ones(sequences, length, dtype=torch.int64)
    mask[1, :3] = 0
    for seed in itertools.count():
        logits = draw(np.random.default_rng(seed), (layers, sequences * length, experts))
        if top_k_margin(logits.softmax(-1), k).min() > MARGIN:
            break
    arrays, lens = {"router_logits": logits, "attention_mask": mask}, Lens()
    for prefix, lift in (("", False), ("float64.", True)):
        for suffix, given in (("", None), ("_masked", mask)):
            leaves = [layer.clone().requires_grad_() for layer in logits]
            with Lens(lift=True) if lift else lens:
                loss = function(tuple(leaves), experts, k, given)
            loss.backward()
            arrays[f"{prefix}loss{suffix}"] = loss.reshape(1)
            arrays[f"{prefix}grad.router_logits{suffix}"] = torch.stack([leaf.grad for leaf in leaves])
    for name in ("loss", "loss_masked", "grad.router_logits", "grad.router_logits_masked"):
        assert error(arrays[name].double(), arrays[f"float64.{name}"]) < ROUNDED / 10
    config = dict(layers=layers, sequences=sequences, sequence_length=length, num_experts=experts)
    config = {f"config.{key}": value for key, value in {**config, "num_experts_per_tok": k}.items()}
    return arrays, about(f"load_balancing_{model}", model, "load_balancing_loss_func", lens, seed) | config


def text_of(value):
    return ",".join(value) if isinstance(value, list) else value if isinstance(value, str) else json.dumps(value)


def save(path, arrays, metadata):
    """The safetensors format, written here since that library's order of metadata changes from run to run."""
    kinds = {torch.float64: "F64", torch.float32: "F32", torch.int64: "I64"}
    inputs = ("x", "dy", "weight.")  # float32 holds these exactly
    header, data = {"__metadata__": {key: text_of(value) for key, value in metadata.items()}}, b""
    for name, tensor in arrays.items():
        tensor = tensor.detach().contiguous()
        if tensor.is_floating_point() and name.startswith(inputs):
            tensor = tensor.float()
        assert tensor.isfinite().all(), name
        end = len(data) + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [len(data), end]}
        data += tensor.numpy().tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def main():
    out, names = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    files = {case.name: lambda case=case: block_file(case) for case in CASES}
    files |= {f"load_balancing_{model}": lambda row=(model, *row): loss_file(*row) for model, *row in LOSSES}
    for name in names or files:
        arrays, metadata = files[name]()
        path = out / f"{name}.safetensors"
        save(path, arrays, metadata)
        print(f"{path.name:32} {path.stat().st_size:7} bytes  seed {metadata['seed']:<5} {metadata['computes']}")


if __name__ == "__main__":
    main()
