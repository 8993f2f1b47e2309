// SPDX-License-Identifier: Apache-2.0
// Token rounding (Guo et al., 2025, "SonicMoE"): the K largest scores of each token, then every expert's number of tokens f
// is rounded to a multiple of Tile, so that no tile of a grouped product is part empty. Rounding down drops the tokens of the
// lowest scores; rounding up adds the best of those that did not choose the expert. No number changes by Tile or more.
//
//   rounding::nearest            up if f mod Tile ≥ Tile / 2                                       "NR-f", the paper's default
//   rounding::up, ::down         always, as long as there are tokens to add
//   rounding::stochastic         up with probability (f mod Tile) / Tile, drawn by (key, step, e)  "SR-f"
//   rounding::nearest_by_score   up if Σ scores added < Σ scores that rounding down would drop     "NR-s"
//   rounding::balanced           whichever keeps Σ (rounded − f) over experts 0 … e nearest to 0   "Balance-f"
//
// Of equal scores the lower token is the better. Where rounding up would ask for more tokens
// than take part it rounds down. A token has from none to E experts, ascending in its slots. Evaluation takes a
// spec with mo::top_k, and a spec that is marked causal refuses it.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/core/random.hpp>
#include <moiety/kernels/host/scratch.hpp>
#include <moiety/router/batch_selection.hpp>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

/// Whether an expert is rounded up: a struct of the static function rounds_up(facts).
namespace rounding {
struct facts {
  std::int64_t over, tile;  // f mod Tile, which is not 0
  double added, dropped;    // Σ scores of the tokens that rounding up would add, and down would drop; 0 if not read
  std::int64_t sum;         // Σ (rounded − f) over the experts before
  std::uint32_t random;     // 32 bits
};
struct nearest {
  static constexpr bool reads_scores = false;
  MOIETY_HD static bool rounds_up(facts const& of) { return 2 * of.over >= of.tile; }
};
struct up {
  static constexpr bool reads_scores = false;
  MOIETY_HD static bool rounds_up(facts const&) { return true; }
};
struct down {
  static constexpr bool reads_scores = false;
  MOIETY_HD static bool rounds_up(facts const&) { return false; }
};
struct stochastic {
  static constexpr bool reads_scores = false;
  MOIETY_HD static bool rounds_up(facts const& of) {
    return (static_cast<std::uint64_t>(of.random) * static_cast<std::uint64_t>(of.tile)) >> 32 <
           static_cast<std::uint64_t>(of.over);
  }
};
struct nearest_by_score {
  MOIETY_HD static bool rounds_up(facts const& of) { return of.added < of.dropped; }
};
struct balanced {
  static constexpr bool reads_scores = false;
  MOIETY_HD static bool rounds_up(facts const& of) {
    return magnitude(of.sum + of.tile - of.over) < magnitude(of.sum - of.over);
  }

 private:
  MOIETY_HD static std::int64_t magnitude(std::int64_t v) { return v < 0 ? -v : v; }
};

/// Whether a rule reads the sums of scores: unless it says that it does not.
template <class Rule> inline constexpr bool reads_scores = true;
template <class Rule>
requires requires { Rule::reads_scores; }
inline constexpr bool reads_scores<Rule> = Rule::reads_scores;
}  // namespace rounding

