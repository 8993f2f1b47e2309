// SPDX-License-Identifier: Apache-2.0
// expect: a step needs at least one micro-batch.
#include <moiety/schedule/orders/gpipe.hpp>
#include <moiety/schedule/schedule.hpp>
#include <moiety/schedule/shape.hpp>

namespace mo = moiety;

#ifdef MOIETY_CORRECT
constexpr auto plan = mo::schedule_for<mo::gpipe, mo::pipeline_shape{.ranks = 4, .microbatches = 8}>;
#else
constexpr auto plan = mo::schedule_for<mo::gpipe, mo::pipeline_shape{.ranks = 4, .microbatches = 0}>;
#endif

int main() { return plan.name.empty(); }
