// SPDX-License-Identifier: Apache-2.0
// expect: the last group must be full or hold at least as many micro-batches as there are ranks.
#include <moiety/schedule/orders/interleaved_1f1b.hpp>
#include <moiety/schedule/schedule.hpp>
#include <moiety/schedule/shape.hpp>

namespace mo = moiety;

#ifdef MOIETY_CORRECT
constexpr auto plan =
    mo::schedule_for<mo::interleaved_1f1b, mo::pipeline_shape{.ranks = 4, .chunks = 2, .microbatches = 9, .group = 5}>;
#else
constexpr auto plan =
    mo::schedule_for<mo::interleaved_1f1b, mo::pipeline_shape{.ranks = 4, .chunks = 2, .microbatches = 9, .group = 4}>;
#endif

int main() { return plan.name.empty(); }
