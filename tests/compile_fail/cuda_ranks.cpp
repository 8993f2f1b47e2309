// SPDX-License-Identifier: Apache-2.0
// expect: rows of device memory travel over mo::threads
#include <moiety/cuda.cuh>
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

/// A transport that copies rows itself, as those between processes do.
struct of_the_host : mo::thread_communicator {
  void finish(request&&);
};
struct processes {
  static constexpr bool single_rank = false;
  using communicator = of_the_host;
};

struct on_cuda : mo::deployment<mo::layout{.data = 2}> {
  using backend = mo::cuda;
#ifndef MOIETY_CORRECT
  using transport = processes;
#endif
};

void make(mo::context<on_cuda>& ctx) { mo::moe_layer<small, on_cuda> layer{ctx}; }

int main() { static_cast<void>(make); }
