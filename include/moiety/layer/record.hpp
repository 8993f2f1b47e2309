// SPDX-License-Identifier: Apache-2.0
// What a layer's losses were over one or more batches: additive and exact, so records merge in any order.
//
// A loss over micro-batches or sequences keeps Σ weight · value over its units. A loss over the global batch keeps the
// merged statistics, of which it is a function.
#pragma once

#include <moiety/batch/routing.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/exact_sum.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/layer/tape.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moiety::inline MOIETY_ABI {

/// Σ over units of weight, weight · value, coefficient · weight and coefficient · weight · value.
struct loss_sum {
  exact_sum weight{}, value{}, coefficient{}, weighted{};

  void add(double unit_weight, double unit_value, double unit_coefficient) {
    weight.add(unit_weight);
    value.add(unit_weight * unit_value);
    coefficient.add(unit_coefficient * unit_weight);
    weighted.add(unit_coefficient * (unit_weight * unit_value));
  }
  loss_sum& operator+=(loss_sum const& other) {
    weight += other.weight, value += other.value, coefficient += other.coefficient, weighted += other.weighted;
    return *this;
  }
  friend bool operator==(loss_sum const&, loss_sum const&) = default;
};

template <class Spec> struct layer_record;

namespace detail {

/// The position of Loss in losses<Losses...>.
template <class Loss, class List> inline constexpr std::size_t loss_index = 0;
template <class Loss, class First, class... Rest>
inline constexpr std::size_t loss_index<Loss, losses<First, Rest...>> =
    std::same_as<Loss, First> ? 0 : 1 + loss_index<Loss, losses<Rest...>>;

}  // namespace detail

template <class Spec> struct layer_record {
  using losses_type = typename spec_of<Spec>::losses_type;

  routing_statistics statistics{spec_of<Spec>::experts, spec_of<Spec>::slots, losses_type::counted_groups,
                                losses_type::needs_expected_loads};
  token_counts tokens{};
  std::array<loss_sum, static_cast<std::size_t>(losses_type::count)> sums{};

  layer_record() = default;

  template <scalar T> explicit layer_record(layer_tape<Spec, T> const& tape) {
    detail::require<state_error>(tape.state() != tape_state::moved_from,
                                 "a record was asked of a tape that was moved from.");
    statistics_table table = tape.statistics();
    batch_statistics const all = table.view();
    statistics = routing_statistics(all.unit(0));
    tokens = *all.states;
    tape.options().losses.for_each([&]<class Loss>(Loss const& loss) {
      bool const by_sequence = std::same_as<typename Loss::unit, over::sequence>;
      for (std::int64_t u = by_sequence ? 1 : 0; u < (by_sequence ? all.count : 1); ++u)
        add<Loss>(all.weight(u, tape.given_weight()), loss.value(all.unit(u)), static_cast<double>(loss.coefficient));
    });
  }

  /// Adds one unit's value of a loss.
  template <class Loss> void add(double weight, double value, double coefficient) {
    sums[detail::loss_index<Loss, losses_type>].add(weight, value, coefficient);
  }

  layer_record& operator+=(layer_record const& other) {
    statistics += other.statistics;
    tokens += other.tokens;
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += other.sums[i];
    return *this;
  }

  /// The unweighted loss: the mean over units, by weight; for the global batch, of all that was merged.
  template <class Loss> double value() const {
    loss_sum const& sum = sums[detail::loss_index<Loss, losses_type>];
    if constexpr (std::same_as<typename Loss::unit, over::global_batch>) return Loss{}.value(statistics);
    double const weight = sum.weight.value();
    return weight > 0 ? sum.value.value() / weight : 0;
  }

  /// Coefficient times loss.
  template <class Loss> double weighted() const {
    loss_sum const& sum = sums[detail::loss_index<Loss, losses_type>];
    double const weight = sum.weight.value();
    if (!(weight > 0)) return 0;
    if constexpr (std::same_as<typename Loss::unit, over::global_batch>)
      return sum.coefficient.value() / weight * value<Loss>();
    return sum.weighted.value() / weight;
  }
};

/// Records of one rank become those of all, layer by layer; a collective. What the ranks of a stage share, a batch's unit and
/// its tokens, is in each of their records already.
template <class Spec, class Context> void sum_records(Context& ctx, std::span<layer_record<Spec>> records) {
  std::vector<loss_sum> own;
  typename layer_record<Spec>::losses_type const losses{};
  auto const for_sequences = [&](auto const& f) {
    for (layer_record<Spec>& record : records)
      losses.for_each([&]<class Loss>(Loss const&) {
        if (std::same_as<typename Loss::unit, over::sequence>)
          f(record.sums[detail::loss_index<Loss, typename layer_record<Spec>::losses_type>]);
      });
  };
  bool const first = ctx.sequence_parts().rank() == 0;
  for_sequences([&](loss_sum const& sum) { own.push_back(first ? sum : loss_sum{}); });
  ctx.stage().all_reduce(std::span(own));
  auto next = own.begin();
  for_sequences([&](loss_sum& sum) { sum = *next++; });
}

namespace detail {

/// A record as one element of a sum over ranks.
template <class Spec> struct record_element {
  using losses_type = typename layer_record<Spec>::losses_type;
  static constexpr auto count = static_cast<std::size_t>(spec_of<Spec>::experts);

  unit_statistics unit{};
  std::array<expert_statistics, count> experts{};
  std::array<exact_sum, losses_type::needs_expected_loads ? count : 0> loads{};
  token_counts tokens{};
  decltype(layer_record<Spec>::sums) sums{};

  record_element() = default;
  explicit record_element(layer_record<Spec> const& of) : tokens(of.tokens), sums(of.sums) {
    view().add(of.statistics);
  }
  void to(layer_record<Spec>& record) {
    record.statistics = routing_statistics(view());
    record.tokens = tokens, record.sums = sums;
  }
  record_element& operator+=(record_element const& other) {
    view().add(const_cast<record_element&>(other).view());
    tokens += other.tokens;
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += other.sums[i];
    return *this;
  }

 private:
  statistics_view view() { return {&unit, {experts.data(), count}, {}, {}, {loads.data(), loads.size()}}; }
};

}  // namespace detail

/// Records of the layers of one stage, and empty ones of all others, become those of all layers on every rank of a pipeline: one
/// collective of these, of a size that only the spec and the number of layers know.
template <class Spec, class Communicator>
void gather_records(Communicator& pipeline, std::span<layer_record<Spec>> records) {
  if (pipeline.size() == 1) return;
  std::vector<detail::record_element<Spec>> all(records.begin(), records.end());
  pipeline.all_reduce(std::span(all));
  for (std::size_t l = 0; l < records.size(); ++l) all[l].to(records[l]);
}

}  // namespace moiety
