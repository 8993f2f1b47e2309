// SPDX-License-Identifier: Apache-2.0
// expect: an order has name, placed, gradients, fault(shape) and generate(shape, rank, actions).
#include <moiety/schedule/orders/gpipe.hpp>
#include <moiety/schedule/schedule.hpp>
#include <moiety/schedule/shape.hpp>

namespace mo = moiety;

struct one_after_the_other : mo::gpipe {
#ifndef MOIETY_CORRECT
  static void generate(mo::pipeline_shape const&);  // neither rank nor list
#endif
};

constexpr auto plan = mo::schedule_for<one_after_the_other, mo::pipeline_shape{.ranks = 2, .microbatches = 3}>;

int main() { return plan.name.empty(); }
