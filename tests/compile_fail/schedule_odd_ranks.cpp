// SPDX-License-Identifier: Apache-2.0
// expect: this order needs an even number of ranks.
#include <moiety/schedule/orders/dual_pipe.hpp>
#include <moiety/schedule/schedule.hpp>
#include <moiety/schedule/shape.hpp>

namespace mo = moiety;

#ifdef MOIETY_CORRECT
constexpr auto plan = mo::schedule_for<mo::dual_pipe, mo::pipeline_shape{.ranks = 4, .chunks = 2, .microbatches = 8}>;
#else
constexpr auto plan = mo::schedule_for<mo::dual_pipe, mo::pipeline_shape{.ranks = 3, .chunks = 2, .microbatches = 8}>;
#endif

int main() { return plan.name.empty(); }
