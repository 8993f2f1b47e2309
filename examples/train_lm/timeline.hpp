// SPDX-License-Identifier: Apache-2.0
// The plan of a step in the times that its actions really took, to be held against the step itself.
#pragma once

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace lm {

namespace mo = moiety;
using timed = std::vector<mo::timed_operation>;

/// Times from the first begin on.
inline timed from_zero(timed all) {
  std::int64_t first = all.empty() ? 0 : all.front().begin;
  for (auto const& o : all) first = std::min(first, o.begin);
  for (auto& o : all) o.begin -= first, o.end -= first;
  return all;
}

/// The plan, where every action takes the mean time of its kind in its stage and starts as soon as it can.
inline timed planned(mo::schedule_view const& plan, timed const& measured) {
  std::vector<std::array<std::int64_t, 4>> sums(static_cast<std::size_t>(plan.stages())), counts = sums;
  for (auto const& [rank, what, begin, end] : measured) {
    if (what.kind != mo::message::none) continue;
    auto const stage = static_cast<std::size_t>(what.what.stage), type = static_cast<std::size_t>(what.what.type);
    sums[stage][type] += end - begin, counts[stage][type] += 1;
  }
  std::vector<mo::step_costs> costs;
  for (std::size_t s = 0; s < sums.size(); ++s) {
    auto const mean = [&](mo::computation type) {
      auto const i = static_cast<std::size_t>(type);
      return sums[s][i] / std::max<std::int64_t>(1, counts[s][i]);
    };
    costs.push_back({.forward = mean(mo::computation::forward),
                     .input_gradient = mean(mo::computation::input_gradient),
                     .weight_gradient = mean(mo::computation::weight_gradient),
                     .backward = mean(mo::computation::backward)});
  }
  return mo::planned_timeline(plan, mo::stage_costs{costs});
}

/// When the last action ended, in milliseconds.
inline double span_of(timed const& all) {
  std::int64_t last = 0;
  for (auto const& o : all) last = std::max(last, o.end);
  return static_cast<double>(last) * 1e-6;
}

}  // namespace lm
