// SPDX-License-Identifier: Apache-2.0
// A schedule: for each rank of a pipeline, the list of its actions.
//
//   constexpr auto plan = mo::schedule_for<mo::one_f_one_b, mo::pipeline_shape{.ranks = 4, .microbatches = 8}>;
//   mo::schedule const same = mo::make_schedule(mo::one_f_one_b{}, {.ranks = 4, .microbatches = 8});
//
// Both convert to schedule_view, which everything else takes; a view lives as long as what it was made from.
//   schedule_for    at compile time; a shape that the order refuses is a static_assert
//   make_schedule   at run time; such a shape throws schedule_error, with the sizes
// Neither proves anything: verify() does.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/hash.hpp>
#include <moiety/schedule/action.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/shape.hpp>

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

class schedule_view {
 public:
  constexpr schedule_view(std::string_view name, pipeline_shape shape, int stages, bool bidirectional,
                          action const* actions, std::int64_t const* first, int const* home)
      : name_(name),
        shape_(shape),
        stages_(stages),
        bidirectional_(bidirectional),
        actions_(actions),
        first_(first),
        home_(home) {}

  constexpr std::string_view name() const { return name_; }
  constexpr pipeline_shape const& shape() const { return shape_; }
  constexpr int ranks() const { return shape_.ranks; }
  constexpr int microbatches() const { return shape_.microbatches; }
  constexpr int stages() const { return stages_; }

  /// The actions of one rank, in its order.
  constexpr std::span<action const> rank(int r) const { return {begin(r), end(r)}; }
  constexpr action const* begin(int r) const { return actions_ + first_[r]; }
  constexpr action const* end(int r) const { return actions_ + first_[r + 1]; }
  constexpr std::int64_t size() const { return first_[shape_.ranks]; }
  /// The index of an action of the schedule among all of them, rank by rank.
  constexpr std::int64_t index(action const* a) const { return a - actions_; }

  /// The rank on which a stage works on a micro-batch.
  constexpr int rank_of(int stage, int microbatch) const {
    return bidirectional_ && microbatch >= shape_.microbatches - shape_.microbatches / 2
               ? shape_.ranks - 1 - home_[stage]
               : home_[stage];
  }
  constexpr bool bidirectional() const { return bidirectional_; }

 private:
  std::string_view name_;
  pipeline_shape shape_;
  int stages_;
  bool bidirectional_;
  action const* actions_;
  std::int64_t const* first_;
  int const* home_;
};

/// A schedule whose sizes are part of its type.
template <int Ranks, int Stages, std::int64_t Actions> struct static_schedule {
  std::string_view name;
  pipeline_shape shape;
  bool bidirectional = false;
  action actions[static_cast<std::size_t>(Actions)] = {};
  std::int64_t first[static_cast<std::size_t>(Ranks) + 1] = {};
  int home[static_cast<std::size_t>(Stages)] = {};

  constexpr operator schedule_view() const { return {name, shape, Stages, bidirectional, actions, first, home}; }
};

/// A schedule of sizes known at run time.
class schedule {
 public:
  /// `ranks[r]` is the list of rank r, `home[s]` the rank of stage s (for a bidirectional schedule, for the first half
  /// of the micro-batches). Throws schedule_error where a home is no rank.
  schedule(std::string name, pipeline_shape const& shape, std::vector<int> home, bool bidirectional,
           std::vector<std::vector<action>> const& ranks)
      : name_(std::move(name)), shape_(shape), bidirectional_(bidirectional), home_(std::move(home)) {
    shape_.ranks = static_cast<int>(ranks.size());
    for (int const h : home_)
      detail::require<schedule_error>(h >= 0 && h < shape_.ranks, "a stage lives on rank ", h, ", but there are ",
                                      shape_.ranks, " ranks.");
    first_.push_back(0);
    for (auto const& actions : ranks) {
      actions_.insert(actions_.end(), actions.begin(), actions.end());
      first_.push_back(static_cast<std::int64_t>(actions_.size()));
    }
  }

  operator schedule_view() const {
    return {name_,         shape_,      static_cast<int>(home_.size()), bidirectional_, actions_.data(),
            first_.data(), home_.data()};
  }

 private:
  std::string name_;
  pipeline_shape shape_;
  bool bidirectional_;
  std::vector<int> home_;
  std::vector<action> actions_;
  std::vector<std::int64_t> first_;
};

