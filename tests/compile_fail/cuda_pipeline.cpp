// SPDX-License-Identifier: Apache-2.0
// expect: a pipeline over ranks runs on mo::host, not yet on mo::cuda.
#include <moiety/cuda.cuh>
#include <moiety/pipeline.hpp>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

struct staged : mo::deployment<mo::layout{.pipeline = 2}> {
#ifndef MOIETY_CORRECT
  using backend = mo::cuda;
#endif
};

void make(mo::context<staged>& ctx, mo::schedule_view const& plan, mo::moe_stack<small, staged>& stack) {
  mo::pipeline_engine engine{ctx, plan, stack};
}

int main() { static_cast<void>(make); }
