// SPDX-License-Identifier: Apache-2.0
// Reads lines `order ranks chunks microbatches group`, and answers each with one line of JSON: the schedule and all that
// is derived from it, or the reason why there is none.
#include <moiety/pipeline.hpp>

#include <array>
#include <iostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

template <class Values> std::string list(Values const& values) {
  std::ostringstream out;
  for (auto const& v : values) out << (out.tellp() > 0 ? ", " : "") << v;
  return '[' + out.str() + ']';
}

template <class F> std::string of_ranks(mo::schedule_view const& plan, F const& f) {
  std::vector<std::string> all;
  for (int r = 0; r < plan.ranks(); ++r) {
    std::ostringstream out;
    out << f(r);
    all.push_back(out.str());
  }
  return list(all);
}

std::string metrics(mo::schedule_view const& plan, mo::step_costs const& costs) {
  mo::replay const run(plan, costs);
  std::ostringstream out;
  out << R"({"makespan": )" << mo::makespan(plan, costs) << R"(, "bubble_time": )" << mo::bubble(plan, costs)
      << R"(, "max_rank_span_bubble": )" << mo::rank_span_bubble(plan, costs) << R"(, "bubble_over_total": )"
      << mo::idle_fraction(plan, costs) << R"(, "work_per_rank": )"
      << of_ranks(plan, [&](int r) { return run.work(r); }) << R"(, "peak_activations_until_W": )"
      << of_ranks(plan, [&](int r) { return mo::peak_activations(plan, r); }) << R"(, "peak_activations_until_I": )"
      << of_ranks(plan, [&](int r) { return mo::peak_activations(plan, r, mo::release::after_input_gradient); }) << '}';
  return out.str();
}

std::string quoted_operations(std::span<mo::operation const> operations) {
  std::ostringstream out;
  for (std::size_t i = 0; i < operations.size(); ++i) {
    bool const joined = i + 1 < operations.size() && operations[i + 1].what.joined;
    out << (i > 0 ? ", \"" : "\"");
    if (joined) {
      out << '(' << operations[i] << ';' << operations[i + 1] << ")OVERLAP_F_B";
      ++i;
    } else {
      out << operations[i];
    }
    out << '"';
  }
  return '[' + out.str() + ']';
}

std::string starts(mo::schedule_view const& plan) {
  auto const all = mo::start_times(plan, mo::unit_costs);
  return of_ranks(plan, [&](int r) {
    std::vector<std::int64_t> of_steps;
    for (mo::action const* a = plan.begin(r); a != plan.end(r); ++a)
      if (!a->joined) of_steps.push_back(all[static_cast<std::size_t>(plan.index(a))]);
    return list(of_steps);
  });
}

/// The rank of each stage, for the first and for the last micro-batch.
std::string homes(mo::schedule_view const& plan) {
  std::vector<std::string> all;
  for (int s = 0; s < plan.stages(); ++s)
    all.push_back(list(std::array{plan.rank_of(s, 0), plan.rank_of(s, plan.microbatches() - 1)}));
  return list(all);
}

std::string all_of(mo::schedule_view const& plan, mo::gradient_order gradients) {
  std::ostringstream out, rows;
  mo::print(rows, plan, ",");
  std::string csv = rows.str();
  for (auto at = csv.find('\n'); at != std::string::npos; at = csv.find('\n', at + 2)) csv.replace(at, 1, "\\n");
  auto const lowered = mo::lower(plan);
  std::array const names{"unit", "unit_hidden", "skew", "latency1"};
  std::array const models{mo::unit_costs, mo::step_costs{.hidden = 1},
                          mo::step_costs{.forward = 2, .input_gradient = 3, .weight_gradient = 1},
                          mo::step_costs{.hop = 1}};
  out << R"({"csv": ")" << csv << R"(", "stages": )" << plan.stages() << R"(, "homes": )" << homes(plan)
      << R"(, "descending": )" << (gradients == mo::gradient_order::descending) << R"(, "starts": )" << starts(plan)
      << R"(, "lowered": )" << of_ranks(plan, [&](int r) { return quoted_operations(lowered.rank(r)); })
      << R"(, "buffers": )" << of_ranks(plan, [&](int r) { return lowered.receive_buffers(r); }) << R"(, "metrics": {)";
  for (std::size_t i = 0; i < names.size(); ++i)
    out << (i > 0 ? ", " : "") << '"' << names[i] << R"(": )" << metrics(plan, models[i]);
  out << "}}";
  return out.str();
}

template <class... Orders> std::string answer(std::string const& name, mo::pipeline_shape const& shape) {
  std::string result = R"({"error": "no order of that name"})";
  auto const attempt = [&]<class Order>(Order order) {
    if (Order::name != name) return;
    try {
      result = all_of(mo::make_schedule(order, shape), Order::gradients);
    } catch (mo::schedule_error const& e) {
      result = std::string(R"({"error": ")") + e.what() + "\"}";
    }
  };
  (attempt(Orders{}), ...);
  return result;
}

}  // namespace

int main() {
  std::string name;
  mo::pipeline_shape shape;
  while (std::cin >> name >> shape.ranks >> shape.chunks >> shape.microbatches >> shape.group)
    std::cout
        << answer<mo::gpipe, mo::gpipe_lifo, mo::one_f_one_b, mo::interleaved_1f1b, mo::interleaved_1f1b_overlapped,
                  mo::looped_bfs, mo::zb_h1, mo::zb_h2, mo::interleaved_zb1p, mo::zb_v, mo::dual_pipe, mo::dual_pipe_v>(
               name, shape)
        << '\n';
}
