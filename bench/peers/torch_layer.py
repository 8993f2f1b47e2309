#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""torch_layer.py HIDDEN FFN EXPERTS SLOTS TOKENS TYPE: processor seconds of training steps of a MoE layer in PyTorch.

One thread; softmax over all experts in float, weights of the selected renormalised, SwiGLU, a loop over experts with
index_select and index_add; forward and backward to every input and weight. Prints one time a line, warmed up.
"""
import sys
import time

import torch
from torch.nn import functional as F


def layer(x, router, gate, up, down, slots):
    scores = torch.softmax(F.linear(x.float(), router), dim=-1)
    weights, chosen = scores.topk(slots, dim=-1)
    weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
    y = torch.zeros_like(x)
    for e in range(len(gate)):
        tokens, slot = torch.where(chosen == e)
        rows = x.index_select(0, tokens)
        out = F.linear(F.silu(F.linear(rows, gate[e])) * F.linear(rows, up[e]), down[e])
        y.index_add_(0, tokens, out * weights[tokens, slot].unsqueeze(1))
    return y


def main():
    hidden, ffn, experts, slots, tokens = map(int, sys.argv[1:6])
    dtype = {"float": torch.float32, "bf16": torch.bfloat16}[sys.argv[6]]
    torch.set_num_threads(1)
    torch.manual_seed(1)

    def make(*shape, dtype=dtype, scale=0.02):
        return (torch.randn(*shape) * scale).to(dtype).requires_grad_()

    x = make(tokens, hidden, scale=1)
    dy = torch.randn(tokens, hidden).to(dtype)
    router = make(experts, hidden, dtype=torch.float32)
    # A list of matrices, so that a gradient is written once and not scattered into a stack.
    gate, up, down = ([make(*shape) for _ in range(experts)] for shape in ((ffn, hidden), (ffn, hidden), (hidden, ffn)))
    leaves = [x, router, *gate, *up, *down]

    deadline = time.monotonic() + 6
    for step in range(6):
        for leaf in leaves:
            leaf.grad = None
        start = time.process_time()
        layer(x, router, gate, up, down, slots).backward(dy)
        if step > 0:
            print(time.process_time() - start, flush=True)
        if step > 2 and time.monotonic() > deadline:
            break


if __name__ == "__main__":
    main()
