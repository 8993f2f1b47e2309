// SPDX-License-Identifier: Apache-2.0
// The step of a layer's selection bias after a global batch, on any back end: the bias travels to the host and back.
//
//   mo::update_selection_biases(ctx, options, weights, report)   of mo::selection_bias in every layer that this rank holds: once a
//                                                                step, with the report of all layers, on every rank alike.
//                                                                Weights as in for_each_parameter, with parameter::layer; pack
//                                                                them afterwards, if they are packed. A model of several specs
//                                                                takes one call for each, with report.of<Spec>()
//
// In detail, of one layer:
//
//   step_bias_by_counts(memory, router, bias, E, counts)   mo::selection_bias: counts of report.counts()
//   step_bias_by_tapes(ctx, router, bias, tape, ...)       mo::quantile_bias: the tapes of the batch, each after its forward; a
//                                                          collective, which reads the scores of all ranks of the stage.
//                                                          An engine does not keep tapes so long: under it there is no step of
//                                                          mo::quantile_bias
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/batch/row.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/layer/options.hpp>
#include <moiety/layer/parameters.hpp>
#include <moiety/layer/report.hpp>
#include <moiety/mesh/context.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// Calls f(the bias as a span of floats) and keeps what f made of it.
template <class F> void change_bias(arena& memory, float* bias, std::int64_t experts, F const& f) {
  std::vector<float> values(static_cast<std::size_t>(experts));
  auto const bytes = static_cast<std::int64_t>(values.size() * sizeof(float));
  memory.load(values.data(), bias, bytes);
  f(std::span<float>(values));
  memory.store(bias, values.data(), bytes);
}

/// The scores of the tokens of a tape that take part in losses, [n × E].
template <class S, class Router, class Tape>
matrix<S> scores_of(arena& memory, Router const& router, Tape const& tape) {
  std::int64_t const tokens = tape.logits().rows(), experts = tape.logits().cols();
  std::vector<token_state> states(static_cast<std::size_t>(tokens));
  memory.load(states.data(), tape.routing().states, tokens * static_cast<std::int64_t>(sizeof(token_state)));
  matrix<S> scores(tokens, experts);
  memory.load(scores.data(), tape.logits().data(), tokens * experts * static_cast<std::int64_t>(sizeof(S)));
  std::int64_t n = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (states[static_cast<std::size_t>(t)] != token_state::routed) continue;
    span_row<S> row(scores.row(n), experts);
    row.map(span_row<S>(scores.row(t), experts), [](S, S z) { return z; });
    router.score().forward(row);
    ++n;
  }
  matrix<S> routed(n, experts);
  for (std::int64_t t = 0; t < n; ++t)
    span_row<S>(routed.row(t), experts).map(span_row<S>(scores.row(t), experts), [](S, S s) { return s; });
  return routed;
}

template <class Router>
void step_bias_by_counts(arena& memory, Router const& router, float* bias, std::int64_t experts,
                         std::span<std::int64_t const> counts) {
  change_bias(memory, bias, experts, [&](std::span<float> values) { router.bias().update(counts, values); });
}

/// Rows of all ranks of the stage.
template <class Context, class S> matrix<S> of_all_ranks(Context& ctx, matrix<S> mine) {
  if (ctx.stage().size() == 1) return mine;
  std::vector<S> const values =
      ctx.stage().template all_gather_v<S>({mine.data(), static_cast<std::size_t>(mine.rows() * mine.cols())});
  matrix<S> all(static_cast<std::int64_t>(values.size()) / mine.cols(), mine.cols());
  std::copy(values.begin(), values.end(), all.data());
  return all;
}

template <class Context, class Router, class... Tapes>
void step_bias_by_tapes(Context& ctx, Router const& router, float* bias, Tapes const&... tapes) {
  std::int64_t const experts = (tapes.logits().cols(), ...);
  change_bias(ctx.memory(), bias, experts, [&](std::span<float> values) {
    auto const balanced = [&](auto const& tape) {
      using S = std::remove_pointer_t<decltype(tape.logits().data())>;
      matrix<S> const scores = of_all_ranks(ctx, scores_of<S>(ctx.memory(), router, tape));
      return router.bias().balancing(matrix_view<S const>(scores), tape.routing().slots,
                                     std::span<float const>(values));
    };
    std::vector<std::vector<double>> const all{balanced(tapes)...};
    router.bias().update(all, values);
  });
}

}  // namespace detail

/// Layers that the report does not have, of another spec, are left alone.
template <class Deployment, class Spec, class Weights>
void update_selection_biases(context<Deployment>& ctx, layer_options<Spec> const& options, Weights& weights,
                             loss_report<Spec> const& report) {
  constexpr bool by_counts = requires(std::span<std::int64_t const> counts, std::span<float> values) {
    options.router.bias().update(counts, values);
  };
  static_assert(
      by_counts,
      "update_selection_biases is of routers with mo::selection_bias: mo::quantile_bias takes its step from the "
      "scores of all tokens, which tapes have and reports have not.");
  static_assert(!std::is_const_v<Weights>, "update_selection_biases changes weights.");
  for_each_parameter(weights, [&]<class V>(parameter const& p, std::span<V> values) {
    if constexpr (by_counts && std::is_same_v<V, float>) {
      if (!p.name.ends_with("router.selection_bias")) return;
      for (std::size_t l = 0; l < report.layers(); ++l)
        if (report.number(l) == p.layer)
          detail::step_bias_by_counts(ctx.memory(), options.router, values.data(), std::ssize(values),
                                      report.counts(l));
    }
  });
}

}  // namespace moiety
