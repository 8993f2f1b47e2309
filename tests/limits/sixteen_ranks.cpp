// SPDX-License-Identifier: Apache-2.0
// Every order with 16 ranks and 128 micro-batches, proved inside the compiler's own limits of constant evaluation.
#include <moiety/pipeline.hpp>

namespace mo = moiety;

namespace {

template <class Order, int Chunks> constexpr bool proved() {
  constexpr auto plan = mo::schedule_for<Order, mo::pipeline_shape{.ranks = 16, .chunks = Chunks, .microbatches = 128}>;
  static_assert(mo::verify(plan));
  return true;
}

static_assert(proved<mo::gpipe, 1>() && proved<mo::gpipe_lifo, 1>() && proved<mo::one_f_one_b, 1>());
static_assert(proved<mo::zb_h1, 1>() && proved<mo::zb_h2, 1>() && proved<mo::zb_v, 2>());
static_assert(proved<mo::dual_pipe, 2>() && proved<mo::dual_pipe_v, 2>());
static_assert(proved<mo::interleaved_1f1b, 4>() && proved<mo::interleaved_1f1b_overlapped, 4>());
static_assert(proved<mo::looped_bfs, 4>() && proved<mo::interleaved_zb1p, 3>());

constexpr auto plan = mo::schedule_for<mo::one_f_one_b, mo::pipeline_shape{.ranks = 16, .microbatches = 128}>;
static_assert(mo::makespan(plan, mo::unit_costs) == 3 * (128 + 15));

}  // namespace

int main() {}
