// SPDX-License-Identifier: Apache-2.0
// Where the buffers of a layer lie in the blocks that it asks for, as constexpr functions of tokens and sequences.
// The layer allocates by these plans and describe() reports them, so the two cannot differ.
//
//   tape_plan      what forward saves: logits, routing, permutation, pre-activations, statistics
//   forward_plan   workspace of forward and infer: activations and expert outputs
//   pending_plan   what the input half leaves for the weight half: dz, A′, gradient of the logits
//   backward_plan  workspace of the input half
//
// All rows are counted as if every token were dispatched: R = T · k.
#pragma once

#include <moiety/batch/routing.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/experts/apply.hpp>
#include <moiety/layer/spec.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI {

/// The size of a call: tokens, and the sequences that they belong to.
struct tokens {
  std::int64_t count = 0;
  std::int64_t sequences = 1;
  template <std::integral Integer>
  constexpr explicit tokens(Integer n, std::int64_t units = 1)
      : count(static_cast<std::int64_t>(n)), sequences(units) {}
};

namespace detail {

/// Lays buffers out one after another, each aligned.
class block_layout {
 public:
  template <class T> constexpr std::int64_t add(std::int64_t count) {
    constexpr auto alignment = static_cast<std::int64_t>(memory_alignment);
    std::int64_t const offset = bytes_;
    bytes_ += (count * static_cast<std::int64_t>(sizeof(T)) + alignment - 1) / alignment * alignment;
    return offset;
  }
  constexpr std::int64_t bytes() const { return bytes_; }

 private:
  std::int64_t bytes_ = 0;
};

template <class T> T* at(buffer const& block, std::int64_t offset) {
  return block.data() == nullptr ? nullptr : reinterpret_cast<T*>(static_cast<std::byte*>(block.data()) + offset);
}

}  // namespace detail

template <class Spec, scalar T> struct tape_plan {
  using spec = spec_of<Spec>;
  using S = sum_t<T>;

  /// Units with statistics of their own: the whole batch, then its sequences if a loss is over them.
  static constexpr std::int64_t units(tokens of) {
    return spec::losses_type::template any_over<over::sequence> ? 1 + of.sequences : 1;
  }

  constexpr explicit tape_plan(tokens of, bool with_pre_activation = true) {
    std::int64_t const slots = of.count * spec::slots;
    logits = block.add<S>(of.count * spec::experts);
    weights = block.add<S>(slots);
    ids = block.add<std::int32_t>(slots);
    states = block.add<token_state>(of.count);
    starts = block.add<std::int64_t>(spec::experts + 1);
    source_tokens = block.add<std::int32_t>(slots);
    positions = block.add<std::int32_t>(slots);
    routed_tokens = block.add<std::int32_t>(of.count);
    routed_offsets = block.add<std::int64_t>(2);
    sequences = block.add<std::int64_t>(units(of));
    token_counts = block.add<moiety::token_counts>(1);
    unit = block.add<unit_statistics>(units(of));
    expert_units = block.add<expert_statistics>(units(of) * spec::experts);
    step_counts = block.add<std::int64_t>(spec::losses_type::uses_step_counts ? 2 * (1 + spec::experts) : 0);
    pre_activation = block.add<T>(with_pre_activation ? slots * spec::inputs * spec::ffn : 0);
  }

  detail::block_layout block;
  std::int64_t logits, weights, ids, states, starts, source_tokens, positions, routed_tokens, routed_offsets, sequences,
      token_counts, unit, expert_units, step_counts, pre_activation;
};

template <class Spec, scalar T> struct forward_plan {
  using spec = spec_of<Spec>;

  constexpr explicit forward_plan(tokens of) {
    activation = block.add<T>(of.count * spec::slots * spec::ffn);
    output = block.add<T>(of.count * spec::slots * spec::hidden);
  }

  detail::block_layout block;
  std::int64_t activation, output;
};

template <class Spec, scalar T> struct pending_plan {
  using spec = spec_of<Spec>;

  constexpr explicit pending_plan(tokens of) {
    std::int64_t const rows = of.count * spec::slots;
    pre_activation = block.add<T>(rows * spec::inputs * spec::ffn);
    activation = block.add<T>(rows * spec::ffn);
    logits = block.add<sum_t<T>>(of.count * spec::experts);
  }

  detail::block_layout block;
  std::int64_t pre_activation, activation, logits;
};

template <class Spec, scalar T, class Backend = host> struct backward_plan {
  using spec = spec_of<Spec>;
  using S = sum_t<T>;

  constexpr explicit backward_plan(tokens of) {
    std::int64_t const rows = of.count * spec::slots;
    row_weights = block.add<S>(rows);
    weight_parts = block.add<S>(rows * column_blocks<S, Backend>(spec::ffn));
    weights = block.add<S>(rows);
    row_inputs = block.add<T>(rows * spec::hidden);
    router_inputs = block.add<S>(of.count * spec::hidden);
  }

  detail::block_layout block;
  std::int64_t row_weights, weight_parts, weights, row_inputs, router_inputs;
};

/// Bytes of the workspace of forward, which the input half takes over: both ask for the same, so that the block that one
/// has left serves the other and nothing else.
template <class Spec, scalar T, class Backend = host> constexpr std::int64_t shared_workspace(tokens of) {
  return std::max(forward_plan<Spec, T>(of).block.bytes(), backward_plan<Spec, T, Backend>(of).block.bytes());
}

}  // namespace moiety
