// SPDX-License-Identifier: Apache-2.0
// Where the buffers of a layer lie in the blocks that it asks for, as constexpr functions of tokens and sequences.
// The layer allocates by these plans and describe() reports them, so the two cannot differ.
//
//   tape_plan      what forward saves: logits, those of learned noise, routing, permutation, pre-activations, statistics
//   forward_plan   workspace of forward and infer: activations and expert outputs, and before them that of the routing;
//                  the weight half asks for it too, where it computes again what forward had there or its products want room
//   pending_plan   what the input half leaves for the weight half: dz, A′, gradients of the logits; for biases w and a 1
//   backward_plan  workspace of the input half
//
// All rows are counted as if every token were dispatched: R = T · k, or what the router says (spec_of::rows). Shared
// experts, with a row a token, work before the routed ones in forward and after them in backward, in the same buffers.
#pragma once

#include <moiety/batch/routing.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/exact_sum.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/experts/apply.hpp>
#include <moiety/kernels/drop.hpp>
#include <moiety/kernels/route_together.hpp>
#include <moiety/layer/spec.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI {

/// The size of a call: tokens, and the sequences that they belong to. Where the tokens of several ranks meet, also the rows
/// that arrived at the experts of this rank, and the units that these have here; negative: as if every token of the call were
/// dispatched to whole experts.
struct tokens {
  std::int64_t count = 0;
  std::int64_t sequences = 1;
  std::int64_t arrived = -1, ffn = -1;
  template <std::integral Integer>
  constexpr explicit tokens(Integer n, std::int64_t units = 1)
      : count(static_cast<std::int64_t>(n)), sequences(units) {}
};

/// The rows of this rank's experts: as if every token were dispatched, or those that arrived.
template <class Spec> constexpr std::int64_t expert_rows_of(tokens of) {
  return of.arrived < 0 ? spec_of<Spec>::rows(of.count) : of.arrived;
}

template <class Spec> constexpr std::int64_t expert_ffn_of(tokens of) {
  return of.ffn < 0 ? spec_of<Spec>::ffn : of.ffn;
}
/// Rows by permutation, of the call's own tokens: a capacity over all ranks bounds no rank's.
template <class Spec> constexpr std::int64_t own_rows_of(tokens of) {
  return of.arrived < 0 ? spec_of<Spec>::rows(of.count) : spec_of<Spec>::rows_asked(of.count);
}

namespace detail {

/// Lays buffers out one after another, each aligned.
class block_layout {
 public:
  template <class T> constexpr std::int64_t add(std::int64_t count) {
    std::int64_t const offset = bytes_;
    bytes_ += whole_blocks(count * static_cast<std::int64_t>(sizeof(T)));
    return offset;
  }
  /// Room for something that is there before the buffers are.
  constexpr void at_least(std::int64_t bytes) { bytes_ = std::max(bytes_, whole_blocks(bytes)); }
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

  static constexpr bool learns_noise = spec::router_type::has_learned_noise;
  static constexpr bool expects_loads = spec::losses_type::needs_expected_loads;

  constexpr explicit tape_plan(tokens of, bool with_pre_activation = true) {
    std::int64_t const slots = of.count * spec::slots;
    logits = block.add<S>(of.count * spec::experts);
    noise_logits = block.add<S>(learns_noise && with_pre_activation ? of.count * spec::experts : 0);
    weights = block.add<S>(slots);
    ids = block.add<std::int32_t>(slots);
    states = block.add<token_state>(of.count);
    starts = block.add<std::int64_t>(spec::experts + 1);
    source_tokens = block.add<std::int32_t>(spec::rows_asked(of.count));
    positions = block.add<std::int32_t>(slots);
    routed_tokens = block.add<std::int32_t>(of.count);
    routed_offsets = block.add<std::int64_t>(2);
    sequences = block.add<std::int64_t>(units(of));
    token_counts = block.add<moiety::token_counts>(1);
    unit = block.add<unit_statistics>(units(of));
    expert_units = block.add<expert_statistics>(units(of) * spec::experts);
    expected_loads = block.add<exact_sum>(expects_loads && with_pre_activation ? units(of) * spec::experts : 0);
    step_counts = block.add<std::int64_t>(spec::losses_type::uses_step_counts ? 2 * (1 + spec::experts) : 0);
    pre_activation =
        block.add<T>(with_pre_activation && of.arrived < 0 ? spec::rows(of.count) * spec::inputs * spec::ffn : 0);
    std::int64_t const passing = spec::passing_rows(of.count), shared = spec::shared_rows(of.count);
    passing_starts = block.add<std::int64_t>(spec::lists_passing ? 2 : 0);
    passing_sources = block.add<std::int32_t>(passing);
    passing_positions = block.add<std::int32_t>(passing);
    shared_gates = block.add<S>(spec::shared_gated ? shared : 0);
    shared_before = block.add<T>(with_pre_activation ? shared * spec::shared_mlp::inputs * spec::shared_ffn : 0);
    latent_inputs = block.add<T>(spec::latent_rows(of.count) * spec::latent);
    latent_outputs = block.add<T>(spec::latent_rows(of.count) * spec::latent);
  }