namespace detail {

template <pipeline_order Order> constexpr std::int64_t count_actions(pipeline_shape const& shape) {
  std::int64_t const most = rank_actions::most(shape);
  table<action> scratch(most);
  std::int64_t total = 0;
  for (int r = 0; r < shape.ranks; ++r) {
    rank_actions actions(scratch.data(), most);
    Order::generate(shape, r, actions);
    total += actions.size();
  }
  return total;
}

template <shape_fault Fault> consteval bool accept() {
#define MOIETY_FAULT(name, text) static_assert(Fault != shape_fault::name, text ".");
  MOIETY_SHAPE_FAULTS(MOIETY_FAULT)
#undef MOIETY_FAULT
  return true;
}

template <class Order, pipeline_shape Shape> consteval auto generate() {
  if constexpr (!pipeline_order<Order>) {
    static_assert(pipeline_order<Order>,
                  "an order has name, placed, gradients, fault(shape) and generate(shape, rank, actions).");
    return static_schedule<1, 1, 1>{};
  } else if constexpr (fault_of<Order>(Shape) != shape_fault::none) {
    accept<fault_of<Order>(Shape)>();
    return static_schedule<1, 1, 1>{};
  } else {
    constexpr std::int64_t total = count_actions<Order>(Shape);
    constexpr int stages = stages_of(Order::placed, Shape);
    static_schedule<Shape.ranks, stages, total> made{.name = Order::name, .shape = Shape};
    made.bidirectional = Order::placed == placement::bidirectional;
    for (int s = 0; s < stages; ++s) made.home[s] = rank_of_stage(Order::placed, Shape, s);
    for (int r = 0; r < Shape.ranks; ++r) {
      rank_actions actions(made.actions + made.first[r], total - made.first[r]);
      Order::generate(Shape, r, actions);
      made.first[r + 1] = made.first[r] + actions.size();
    }
    return made;
  }
}

}  // namespace detail

/// The schedule of an order for sizes that are constant.
template <class Order, pipeline_shape Shape> inline constexpr auto schedule_for = detail::generate<Order, Shape>();

/// The schedule of an order for sizes known at run time.
template <pipeline_order Order> schedule make_schedule(Order const&, pipeline_shape const& shape) {
  shape_fault const fault = fault_of<Order>(shape);
  detail::require<schedule_error>(fault == shape_fault::none, Order::name, " with p = ", shape.ranks,
                                  " ranks, v = ", shape.chunks, " chunks, m = ", shape.microbatches,
                                  " micro-batches, g = ", shape.group, ": ", sentence_of(fault), '.');
  std::vector<int> home;
  for (int s = 0; s < stages_of(Order::placed, shape); ++s) home.push_back(rank_of_stage(Order::placed, shape, s));
  std::vector<std::vector<action>> ranks;
  std::vector<action> scratch(static_cast<std::size_t>(rank_actions::most(shape)));
  for (int r = 0; r < shape.ranks; ++r) {
    rank_actions actions(scratch.data(), static_cast<std::int64_t>(scratch.size()));
    Order::generate(shape, r, actions);
    ranks.emplace_back(scratch.begin(), scratch.begin() + actions.size());
  }
  return {std::string(Order::name), shape, std::move(home), Order::placed == placement::bidirectional, ranks};
}

/// The same actions in the same order on the same ranks.
constexpr bool same_actions(schedule_view const& a, schedule_view const& b) {
  if (a.ranks() != b.ranks() || a.size() != b.size()) return false;
  for (int r = 0; r < a.ranks(); ++r) {
    if (a.end(r) - a.begin(r) != b.end(r) - b.begin(r)) return false;
    for (std::int64_t i = 0; i < a.end(r) - a.begin(r); ++i)
      if (!(a.begin(r)[i] == b.begin(r)[i])) return false;
  }
  return true;
}

/// A number that schedules share if their ranks do the same actions in the same order, at the same places.
constexpr std::uint64_t hash_of(schedule_view const& plan) {
  fnv_1a all;
  auto const add = [&](int value) { all.add(static_cast<std::uint64_t>(value)); };
  add(plan.ranks()), add(plan.stages()), add(plan.microbatches());
  for (int s = 0; s < plan.stages(); ++s) add(plan.rank_of(s, 0)), add(plan.rank_of(s, plan.microbatches() - 1));
  for (int r = 0; r < plan.ranks(); ++r) {
    add(static_cast<int>(plan.rank(r).size()));
    for (action const& a : plan.rank(r)) add(a.stage), add(a.microbatch), add(static_cast<int>(a.type)), add(a.joined);
  }
  return all.value();
}

/// One row a rank: 0F0 0F1 (0F2;2B0)OVERLAP_F_B … with `between` between the steps.
inline void print(std::ostream& out, schedule_view const& plan, std::string_view between) {
  for (int r = 0; r < plan.ranks(); ++r) {
    for (action const* a = plan.begin(r); a != plan.end(r); ++a) {
      if (a != plan.begin(r)) out << between;
      if (a + 1 != plan.end(r) && a[1].joined) {
        out << '(' << a[0] << ';' << a[1] << ")OVERLAP_F_B";
        ++a;
      } else {
        out << *a;
      }
    }
    if (r + 1 < plan.ranks()) out << '\n';
  }
}

inline std::ostream& operator<<(std::ostream& out, schedule_view const& plan) {
  print(out, plan, " ");
  return out;
}

}  // namespace moiety
