// SPDX-License-Identifier: Apache-2.0
// What a forward leaves for its backward: a small state machine, forward → input half → weight half, each once; a report
// may be asked for at any time. A tape owns one block of memory (see memory_plan) and refers to x, which must live
// unmodified until the weight half; dy must live until then too. It keeps the coefficients that forward saw.
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/layer/memory_plan.hpp>
#include <moiety/layer/options.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <span>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

enum class tape_state { forward_done, input_half_done, finished, moved_from };

template <class Spec, scalar T> class layer_tape {
  using spec = spec_of<Spec>;
  using S = sum_t<T>;

 public:
  layer_tape(tokens of, batch const& about, layer_options<Spec> const& options, bool with_pre_activation,
             std::pmr::memory_resource& memory)
      : tokens_(of), batch_weight_(about.weight_of(of.count)), options_(options) {
    tape_plan<Spec, T> const plan(of, with_pre_activation);
    block_ = buffer(plan.block.bytes(), memory);
    logits_ = {detail::at<S>(block_, plan.logits), of.count, spec::experts};
    routing_ = {of.count,
                spec::experts,
                spec::slots,
                detail::at<std::int32_t>(block_, plan.ids),
                detail::at<S>(block_, plan.weights),
                detail::at<token_state>(block_, plan.states)};
    permutation_ = {of.count,
                    spec::experts,
                    spec::slots,
                    detail::at<std::int64_t>(block_, plan.starts),
                    detail::at<std::int32_t>(block_, plan.source_tokens),
                    detail::at<std::int32_t>(block_, plan.positions)};
    routed_tokens_ = detail::at<std::int32_t>(block_, plan.routed_tokens);
    pre_activation_ = detail::at<T>(block_, plan.pre_activation);
    std::int64_t const units = plan.units(of);
    units_ = {detail::at<unit_statistics>(block_, plan.unit), static_cast<std::size_t>(units)};
    expert_units_ = detail::at<expert_statistics>(block_, plan.expert_units);
    sequences_ = {detail::at<std::int64_t>(block_, plan.sequences), static_cast<std::size_t>(units)};
    std::uninitialized_value_construct(units_.begin(), units_.end());
    std::uninitialized_value_construct_n(expert_units_, units * spec::experts);
    std::fill(sequences_.begin(), sequences_.end(), of.count);
    sequences_[0] = 0;
    if (units > 1) std::copy(about.sequences.begin(), about.sequences.end(), sequences_.begin());
  }

  layer_tape(layer_tape&& other) noexcept = default;
  layer_tape& operator=(layer_tape&& other) noexcept = default;

  tape_state state() const { return block_.data() == nullptr ? tape_state::moved_from : state_; }
  tokens size() const { return tokens_; }
  layer_options<Spec> const& options() const { return options_; }
  double batch_weight() const { return batch_weight_; }

  matrix_view<S> logits() const { return logits_; }
  routing_view<S> const& routing() const { return routing_; }
  permutation_view const& permutation() const { return permutation_; }
  T* pre_activation() const { return pre_activation_; }
  std::int32_t* routed_tokens() const { return routed_tokens_; }

  /// Unit 0 is the batch; units 1, 2, … are its sequences, where a loss is over them.
  std::int64_t units() const { return static_cast<std::int64_t>(units_.size()); }
  statistics_view unit(std::int64_t index) const {
    return {&units_[static_cast<std::size_t>(index)],
            {expert_units_ + index * spec::experts, static_cast<std::size_t>(spec::experts)}};
  }
  /// Offsets of the sequences that have units: empty if none has.
  std::span<std::int64_t const> sequences() const {
    return units() > 1 ? std::span<std::int64_t const>(sequences_) : std::span<std::int64_t const>();
  }

  /// The unit of a loss that a token belongs to.
  template <class Loss> std::int64_t unit_of(std::int64_t token) const {
    if constexpr (!std::same_as<typename Loss::unit, over::sequence>) return 0;
    auto const next = std::upper_bound(sequences_.begin(), sequences_.end(), token);
    return next - sequences_.begin();
  }

  /// The weight of a unit: its share, by tokens, of the batch's weight.
  double unit_weight(std::int64_t index) const {
    std::int64_t const all = units_[0].tokens;
    if (index == 0 || all == 0) return batch_weight_;
    return batch_weight_ * static_cast<double>(units_[static_cast<std::size_t>(index)].tokens) /
           static_cast<double>(all);
  }

  /// Throws state_error unless the tape is in `wanted` and came from these weights.
  void expect(tape_state wanted, void const* weights, char const* call) const {
    static constexpr char const* names[] = {"forward", "the input half", "the weight half", "a move"};
    detail::require<state_error>(state() == wanted, call, " needs a tape after ", names[static_cast<int>(wanted)],
                                 ", but this one is after ", names[static_cast<int>(state())], '.');
    detail::require<state_error>(weights == weights_, call, " was given other weights than the tape's forward.");
  }

  matrix_view<T const> x{};
  matrix_view<T const> dy{};
  std::int64_t routed_count = 0;
  buffer pending{};

  void came_from(void const* weights) { weights_ = weights; }
  void* weights() const { return const_cast<void*>(weights_); }
  void advance(tape_state to) {
    state_ = to;
    if (to == tape_state::finished) pending = buffer();
  }

 private:
  tokens tokens_;
  double batch_weight_;
  layer_options<Spec> options_;
  tape_state state_ = tape_state::forward_done;
  void const* weights_ = nullptr;
  buffer block_;
  matrix_view<S> logits_;
  routing_view<S> routing_;
  permutation_view permutation_;
  std::int32_t* routed_tokens_ = nullptr;
  T* pre_activation_ = nullptr;
  std::span<unit_statistics> units_;
  expert_statistics* expert_units_ = nullptr;
  std::span<std::int64_t> sequences_;
};

}  // namespace moiety
