// SPDX-License-Identifier: Apache-2.0
// What a pipeline engine runs: the part of a model that one rank holds, as one or more chunks of consecutive layers. Chunk c
// is the c-th of the schedule's stages that stand on this rank.
//
//   auto tape = stage.forward(weights, chunk, x, y, about);       x, y [T × width()]; y is overwritten
//   stage.backward_input(weights, tape, dy, dx);                  dx is overwritten
//   stage.backward_weights(tape, gradients);                      gradients are added to
//   stage.infer(weights, chunk, x, y, about);                     nothing kept
//   stage.width(), stage.chunks()                                 of a row; how many chunks there are on this rank
//   stage.stage_of(chunk)                                         which stage of the schedule a chunk is: ascending
//
// A tape refers to x, which lives unmodified until backward_weights has returned; dy does too. Under a bidirectional schedule a
// rank holds two stages, and each stage is on two ranks, with equal weights. What a stage may have besides:
//
//   stage.input_width(), stage.output_width()                     columns of the first stage's x and dx, and of the last one's y
//                                                                 and dy, else width(). Where the first is 0, that stage makes
//                                                                 its own input, from about.ids, and no inputs are asked for
//   stage.make_ledger(ctx)                                        what losses are recorded in: any type with reduce(), which is
//   stage.record(tape, ledger)                                    called by every rank, and whose result is that of the step
//   stage.unite(gradients)                                        at the end of a step, on every rank: sums the gradients of
//                                                                 parameters that more places of the pipeline hold than one
//   stage.make_counts()                                           what an engine keeps from step to step, as
//                                                                 pipeline/stack_counts.hpp: begin_step() and end_step(what the
//                                                                 ledger gave) are called, and forward is given &counts last
//   stage.stages(), stage.placed()                                of the whole model, for what is said where it does not fit a
//                                                                 schedule
//
// A stage of layers of one spec that names it has a ledger of these without make_ledger:
//
//   using spec = block;                                           mo::loss_ledger<block>
//   stage.layers()                                                how many of these layers the whole model has
//   stage.record(tape, ledger)                                    ledger.record(layer, …) for each that the tape is of
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/batch/batch.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/pipeline/ledger.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace moiety::inline MOIETY_ABI {

template <class S>
concept pipeline_stage = requires(S const& stage, typename S::weights_type const& weights,
                                  typename S::gradients_type& gradients, typename S::tape_type& tape,
                                  matrix_view<typename S::element const> in, matrix_view<typename S::element> out,
                                  batch const& about) {
  { stage.width() } -> std::convertible_to<std::int64_t>;
  { stage.chunks() } -> std::convertible_to<int>;
  { stage.stage_of(0) } -> std::convertible_to<int>;
  { stage.forward(weights, 0, in, out, about) } -> std::same_as<typename S::tape_type>;
  stage.backward_input(weights, tape, in, out);
  stage.backward_weights(tape, gradients);
  stage.infer(weights, 0, in, out, about);
};

template <class S>
concept records_losses = pipeline_stage<S> &&
    requires(S const& stage, typename S::tape_type const& tape, loss_ledger<typename S::spec>& ledger) {
  { stage.layers() } -> std::convertible_to<std::int64_t>;
  stage.record(tape, ledger);
};

namespace detail {

template <class S>
concept names_spec = requires {
  typename S::spec;
};
template <class S, class Context>
concept makes_ledger = requires(S& stage, Context& ctx) {
  stage.make_ledger(ctx).reduce();
};
template <class S>
concept unites_gradients = requires(S& stage, typename S::gradients_type& gradients) {
  stage.unite(gradients);
};

template <class S> std::int64_t input_width(S const& stage) {
  if constexpr (requires { stage.input_width(); })
    return stage.input_width();
  else
    return stage.width();
}
template <class S> std::int64_t output_width(S const& stage) {
  if constexpr (requires { stage.output_width(); })
    return stage.output_width();
  else
    return stage.width();
}

template <class S>
concept keeps_counts = requires(S const& stage) {
  stage.make_counts();
};
/// Of a stage that keeps none.
struct no_counts {
  static void begin_step() {}
};
template <class S> auto counts_of(S const& stage) {
  if constexpr (keeps_counts<S>)
    return stage.make_counts();
  else
    return no_counts{};
}

template <class S, class Counts, class... Arguments>
typename S::tape_type forward_of(S const& stage, [[maybe_unused]] Counts& counts, Arguments const&... arguments) {
  if constexpr (keeps_counts<S>)
    return stage.forward(arguments..., &counts);
  else
    return stage.forward(arguments...);
}

/// What the ledger of a step gives, once the counts have it.
template <class Ledger, class Counts> auto end_step(Ledger& ledger, [[maybe_unused]] Counts& counts) {
  if constexpr (std::is_same_v<Counts, no_counts>) {
    return ledger.reduce();
  } else {
    auto report = ledger.reduce();
    counts.end_step(report);
    return report;
  }
}

/// What a chunk without layers does.
template <scalar T> void pass_rows(arena& memory, matrix_view<T const> from, matrix_view<T> to) {
  std::vector<T> row(static_cast<std::size_t>(from.cols()));
  auto const bytes = static_cast<std::int64_t>(row.size() * sizeof(T));
  for (std::int64_t i = 0; i < from.rows(); ++i) {
    memory.load(row.data(), from.row(i), bytes);
    memory.store(to.row(i), row.data(), bytes);
  }
}

/// Of a stage without losses.
struct no_ledger {
  void reduce() const {}
};

template <class S, class Context> auto ledger_of(S& stage, Context& ctx) {
  static_assert(makes_ledger<S, Context> || records_losses<S> || !names_spec<S>,
                "a stage that names a spec has layers() and record(tape, ledger), or make_ledger(ctx).");
  if constexpr (makes_ledger<S, Context>)
    return stage.make_ledger(ctx);
  else if constexpr (records_losses<S>)
    return loss_ledger<typename S::spec>(ctx, stage.layers());
  else
    return no_ledger{};
}

template <class S, class Ledger> void record_to(S& stage, typename S::tape_type const& tape, Ledger& ledger) {
  if constexpr (!std::is_same_v<Ledger, no_ledger>) stage.record(tape, ledger);
}

}  // namespace detail

}  // namespace moiety
