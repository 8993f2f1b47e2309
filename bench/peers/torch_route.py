#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""torch_route.py EXPERTS SLOTS TOKENS THREADS: seconds of a routing in PyTorch.

softmax over all experts of float logits, topk, weights of the selected renormalised. Prints one time a line, warmed up.
"""
import sys
import time

import torch


def main():
    experts, slots, tokens, threads = map(int, sys.argv[1:5])
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    logits = torch.rand(tokens, experts) * 2 - 1
    clock = time.process_time if threads == 1 else time.perf_counter
    with torch.inference_mode():
        for step in range(25):
            start = clock()
            weights, _ = torch.softmax(logits, dim=-1).topk(slots, dim=-1)
            weights /= weights.sum(-1, keepdim=True)
            if step >= 5:
                print(clock() - start, flush=True)


if __name__ == "__main__":
    main()
