// SPDX-License-Identifier: Apache-2.0
// What one rank and a layout agree on after a few steps of the same windows: line by line, to the bit or within a tolerance.
//
// All that the first forward says must agree to the bit: losses and loads. Pipelines alone, of an order that adds gradients up
// as one rank does, agree to the bit in everything. Where the windows of a step are shared out, gradients are added up in
// another order, and so differ by rounding; AdamW, for which a gradient near zero is as good as any other, makes more of that,
// and a byte near a tie may choose another expert: hence the tolerances of later steps.
#pragma once

#include "gathered.hpp"
#include "options.hpp"
#include "report.hpp"

#include <moiety/moiety.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iomanip>
#include <ostream>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace lm {

/// What a few steps leave behind.
struct trace {
  std::vector<step_record> steps;
  named_values<float> before, after;  // weights
  bool speaks = true;
};

/// The options of the same steps on one rank.
inline options alone(options o) {
  o.micro_batches = micro_batches_of(o);
  o.pipeline = o.expert = o.data = o.chunks = 1;
  o.schedule = "", o.mpi = false;
  return o;
}

template <class Trainer> trace trace_rank(Trainer& t, options const& o) {
  trace found;
  found.before = gathered(t.ctx(), t.weights());
  for (std::int64_t step = 0; step < o.compared; ++step) found.steps.push_back(t.step(step, o.rate));
  found.after = gathered(t.ctx(), t.weights());
  found.speaks = t.ctx().world().rank() == 0;
  return found;
}

struct comparison {
  struct line {
    std::string what, one, many;
    double deviation, tolerance;  // relative
    bool bits;
  };
  std::vector<line> lines{};
  bool speaks = true;

  bool agrees() const {
    return std::all_of(lines.begin(), lines.end(), [](line const& l) { return l.bits || l.deviation <= l.tolerance; });
  }
};

namespace detail {

inline comparison::line compared(std::string what, double one, double many, double tolerance) {
  std::ostringstream left, right;
  left << std::setprecision(9) << one, right << std::setprecision(9) << many;
  double const deviation = std::abs(one - many) / std::max(std::abs(one), 1e-30);
  return {std::move(what), left.str(), right.str(), deviation, tolerance, one == many};
}

/// Loads of all layers: the part of the choices that moved.
inline comparison::line compared_loads(std::string what, step_record const& one, step_record const& many,
                                       double tolerance) {
  std::int64_t moved = 0, all = 0;
  for (std::size_t l = 0; l < one.loads.size(); ++l)
    for (std::size_t e = 0; e < one.loads[l].size(); ++e)
      moved += std::abs(one.loads[l][e] - many.loads.at(l).at(e)), all += one.loads[l][e];
  double const part = static_cast<double>(moved) / 2 / static_cast<double>(all);
  return {std::move(what), std::to_string(all), std::to_string(moved / 2) + " moved", part, tolerance, moved == 0};
}

/// Root mean squares: of the difference, over that of what training changed.
inline comparison::line compared_weights(std::string what, named_values<float> const& before,
                                         named_values<float> const& one, named_values<float> const& many,
                                         double tolerance) {
  double apart = 0, changed = 0, largest = 0;
  bool same = one.size() == many.size();
  for (auto const& [name, values] : one) {
    auto const& start = before.at(name);
    auto const found = many.find(name);
    if (found == many.end() || found->second.size() != values.size()) {
      same = false, apart = INFINITY;
      continue;
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      double const a = values[i], b = found->second[i], change = a - static_cast<double>(start[i]);
      same = same && a == b;
      apart += (a - b) * (a - b), changed += change * change, largest = std::max(largest, std::abs(a - b));
    }
  }
  std::ostringstream most;
  most << "by " << std::setprecision(3) << largest << " at most";
  double const deviation = same ? 0 : std::sqrt(apart / std::max(changed, 1e-30));
  return {std::move(what), std::to_string(count(one)), most.str(), deviation, tolerance, same};
}

}  // namespace detail

/// Whether the layout adds all gradients up as one rank does.
inline bool keeps_bits(options const& o) {
  return o.expert * o.data == 1 && plan_of(o).gradients == mo::gradient_order::ascending;
}

inline comparison compared(trace const& one, trace const& many, options const& o) {
  bool const exact = keeps_bits(o);
  comparison result{.speaks = many.speaks};
  result.lines.push_back(detail::compared_weights("weights at first", one.before, one.before, many.before, 0));
  for (std::size_t s = 0; s < one.steps.size(); ++s) {
    step_record const &a = one.steps[s], &b = many.steps.at(s);
    std::string const step = "step " + std::to_string(a.step) + ", ";
    double const loose = exact || s == 0 ? 0 : 1e-4;
    result.lines.push_back(detail::compared(step + "cross entropy", a.bits, b.bits, loose));
    result.lines.push_back(detail::compared(step + "balance loss", a.balance, b.balance, loose));
    result.lines.push_back(detail::compared(step + "router z loss", a.z, b.z, loose));
    result.lines.push_back(detail::compared_loads(step + "choices of experts", a, b, 10 * loose));
    result.lines.push_back(detail::compared(step + "gradient norm", a.norm, b.norm, exact ? 0 : s == 0 ? 1e-6 : 1e-3));
  }
  result.lines.push_back(
      detail::compared_weights("weights at last", one.before, one.after, many.after, exact ? 0 : 1e-2));
  return result;
}

inline std::ostream& operator<<(std::ostream& out, comparison const& all) {
  std::ostringstream text;
  text << std::left << std::setw(30) << "" << std::setw(16) << "one rank" << std::setw(22) << "layout"
       << "agreement\n";
  for (auto const& l : all.lines) {
    text << std::setw(30) << l.what << std::setw(16) << l.one << std::setw(22) << l.many;
    if (l.bits)
      text << "to the bit\n";
    else
      text << (l.deviation <= l.tolerance ? "within " : "BEYOND ") << std::setprecision(2) << l.tolerance << ": "
           << l.deviation << '\n';
  }
  return out << text.str();
}

}  // namespace lm
