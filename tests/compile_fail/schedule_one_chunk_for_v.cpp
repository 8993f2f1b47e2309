// SPDX-License-Identifier: Apache-2.0
// expect: this order needs exactly two chunks a rank.
#include <moiety/schedule/orders/zb_v.hpp>
#include <moiety/schedule/schedule.hpp>
#include <moiety/schedule/shape.hpp>

namespace mo = moiety;

#ifdef MOIETY_CORRECT
constexpr auto plan = mo::schedule_for<mo::zb_v, mo::pipeline_shape{.ranks = 4, .chunks = 2, .microbatches = 8}>;
#else
constexpr auto plan = mo::schedule_for<mo::zb_v, mo::pipeline_shape{.ranks = 4, .microbatches = 8}>;
#endif

int main() { return plan.name.empty(); }
