// SPDX-License-Identifier: Apache-2.0
// expect: this order needs at least 2 * ranks micro-batches.
#include <moiety/schedule/orders/dual_pipe_v.hpp>
#include <moiety/schedule/schedule.hpp>
#include <moiety/schedule/shape.hpp>

namespace mo = moiety;

#ifdef MOIETY_CORRECT
constexpr auto plan = mo::schedule_for<mo::dual_pipe_v, mo::pipeline_shape{.ranks = 4, .chunks = 2, .microbatches = 8}>;
#else
constexpr auto plan = mo::schedule_for<mo::dual_pipe_v, mo::pipeline_shape{.ranks = 4, .chunks = 2, .microbatches = 7}>;
#endif

int main() { return plan.name.empty(); }
