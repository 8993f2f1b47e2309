// SPDX-License-Identifier: Apache-2.0
// Balanced assignment by Sinkhorn's iteration (BASE layers: Clark et al., 2022, "S-BASE"), a fixed number of times:
//
//   C_te = exp(z_te − max_e z_t),  b_e = 1;   Iterations times:  a_t = 1 / (n (Σ_e C_te b_e + ε))
//                                                                b_e = 1 / (E (Σ_t C_te a_t + ε)),   ε = 10⁻⁸
//   experts of t: the K largest C_te b_e; of equal ones the lower index
//
// over the n tokens that take part. Nothing of the plan has a gradient: weights are those of the scores, sigmoid for K = 1
// and softmax above in Megatron. It works on the logits: a selection bias or groups beside it are refused. Sums are in double
// and in one order, whatever the number of threads. Evaluation takes a spec with mo::top_k, and a spec that is
// marked causal refuses it.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/router/batch_selection.hpp>

#include <algorithm>
#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <int K, int Iterations = 16> struct sinkhorn {
  static_assert(K >= 1 && Iterations >= 1, "mo::sinkhorn<K, Iterations> needs both to be at least 1.");
  static constexpr std::string_view name = "sinkhorn";
  static constexpr int count = K;
  static constexpr double average = K;
  static constexpr bool reads_logits = true, sees_later_tokens = true;
  template <class Backend> static constexpr bool runs_on = true;

  static constexpr std::int64_t rows(std::int64_t tokens, std::int64_t) { return tokens * K; }
  template <class S> static constexpr std::int64_t workspace_bytes(std::int64_t tokens, std::int64_t experts) {
    return (blocks(tokens) + 1) * experts * static_cast<std::int64_t>(sizeof(double));
  }

  template <class S, class Engine> void select(Engine& engine, batch_of_scores<S> const& of) const {
    std::int64_t const tokens = of.scores.rows(), experts = of.scores.cols(), n = of.participants();
    if (n == 0) return;
    double* const balance = reinterpret_cast<double*>(of.workspace);  // b [E]
    double* const parts = balance + experts;                          // Σ_t C_te a_t of each block [blocks × E]
    each_token(engine, of, [&](std::int64_t, span_row<S> plan) {
      S const peak = plan.max();
      plan.map([&](S z) { return moiety::exp(z - peak); });
    });
    std::fill_n(balance, experts, 1.0);
    for (int i = 0; i < Iterations; ++i) {
      std::fill_n(parts, blocks(tokens) * experts, 0.0);
      each_token(engine, of, [&](std::int64_t t, span_row<S> plan) {
        double* const part = parts + t / block * experts;
        double sum = 0;
        for (std::int64_t e = 0; e < experts; ++e) sum += static_cast<double>(plan[e]) * balance[e];
        double const share = 1 / (static_cast<double>(n) * (sum + epsilon));
        for (std::int64_t e = 0; e < experts; ++e) part[e] += static_cast<double>(plan[e]) * share;
      });
      for (std::int64_t e = 0; e < experts; ++e) {
        double sum = 0;
        for (std::int64_t b = 0; b < blocks(tokens); ++b) sum += parts[b * experts + e];
        balance[e] = 1 / (static_cast<double>(experts) * (sum + epsilon));
      }
    }
    double const largest = *std::max_element(balance, balance + experts);
    each_token(engine, of, [&](std::int64_t t, span_row<S> plan) {
      plan.map_indexed([&](S c, int e) { return static_cast<S>(static_cast<double>(c) * (balance[e] / largest)); });
      plan.template largest<K>([&](int slot, int e) { of.ids[t * K + slot] = e < 0 ? no_expert : e; });
    });
  }

  template <class S> void select(cuda_engine& engine, batch_of_scores<S> const& of) const;

  /// Tokens whose Σ_t is one part of the sum over all.
  static constexpr std::int64_t block = 64;
  static constexpr double epsilon = 1e-8;
  static constexpr std::int64_t blocks(std::int64_t tokens) { return (tokens + block - 1) / block; }

 private:
  /// f(t, row) for each token that takes part; a block of tokens in turn, on one thread.
  template <class S, class Engine, class F>
  static void each_token(Engine& engine, batch_of_scores<S> const& of, F const& f) {
    std::int64_t const experts = of.scores.cols();
    engine.for_blocks(of.scores.rows(), block, [&](std::int64_t t, std::int64_t end, int) {
      for (; t < end; ++t)
        if (of.takes_part(t)) f(t, span_row<S>(of.scores.row(t), experts));
    });
  }
};
static_assert(batch_selection<sinkhorn<1>>);

}  // namespace moiety
