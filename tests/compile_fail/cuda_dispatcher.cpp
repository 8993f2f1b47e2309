// SPDX-License-Identifier: Apache-2.0
// expect: this dispatcher moves rows of mo::host
#include <moiety/cuda.cuh>
#include <moiety/dispatcher/all_gather.hpp>
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

struct on_cuda : mo::deployment<mo::layout{.data = 2, .expert = 2}> {
  using backend = mo::cuda;
#ifndef MOIETY_CORRECT
  using dispatcher = mo::all_gather_tokens;
#endif
};

void make(mo::context<on_cuda>& ctx) { mo::moe_layer<small, on_cuda> layer{ctx}; }

int main() { static_cast<void>(make); }
