// SPDX-License-Identifier: Apache-2.0
// expect: this dispatcher moves rows of mo::host
#include <moiety/cuda.cuh>
#include <moiety/dispatcher/all_gather.hpp>
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

struct of_host : mo::all_gather_tokens {
  static constexpr bool on_devices = false;
};

struct on_cuda : mo::deployment<mo::layout{.data = 2, .expert = 2}> {
  using backend = mo::cuda;
#ifndef MOIETY_CORRECT
  using dispatcher = of_host;
#endif
};

void make(mo::context<on_cuda>& ctx) { mo::moe_layer<small, on_cuda> layer{ctx}; }

int main() { static_cast<void>(make); }