template <int K, int Tile = 128, class Rounding = rounding::nearest> struct token_rounding {
  static_assert(K >= 1 && Tile >= 1, "mo::token_rounding<K, Tile> needs both to be at least 1.");
  static constexpr std::string_view name = "token_rounding";
  static constexpr int count = every_expert;
  static constexpr double average = K;
  static constexpr int tile = Tile;
  static constexpr bool sees_later_tokens = true;
  static constexpr bool reads_scores = rounding::reads_scores<Rounding>;
  template <class Backend> static constexpr bool runs_on = true;
  seed key{0};

  /// Of one expert, the tokens that chose it, f, and those that could come, with what its rounding may look at.
  struct load {
    std::int64_t chosen, available;
    double added, dropped;
    std::uint32_t random;

    MOIETY_HD std::int64_t over() const { return chosen % Tile; }
    MOIETY_HD std::int64_t down() const { return chosen - over(); }
    MOIETY_HD std::int64_t up() const { return down() + Tile; }
    MOIETY_HD bool may_rise() const { return over() != 0 && up() <= available; }
    /// What f is rounded to; `sum` as in facts.
    MOIETY_HD std::int64_t rounded(std::int64_t sum) const {
      return may_rise() && Rounding::rounds_up({over(), Tile, added, dropped, sum, random}) ? up() : down();
    }
  };
  MOIETY_HD load load_of(std::int64_t chosen, std::int64_t available, token_table const& tokens,
                         std::int64_t expert) const {
    std::uint64_t const moment = stream + static_cast<std::uint64_t>(tokens.moment());
    return {chosen, available, 0, 0, random_word(key, moment, static_cast<std::uint64_t>(expert))};
  }

  static constexpr std::int64_t rows(std::int64_t tokens, std::int64_t experts) {
    return std::min(tokens * experts, tokens * K + experts * (Tile - 1));
  }
  template <class S> static constexpr std::int64_t workspace_bytes(std::int64_t tokens, std::int64_t experts) {
    return tokens * experts * static_cast<std::int64_t>(sizeof(std::int32_t) + 1) +
           experts * static_cast<std::int64_t>(sizeof(std::int64_t)) * 2;
  }

  template <class S, class Engine> void select(Engine& engine, batch_of_scores<S> const& of) const {
    table const t(of.workspace, of.scores.rows(), of.scores.cols());
    choose_by_token(engine, of, t);
    engine.parallel(t.experts, [&](std::int64_t e, int) { order_tokens(of, t, e); });
    round(of, t);
    engine.parallel(t.experts, [&](std::int64_t e, int) { mark(t, e); });
    engine.for_blocks(t.tokens, 64, [&](std::int64_t token, std::int64_t end, int) {
      for (; token < end; ++token) {
        std::int32_t* next = of.ids + token * of.slots;
        for (std::int64_t e = 0; e < t.experts; ++e)
          if (t.chosen[e * t.tokens + token]) *next++ = static_cast<std::int32_t>(e);
      }
    });
  }

  template <class S> void select(cuda_engine& engine, batch_of_scores<S> const& of) const;

  template <class F> void for_each_value(F const& f) const { f("key", key.value); }

 private:
  static constexpr std::uint64_t stream = stream_of("router.token_rounding");

  /// The workspace.
  struct table {
    std::int64_t tokens, experts;
    std::int64_t *chosen_count, *kept;  // [E] f; the tokens that could come, then what f is rounded to
    std::int32_t* order;                // [E × T] tokens, the best first: those that chose the expert, then the others
    bool* chosen;                       // [E × T]
    table(std::byte* at, std::int64_t t, std::int64_t e)
        : tokens(t),
          experts(e),
          chosen_count(reinterpret_cast<std::int64_t*>(at)),
          kept(chosen_count + e),
          order(reinterpret_cast<std::int32_t*>(kept + e)),
          chosen(reinterpret_cast<bool*>(order + t * e)) {}
  };

  template <class S, class Engine>
  static void choose_by_token(Engine& engine, batch_of_scores<S> const& of, table const& t) {
    std::fill_n(t.chosen, t.tokens * t.experts, false);
    engine.for_blocks(t.tokens, 64, [&](std::int64_t token, std::int64_t end, int worker) {
      kernels::scratch_memory scratch(engine.scratch(worker));
      span_row<S> const row = scratch.template row<S>(t.experts);
      for (; token < end; ++token) {
        if (!of.takes_part(token)) continue;
        row.map(span_row<S>(of.scores.row(token), t.experts), [](S, S s) { return s; });
        row.template largest<K>([&](int, int e) {
          if (e >= 0) t.chosen[e * t.tokens + token] = true;
        });
      }
    });
  }

  template <class S> static void order_tokens(batch_of_scores<S> const& of, table const& t, std::int64_t expert) {
    std::int32_t* const order = t.order + expert * t.tokens;
    bool const* const chosen = t.chosen + expert * t.tokens;
    auto const score = [&](std::int32_t token) {
      S const s = of.scores.row(token)[expert];
      return s >= -detail::infinity<S> ? s : -detail::infinity<S>;
    };
    auto const can_come = [&](std::int32_t token) {
      return of.takes_part(token) && score(token) > -detail::infinity<S>;
    };
    auto const rank = [&](std::int32_t token) { return chosen[token] ? 0 : can_come(token) ? 1 : 2; };
    std::iota(order, order + t.tokens, 0);
    std::sort(order, order + t.tokens, [&](std::int32_t a, std::int32_t b) {
      if (rank(a) != rank(b)) return rank(a) < rank(b);
      return score(a) != score(b) ? score(a) > score(b) : a < b;
    });
    t.chosen_count[expert] = std::count(chosen, chosen + t.tokens, true);
    t.kept[expert] = std::count_if(order, order + t.tokens, [&](std::int32_t token) { return rank(token) < 2; });
  }

  template <class S> void round(batch_of_scores<S> const& of, table const& t) const {
    std::int64_t sum = 0;
    for (std::int64_t e = 0; e < t.experts; ++e) {
      load of_expert = load_of(t.chosen_count[e], t.kept[e], of.tokens, e);
      auto const scores = [&](std::int64_t first, std::int64_t last) {
        double total = 0;
        for (; first < last; ++first) total += static_cast<double>(of.scores.row(t.order[e * t.tokens + first])[e]);
        return total;
      };
      if (reads_scores && of_expert.may_rise()) {
        of_expert.added = scores(of_expert.chosen, of_expert.up());
        of_expert.dropped = scores(of_expert.down(), of_expert.chosen);
      }
      t.kept[e] = of_expert.rounded(sum);
      sum += t.kept[e] - of_expert.chosen;
    }
  }

  static void mark(table const& t, std::int64_t expert) {
    bool* const chosen = t.chosen + expert * t.tokens;
    std::int32_t const* const order = t.order + expert * t.tokens;
    std::fill_n(chosen, t.tokens, false);
    for (std::int64_t i = 0; i < t.kept[expert]; ++i) chosen[order[i]] = true;
  }
};
static_assert(batch_selection<token_rounding<2>>);

}  // namespace moiety