  detail::block_layout block;
  std::int64_t logits, noise_logits, weights, ids, states, starts, source_tokens, positions, routed_tokens,
      routed_offsets, sequences, token_counts, unit, expert_units, expected_loads, step_counts, pre_activation;
  std::int64_t passing_starts, passing_sources, passing_positions, shared_gates, shared_before, latent_inputs,
      latent_outputs;
};

template <class Spec, scalar T> struct forward_plan {
  using spec = spec_of<Spec>;

  constexpr explicit forward_plan(tokens of) {
    std::int64_t const rows = expert_rows_of<Spec>(of), shared = spec::shared_rows(of.count);
    activation = block.add<T>(std::max(rows * expert_ffn_of<Spec>(of), shared * spec::shared_ffn));
    output = block.add<T>(std::max(rows * spec::expert_hidden, shared * spec::hidden));
    shared_sums = block.add<sum_t<T>>(shared * spec::hidden);
    passing_ids = block.add<std::int32_t>(spec::passing_rows(of.count));
    row_inputs = block.add<T>(place == weight_place::input ? own_rows_of<Spec>(of) * spec::expert_hidden : 0);
    row_weights = block.add<sum_t<T>>(place == weight_place::activation ? rows : 0);
    if constexpr (spec::router_type::has_jitter)
      block.at_least(of.count * spec::hidden * static_cast<std::int64_t>(sizeof(T)));
    if constexpr (spec::capacity_type::drops)
      block.at_least(kernels::drop_workspace<typename spec::capacity_type>(of.sequences));
    if constexpr (spec::router_type::couples_tokens)
      block.at_least(kernels::route_workspace<typename spec::router_type, sum_t<T>>(of.count, spec::experts));
  }

  static constexpr weight_place place = spec::router_type::place;
  detail::block_layout block;
  std::int64_t activation, output, shared_sums, passing_ids, row_inputs, row_weights;
};

template <class Spec, scalar T> struct pending_plan {
  using spec = spec_of<Spec>;
  static constexpr bool biased = has_biases<typename spec::experts_type>;
  static constexpr bool shared_biased = spec::has_shared && has_biases<typename spec::shared_mlp>;
  static constexpr bool needs_one = biased || shared_biased || spec::router_type::has_linear_bias;

  constexpr explicit pending_plan(tokens of) {
    std::int64_t const rows = expert_rows_of<Spec>(of);
    pre_activation = block.add<T>(rows * spec::inputs * expert_ffn_of<Spec>(of));
    activation = block.add<T>(rows * expert_ffn_of<Spec>(of));
    logits = block.add<sum_t<T>>(of.count * spec::experts);
    noise_logits = block.add<sum_t<T>>(spec::router_type::has_learned_noise ? of.count * spec::experts : 0);
    row_weights = block.add<sum_t<T>>(biased ? rows : 0);
    one = block.add<sum_t<T>>(needs_one ? 1 : 0);
    std::int64_t const shared = spec::shared_rows(of.count);
    shared_before = block.add<T>(shared * spec::shared_mlp::inputs * spec::shared_ffn);
    shared_activation = block.add<T>(shared * spec::shared_ffn);
    shared_logits = block.add<sum_t<T>>(spec::shared_gated ? shared : 0);
    shared_row_weights = block.add<sum_t<T>>(spec::shared_gated && shared_biased ? shared : 0);
    latent_dy = block.add<T>(spec::latent_rows(of.count) * spec::latent);
    latent_dx = block.add<T>(spec::latent_rows(of.count) * spec::latent);
  }

  detail::block_layout block;
  std::int64_t pre_activation, activation, logits, noise_logits, row_weights, one, shared_before, shared_activation,
      shared_logits, shared_row_weights, latent_dy, latent_dx;
};

template <class Spec, scalar T, class Backend = host> struct backward_plan {
  using spec = spec_of<Spec>;
  using S = sum_t<T>;

  constexpr explicit backward_plan(tokens of) {
    std::int64_t const rows = expert_rows_of<Spec>(of), slots = of.count * spec::slots;
    std::int64_t const shared = spec::shared_rows(of.count), gated = spec::shared_gated ? shared : 0;
    using pending = pending_plan<Spec, T>;
    row_weights = block.add<S>(std::max(pending::biased ? 0 : rows, pending::shared_biased ? 0 : gated));
    weight_parts = block.add<S>(
        std::max(rows * moiety::weight_parts<typename spec::experts_type, S, Backend>(expert_ffn_of<Spec>(of)),
                 gated * moiety::weight_parts<typename spec::shared_mlp, S, Backend>(spec::shared_ffn)));
    weights = block.add<S>(slots);
    row_inputs = block.add<T>(rows * spec::expert_hidden);
    router_inputs = block.add<S>(of.count * spec::hidden);
    shared_inputs = block.add<T>(shared * spec::hidden);
  }

  detail::block_layout block;
  std::int64_t row_weights, weight_parts, weights, row_inputs, router_inputs, shared_inputs;
};

}  // namespace moiety
