// SPDX-License-Identifier: Apache-2.0
// expect: group size must be at least the number of ranks.
#include <moiety/schedule/orders/interleaved_1f1b.hpp>
#include <moiety/schedule/schedule.hpp>
#include <moiety/schedule/shape.hpp>

namespace mo = moiety;

#ifdef MOIETY_CORRECT
constexpr auto plan =
    mo::schedule_for<mo::interleaved_1f1b, mo::pipeline_shape{.ranks = 4, .chunks = 2, .microbatches = 8, .group = 4}>;
#else
constexpr auto plan =
    mo::schedule_for<mo::interleaved_1f1b, mo::pipeline_shape{.ranks = 4, .chunks = 2, .microbatches = 8, .group = 2}>;
#endif

int main() { return plan.name.empty(); }
