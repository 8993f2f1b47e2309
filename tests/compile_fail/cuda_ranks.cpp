// SPDX-License-Identifier: Apache-2.0
// expect: layers of several ranks run on mo::host, not yet on mo::cuda.
#include <moiety/cuda.cuh>
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

#ifdef MOIETY_CORRECT
inline constexpr mo::layout ranks{};
#else
inline constexpr mo::layout ranks{.data = 2};
#endif

struct on_cuda : mo::deployment<ranks> {
  using backend = mo::cuda;
};

void make(mo::context<on_cuda>& ctx) { mo::moe_layer<small, on_cuda> layer{ctx}; }

int main() { static_cast<void>(make); }
