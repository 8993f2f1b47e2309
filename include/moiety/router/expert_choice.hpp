// SPDX-License-Identifier: Apache-2.0
// Expert choice (Zhou et al., 2022): each expert takes the C tokens of its largest scores; of equal scores the lower token.
//
//   C = min(n, ⌈n K Factor / E⌉) over the n tokens that take part
//
// Loads are equal by construction; a token has from none to E experts, in ascending order in its slots. The choice of a
// token depends on later ones: a spec that is marked causal refuses it.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/router/batch_selection.hpp>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <ratio>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <int K, class Factor = std::ratio<1>> struct expert_choice {
  static_assert(K >= 1, "mo::expert_choice<K> needs K >= 1.");
  static_assert(Factor::num > 0, "mo::expert_choice needs a capacity factor above 0.");
  static constexpr std::string_view name = "expert_choice";
  static constexpr int count = every_expert;
  static constexpr double average = K * static_cast<double>(Factor::num) / static_cast<double>(Factor::den);
  static constexpr bool sees_later_tokens = true;
  template <class Backend> static constexpr bool runs_on = true;

  /// C of n tokens.
  MOIETY_HD static constexpr std::int64_t capacity(std::int64_t n, std::int64_t experts) {
    std::int64_t const parts = experts * Factor::den, share = (n * K * Factor::num + parts - 1) / parts;
    return share < n ? share : n;
  }
  static constexpr std::int64_t rows(std::int64_t tokens, std::int64_t experts) {
    return experts * capacity(tokens, experts);
  }
  template <class S> static constexpr std::int64_t workspace_bytes(std::int64_t tokens, std::int64_t experts) {
    return tokens * experts * static_cast<std::int64_t>(sizeof(S));
  }

  template <class S, class Engine> void select(Engine& engine, batch_of_scores<S> const& of) const {
    std::int64_t const tokens = of.scores.rows(), experts = of.scores.cols();
    std::int64_t const wanted = capacity(of.participants(), experts);
    if (wanted == 0) return;
    S* const columns = reinterpret_cast<S*>(of.workspace);  // [E × T]: first scores, then 1 where chosen
    engine.parallel(experts, [&](std::int64_t e, int) { choose(of, e, wanted, columns + e * tokens); });
    engine.for_blocks(tokens, 64, [&](std::int64_t t, std::int64_t end, int) {
      for (; t < end; ++t) {
        std::int32_t* next = of.ids + t * of.slots;
        for (std::int64_t e = 0; e < experts; ++e)
          if (columns[e * tokens + t] != 0) *next++ = static_cast<std::int32_t>(e);
      }
    });
  }

  template <class S> void select(cuda_engine& engine, batch_of_scores<S> const& of) const;

 private:
  template <class S>
  static void choose(batch_of_scores<S> const& of, std::int64_t expert, std::int64_t wanted, S* column) {
    std::int64_t const tokens = of.scores.rows();
    auto const score = [&](std::int64_t t) {
      S const s = of.scores.row(t)[expert];
      return of.takes_part(t) && s > -detail::infinity<S> ? s : -detail::infinity<S>;
    };
    for (std::int64_t t = 0; t < tokens; ++t) column[t] = score(t);
    std::nth_element(column, column + wanted - 1, column + tokens, std::greater<>{});
    S const least = column[wanted - 1];
    std::int64_t ties = wanted - std::count_if(column, column + wanted, [&](S s) { return s > least; });
    for (std::int64_t t = 0; t < tokens; ++t) {
      S const s = score(t);
      bool const tied = s == least && s > -detail::infinity<S> && ties > 0;
      ties -= tied ? 1 : 0;
      column[t] = s > least || tied ? S{1} : S{0};
    }
  }
};
static_assert(batch_selection<expert_choice<2>>);

}  // namespace moiety
