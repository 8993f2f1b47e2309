// SPDX-License-Identifier: Apache-2.0
// What a forward leaves for its backward: a small state machine, forward → input half → weight half, each once; a report
// may be asked for at any time. A tape owns one block of memory (see memory_plan) and refers to x, which must live
// unmodified until the weight half; dy must live until then too. It keeps the coefficients that forward saw.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/batch/batch.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/batch/step_counts.hpp>
#include <moiety/batch/token.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/dispatcher/arrived_rows.hpp>
#include <moiety/layer/memory_plan.hpp>
#include <moiety/layer/options.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>

namespace moiety::inline MOIETY_ABI {

enum class tape_state { forward_done, input_half_done, finished, moved_from };

template <class Spec, scalar T> class layer_tape {
  using spec = spec_of<Spec>;
  using S = sum_t<T>;

 public:
  layer_tape(tokens of, batch const& about, layer_options<Spec> const& options, bool with_pre_activation, arena& memory)
      : tokens_(of),
        place_{.first_row = about.first_row, .step = about.step, .layer = about.layer},
        given_weight_(about.weight.value_or(-1)),
        loss_scale_(options.loss_scale * about.loss_scale),
        options_(options),
        memory_(&memory) {
    detail::require<data_error>(
        std::isfinite(loss_scale_) && loss_scale_ > 0,
        "mo::batch{.loss_scale} times the loss_scale of the layer must be finite and positive, but is ", loss_scale_,
        '.');
    tape_plan<Spec, T> const plan(of, with_pre_activation);
    block_ = buffer(plan.block.bytes(), memory);
    logits_ = {detail::at<S>(block_, plan.logits), of.count, spec::experts};
    noise_logits_ = {detail::at<S>(block_, plan.noise_logits), plan.learns_noise ? of.count : 0, spec::experts};
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
    routed_offsets_ = detail::at<std::int64_t>(block_, plan.routed_offsets);
    pre_activation_ = detail::at<T>(block_, plan.pre_activation);
    if constexpr (spec::lists_passing)
      passing_ = {of.count,
                  1,
                  1,
                  detail::at<std::int64_t>(block_, plan.passing_starts),
                  detail::at<std::int32_t>(block_, plan.passing_sources),
                  detail::at<std::int32_t>(block_, plan.passing_positions)};
    shared_gates_ = detail::at<S>(block_, plan.shared_gates);
    shared_before_ = detail::at<T>(block_, plan.shared_before);
    latent_inputs_ = {detail::at<T>(block_, plan.latent_inputs), of.count, spec::latent};
    latent_outputs_ = {detail::at<T>(block_, plan.latent_outputs), of.count, spec::latent};
    auto* const sequences = detail::at<std::int64_t>(block_, plan.sequences);
    units_ = {plan.units(of),
              spec::experts,
              detail::at<unit_statistics>(block_, plan.unit),
              detail::at<expert_statistics>(block_, plan.expert_units),
              sequences,
              detail::at<token_counts>(block_, plan.token_counts),
              spec::losses_type::counted_groups};
    memory.zero(units_.states, plan.pre_activation - plan.token_counts);  // counts, units and their experts
    if (with_pre_activation) keep_counts(plan, about);
    if (plan.expects_loads && with_pre_activation)
      units_.expected_loads = detail::at<exact_sum>(block_, plan.expected_loads);
    if (units_.count == 1) return;
    std::array<std::int64_t, 2> const one{0, of.count};
    auto const bytes = units_.count * static_cast<std::int64_t>(sizeof(std::int64_t));
    memory.store(sequences, about.sequences.empty() ? one.data() : about.sequences.data(), bytes);
  }

  layer_tape(layer_tape&& other) noexcept = default;
  layer_tape& operator=(layer_tape&& other) noexcept = default;

  tape_state state() const { return block_.data() == nullptr ? tape_state::moved_from : state_; }
  tokens size() const { return tokens_; }
  /// Where random numbers find the call's tokens; without ids.
  token_table const& place() const { return place_; }
  layer_options<Spec> const& options() const { return options_; }
  /// Of the gradients of losses: that of the options times that of the batch.
  float loss_scale() const { return loss_scale_; }

  /// The weight of the batch as it was given, else negative: then it is that of the unmasked tokens.
  double given_weight() const { return given_weight_; }
  /// The weight of the batch; waits for forward.
  double batch_weight() const { return statistics().view().weight(0, given_weight_); }

  matrix_view<S> logits() const { return logits_; }
  /// a of the router's noise; without rows where it is not learned.
  matrix_view<S> noise_logits() const { return noise_logits_; }
  routing_view<S> const& routing() const { return routing_; }
  permutation_view const& permutation() const { return permutation_; }
  T* pre_activation() const { return pre_activation_; }
  /// A row for each token that is dispatched at all: those of shared experts, and of linear maps.
  permutation_view const& passing() const { return passing_; }
  /// What scales the outputs of shared experts; their pre-activations.
  S* shared_gates() const { return shared_gates_; }
  T* shared_before() const { return shared_before_; }
  /// What routed experts are given and give for each token, where that is not x and y.
  matrix_view<T> latent_inputs() const { return latent_inputs_; }
  matrix_view<T> latent_outputs() const { return latent_outputs_; }
  matrix_view<T const> expert_x() const {
    if constexpr (spec::has_latent) return latent_inputs_;
    return x;
  }
  /// The gradient of what routed experts give; after the first map of the input half.
  matrix_view<T const> expert_dy() const {
    if constexpr (spec::has_latent)
      return matrix_view<T const>(detail::at<T>(pending, pending_plan<Spec, T>(tokens_).latent_dy), tokens_.count,
                                  spec::latent);
    return dy;
  }
  /// The tokens that take part in losses and weights, and {0, their number}.
  std::int32_t* routed_tokens() const { return routed_tokens_; }
  std::int64_t* routed_offsets() const { return routed_offsets_; }

  /// Where a back end keeps the tape's statistics, and a copy of them; the copy waits for forward.
  batch_statistics const& units() const { return units_; }
  statistics_table statistics() const {
    detail::require<state_error>(state() != tape_state::moved_from, "statistics were asked of a tape after a move.");
    return statistics_table(units_, *memory_);
  }

  /// Throws state_error unless the tape is in `wanted` and came from these weights.
  void expect(tape_state wanted, void const* weights, char const* call) const {
    static constexpr char const* names[] = {"forward", "the input half", "the weight half", "a move"};
    detail::require<state_error>(state() == wanted, call, " needs a tape after ", names[static_cast<int>(wanted)],
                                 ", but this one is after ", names[static_cast<int>(state())], '.');
    detail::require<state_error>(weights == weights_, call, " was given other weights than the tape's forward.");
  }

  /// Of experts that are spread over ranks: where rows travel.
  void dispatch(std::unique_ptr<arrivals> rows) { dispatched_ = std::move(rows); }
  /// The number of rows that the experts of this rank have, where only forward knows it.
  void arrive(std::int64_t rows, bool with_pre_activation) {
    tokens_.arrived = rows;
    if (!with_pre_activation) return;
    std::int64_t const values = rows * spec::inputs * expert_ffn_of<Spec>(tokens_);
    arrived_ = buffer(values * static_cast<std::int64_t>(sizeof(T)), *memory_);
    pre_activation_ = static_cast<T*>(arrived_.data());
  }
  arrivals& dispatched() const { return *dispatched_; }

  /// The input half begins: its dy, and room for what it leaves.
  void begin_backward(matrix_view<T const> of) {
    pending_plan<Spec, T> const plan(tokens_);
    pending = buffer(plan.block.bytes(), *memory_);
    dy = of;
    S const one = 1;
    if (plan.needs_one) memory_->store(detail::at<S>(pending, plan.one), &one, sizeof(one));
  }

  matrix_view<T const> x{};
  matrix_view<T const> dy{};
  buffer pending{};
  /// Of experts that are spread: rows of x, if they are kept, and of dy, here; and of dx where they came from, or their sums.
  buffer x_rows{}, dy_rows{}, dx_rows{}, dx_sums{};

  void came_from(void const* weights) { weights_ = weights; }
  void* weights() const { return const_cast<void*>(weights_); }
  void advance(tape_state to) {
    state_ = to;
    dx_rows = buffer(), dx_sums = buffer();
    if (to != tape_state::finished) return;
    for (buffer* left : {&pending, &x_rows, &dy_rows}) *left = buffer();
  }

  /// The weight that the batches of all ranks have together.
  void give_weight(double weight) { given_weight_ = weight; }

 private:
  /// The counts of other micro-batches as they are now, where a loss takes them.
  void keep_counts(tape_plan<Spec, T> const& plan, batch const& about) {
    if constexpr (spec::losses_type::uses_step_counts) {
      options_.check_counts(about);
      if (about.counts == nullptr) return;
      auto const values = about.counts->values();
      auto* const kept = detail::at<std::int64_t>(block_, plan.step_counts);
      memory_->store(kept, values.data(), static_cast<std::int64_t>(values.size_bytes()));
      units_.step_counts = kept;
    }
  }

  tokens tokens_;
  token_table place_;
  double given_weight_;
  float loss_scale_;
  layer_options<Spec> options_;
  arena* memory_;
  tape_state state_ = tape_state::forward_done;
  void const* weights_ = nullptr;
  buffer block_;
  matrix_view<S> logits_, noise_logits_;
  routing_view<S> routing_;
  permutation_view permutation_;
  std::int32_t* routed_tokens_ = nullptr;
  std::int64_t* routed_offsets_ = nullptr;
  T* pre_activation_ = nullptr;
  permutation_view passing_;
  S* shared_gates_ = nullptr;
  T* shared_before_ = nullptr;
  matrix_view<T> latent_inputs_, latent_outputs_;
  batch_statistics units_;
  std::unique_ptr<arrivals> dispatched_;
  buffer arrived_;
};

}  // namespace moiety
