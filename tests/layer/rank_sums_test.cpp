// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/rank_sums.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <optional>
#include <random>
#include <ratio>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace mo = moiety;

namespace {

using any = mo::deployment<mo::dynamic>;
constexpr mo::dims size{.hidden = 6, .ffn = 4, .experts = 5};
constexpr int k = 2;

struct counted : mo::layer_spec<size> {
  using router = mo::router<mo::constant_logit_noise<>, mo::softmax, mo::top_k<k>>;
  using losses = mo::losses<mo::load_balance<>, mo::load_balance<mo::over::sequence>, mo::router_z,
                            mo::noisy_load<mo::over::sequence>, mo::communication_balance<5, 1, mo::over::sequence>>;
};

/// The bytes of all that a report's layer and a tape's units say.
template <class T> void add_bytes(std::string& to, T const* values, std::size_t count) {
  static_assert(std::is_trivially_copyable_v<T>);
  to.append(reinterpret_cast<char const*>(values), count * sizeof(T));
}
template <class Tape> std::string units_of(Tape const& tape, std::int64_t first, std::int64_t count) {
  mo::batch_statistics const& all = tape.units();
  std::string bytes;
  for (std::int64_t u = first; u < first + count; ++u) {
    auto const& unit = all.units[u];
    std::int64_t const tokens = unit.tokens;
    double const square = unit.lse_squared.value();
    add_bytes(bytes, &tokens, 1), add_bytes(bytes, &square, 1);
    for (std::int64_t e = 0; e < all.experts; ++e) {
      auto const& expert = all.expert_units[u * all.experts + e];
      std::int64_t const numbers[] = {expert.count, expert.dropped, expert.reached};
      double const sums[] = {expert.probability.value(), all.expected_loads[u * all.experts + e].value()};
      add_bytes(bytes, numbers, 3), add_bytes(bytes, sums, 2);
    }
    double const weight = all.weight(u, tape.given_weight());
    add_bytes(bytes, &weight, 1);
  }
  add_bytes(bytes, &all.states->routed, 1), add_bytes(bytes, &all.states->masked, 1);
  return bytes;
}

/// Lengths of the parts of each sequence of one data rank: [part][sequence].
using parts = std::vector<std::vector<std::int64_t>>;

struct seen {
  std::vector<std::string> batch, sequences;  // by data rank; the same on all parts of its sequences, or this is empty
};

/// Tokens of sequences are numbered by data rank, sequence, part; a part's rows are cut from that order.
seen units_over(std::vector<parts> const& data, std::vector<std::optional<double>> const& weights, bool context) {
  auto const parts_each = static_cast<int>(data[0].size());
  mo::layout const shape{
      .data = static_cast<int>(data.size()), .tensor = context ? 1 : parts_each, .context = context ? parts_each : 1};
  return mo::run<any>(
      [&](mo::context<any>& ctx) {
        auto const at = [](auto const& values, auto i) -> auto& { return values[static_cast<std::size_t>(i)]; };
        int const d = ctx.data().rank(), p = ctx.sequence_parts().rank();
        std::vector<std::int64_t> offsets{0};
        for (std::int64_t const n : at(at(data, d), p)) offsets.push_back(offsets.back() + n);
        mo::matrix<float> x(offsets.back(), 6), y(offsets.back(), 6);
        std::vector<std::uint8_t> mask(static_cast<std::size_t>(offsets.back()));
        std::int64_t logical = 0, row = 0;
        for (std::size_t other = 0; other < data.size(); ++other)
          for (std::size_t u = 0; u + 1 < offsets.size(); ++u)
            for (std::size_t q = 0; q < data[other].size(); ++q)
              for (std::int64_t t = 0; t < data[other][q][u]; ++t, ++logical) {
                if (static_cast<int>(other) != d || static_cast<int>(q) != p) continue;
                mo::fill_normal(ctx, mo::matrix_view<float>(x.row(row), 1, 6), mo::seed{5}, mo::first_row{logical});
                mask[static_cast<std::size_t>(row++)] = logical % 7 != 3;
              }
        // Noise is by row of the call: here it vanishes beside the logits, so that the cut does not matter.
        mo::moe_layer<counted, any> layer{ctx, {.router = {mo::constant_logit_noise<>{.value = 1e-30f}}}};
        auto weights_here = layer.make_weights(mo::seed{8});
        mo::batch about{.sequences = offsets, .mask = mask};
        about.weight = at(weights, ctx.stage().rank());
        auto const tape = layer.forward(weights_here, x, y, about);
        std::string const mine = units_of(tape, 0, 1), own = units_of(tape, 1, tape.units().count - 1);
        auto const all_of = [&](auto& group, std::string const& text) {
          std::vector<char> const all = group.template all_gather_v<char>({text.data(), text.size()});
          std::vector<std::string> each;
          for (std::size_t i = 0; i < all.size(); i += text.size()) each.emplace_back(all.data() + i, text.size());
          return each;
        };
        auto const batches = all_of(ctx.stage(), mine), sequences = all_of(ctx.sequence_parts(), own);
        bool const same = std::equal(batches.begin() + 1, batches.end(), batches.begin()) &&
                          std::equal(sequences.begin() + 1, sequences.end(), sequences.begin());
        std::string const agreed = same ? own : std::string();
        return seen{batches, all_of(ctx.data(), agreed)};
      },
      {}, shape, {.threads = 1});
}

}  // namespace

TEST_CASE("statistics of split sequences are those of one rank with all tokens, bit for bit, on every rank") {
  // Two sequences; the second rank has no token of the first, the third none at all.
  parts const whole{{17 + 0 + 0 + 9, 12 + 30 + 0 + 1}}, split{{17, 12}, {0, 30}, {0, 0}, {9, 1}};
  std::vector<std::optional<double>> const none(4);
  for (bool const context : {false, true}) {
    auto const one = units_over({whole}, none, context), four = units_over({split}, none, context);
    CHECK(four.batch[3] == one.batch[0]);
    CHECK(four.sequences == one.sequences);
    CHECK_FALSE(one.sequences[0].empty());
  }
}

TEST_CASE("data ranks share the batch's unit and keep their sequences, which may differ in number") {
  parts const first{{5, 8}, {6, 0}}, second{{20, 3}, {2, 7}};
  std::vector<std::optional<double>> const none(4);
  auto const four = units_over({first, second}, none, false);
  auto const one = units_over({{{11, 8}}}, none, false), two = units_over({{{11, 8}}, {{22, 10}}}, none, false);
  CHECK(four.batch == std::vector<std::string>(4, two.batch[0]));
  CHECK(four.sequences == two.sequences);
  CHECK(four.batch[0] != one.batch[0]);
}

TEST_CASE("weights add up over ranks; where some are given, those of other ranks are their tokens") {
  parts const whole{{20, 20}}, split{{10, 5}, {10, 15}};
  auto const of = [&](std::optional<double> a, std::optional<double> b) { return units_over({split}, {a, b}, false); };
  auto const total = [&](double weight) { return units_over({whole}, {weight}, false); };
  CHECK(of(3.5, 2.25).sequences == total(5.75).sequences);
  CHECK(of(0.0, 0.0).sequences == total(0).sequences);
  double const unmasked_of_second = [] {  // tokens 10 … 19 and 25 … 39 of the order by sequence, then part
    int n = 0;
    for (int t = 0; t < 40; ++t) n += (t % 7 != 3) && ((t >= 10 && t < 20) || t >= 25);
    return n;
  }();
  CHECK(of(3.5, std::nullopt).sequences == total(3.5 + unmasked_of_second).sequences);
  CHECK(of(std::nullopt, std::nullopt).sequences != total(5.75).sequences);
}

namespace {

template <class... Options> struct limited : mo::layer_spec<size> {
  using router = mo::router<mo::softmax, mo::top_k<k>, mo::scale<std::ratio<3, 2>>>;
  using capacity = mo::capacity<std::ratio<3, 4>, Options...>;
};

struct dropped {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  friend bool operator==(dropped const&, dropped const&) = default;
};

/// A routing of random, distinct experts and positive weights, of which every ninth token is masked.
struct drawn {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  std::vector<mo::token_state> states;
  explicit drawn(std::int64_t tokens) {
    std::mt19937 bits(12);
    for (std::int64_t t = 0; t < tokens; ++t) {
      bool const masked = t % 9 == 4;
      auto const first = static_cast<std::int32_t>(bits() % 3);  // a skew: experts 0 … 2 overflow
      auto const second = static_cast<std::int32_t>((static_cast<std::uint32_t>(first) + 1 + bits() % 4) % 5);
      ids.insert(ids.end(), {masked ? mo::no_expert : first, masked ? mo::no_expert : second});
      for (int j = 0; j < k; ++j) weights.push_back(masked ? 0 : static_cast<float>(1 + bits() % 8) / 8);  // with ties
      states.push_back(masked ? mo::token_state::masked : mo::token_state::routed);
    }
  }
};

/// Drops of tokens that are cut as `cut` says: rows of ranks by part, of sequences by [part][sequence].
template <class Spec> dropped drops_over(mo::layout const& shape, std::vector<std::vector<std::int64_t>> const& cut) {
  using read = mo::spec_of<Spec>;
  std::int64_t tokens = 0;
  for (auto const& part : cut) tokens = std::accumulate(part.begin(), part.end(), tokens);
  drawn const all(tokens);
  return mo::run<any>(
      [&](mo::context<any>& ctx) {
        auto const rank = static_cast<std::size_t>(ctx.stage().rank());
        std::vector<std::int64_t> mine, offsets{0};  // places of the tokens here in the whole
        std::int64_t logical = 0;
        for (std::size_t u = 0; u < cut[0].size(); ++u) {
          for (std::size_t r = 0; r < cut.size(); ++r)
            for (std::int64_t t = 0; t < cut[r][u]; ++t, ++logical)
              if (r == rank) mine.push_back(logical);
          offsets.push_back(static_cast<std::int64_t>(mine.size()));
        }
        auto const own = static_cast<std::int64_t>(mine.size());
        mo::routing<float> here(own, 5, k, ctx.memory());
        for (std::int64_t t = 0; t < own; ++t) {
          auto const from = static_cast<std::size_t>(mine[static_cast<std::size_t>(t)]);
          for (int j = 0; j < k; ++j) {
            here.ids[t * k + j] = all.ids[from * k + static_cast<std::size_t>(j)];
            here.weights[t * k + j] = all.weights[from * k + static_cast<std::size_t>(j)];
          }
          here.states[t] = all.states[from];
        }
        typename read::router_type router{};
        if constexpr (read::capacity_type::renormalises) router = router.with_kept_renormalised();
        mo::batch const about{.sequences = offsets, .first_row = mine.empty() ? 0 : mine[0], .step = 6};
        mo::drop_over_ranks<typename read::capacity_type>(ctx, router, about, mo::routing_view<float>(here));
        dropped result{std::vector<std::int32_t>(static_cast<std::size_t>(tokens * k)),
                       std::vector<float>(static_cast<std::size_t>(tokens * k))};
        auto const places = ctx.stage().template all_gather_v<std::int64_t>(mine);
        auto const ids = ctx.stage().template all_gather_v<std::int32_t>({here.ids, mine.size() * k});
        auto const weights = ctx.stage().template all_gather_v<float>({here.weights, mine.size() * k});
        for (std::size_t t = 0; t < places.size(); ++t)
          for (std::size_t j = 0; j < k; ++j) {
            result.ids[static_cast<std::size_t>(places[t]) * k + j] = ids[t * k + j];
            result.weights[static_cast<std::size_t>(places[t]) * k + j] = weights[t * k + j];
          }
        return result;
      },
      {}, shape, {.threads = 1});
}

template <class... Options> void check_batch() {
  using spec = limited<Options...>;
  auto const one = drops_over<spec>({}, {{90}});
  CHECK(std::count_if(one.ids.begin(), one.ids.end(), [](auto id) { return mo::is_dropped(id); }) > 10);
  CHECK(drops_over<spec>({.data = 3}, {{30}, {30}, {30}}) == one);
  CHECK(drops_over<spec>({.data = 2, .tensor = 2}, {{17}, {0}, {72}, {1}}) == one);
  CHECK(drops_over<spec>({.data = 2}, {{0}, {90}}) == one);
  CHECK(drops_over<spec>({.data = 2}, {{90}, {0}}) == one);
}

template <class... Options> void check_sequences() {
  using spec = limited<mo::per::sequence, Options...>;
  auto const one = drops_over<spec>({}, {{40, 0, 25}});
  CHECK(std::count_if(one.ids.begin(), one.ids.end(), [](auto id) { return mo::is_dropped(id); }) > 10);
  CHECK(drops_over<spec>({.tensor = 3}, {{20, 0, 5}, {0, 0, 10}, {20, 0, 10}}) == one);
  CHECK(drops_over<spec>({.context = 2}, {{40, 0, 0}, {0, 0, 25}}) == one);
}

}  // namespace

TEST_CASE("drops are those of one rank with the tokens of all, whatever the rule") {
  check_batch<mo::drop::lowest_weight>();
  check_batch<mo::drop::position>();
  check_batch<mo::drop::priority>();
  check_batch<mo::drop::random>();
  check_batch<mo::renormalise_after_drop>();
  check_batch<mo::drop::random, mo::renormalise_after_drop, mo::rounded_down, mo::at_least<2>>();
}

TEST_CASE("drops of sequences that are split over ranks are those of whole sequences") {
  check_sequences<mo::drop::lowest_weight>();
  check_sequences<mo::drop::position>();
  check_sequences<mo::drop::priority, mo::renormalise_after_drop>();
  check_sequences<mo::drop::random>();
}

TEST_CASE("no tokens at all drop nothing") {
  dropped const none = drops_over<limited<>>({.data = 2}, {{0}, {0}});
  CHECK(none.ids.empty());
}

TEST_CASE("parts of different numbers of sequences are refused on every rank, whose groups go on") {
  using capacity = limited<mo::per::sequence>::capacity;
  int const refused = mo::run<any>(
      [](mo::context<any>& ctx) {
        mo::routing<float> none(0, 5, k, ctx.memory());
        std::vector<std::int64_t> const offsets(ctx.stage().rank() == 1 ? 4 : 3);
        int told = 0;
        try {
          mo::drop_over_ranks<capacity>(ctx, limited<>::router{}, {.sequences = offsets},
                                        mo::routing_view<float>(none));
        } catch (mo::data_error const& e) {
          told = std::strstr(e.what(), "parts of 2 sequences on rank 0 and of 3 on rank 1") != nullptr;
        }
        ctx.stage().all_reduce(std::span(&told, 1));
        return told;
      },
      {}, mo::layout{.tensor = 3}, {.threads = 1});
  CHECK(refused == 3);
}

namespace {

struct limited_sequences : mo::layer_spec<size> {
  using router = mo::router<mo::softmax, mo::top_k<k>>;
  using capacity = mo::capacity<std::ratio<3, 4>, mo::per::sequence>;
};

/// On how many ranks a forward is refused for its sequences, with these words, y as it was, and the next forward works. Rank r
/// has sequences[r], and as many tokens as the last offset says; 8 where there is none.
template <class Spec>
int refused_for(mo::layout const& shape, std::vector<std::vector<std::int64_t>> const& sequences,
                std::string const& words) {
  return mo::run<any>(
      [&](mo::context<any>& ctx) {
        auto const& mine = sequences[static_cast<std::size_t>(ctx.stage().rank())];
        std::int64_t const tokens = mine.empty() ? 8 : mine.back();
        mo::matrix<float> x(tokens, 6), y(tokens, 6);
        mo::fill_normal(ctx, x, mo::seed{5});
        std::fill_n(y.data(), y.size(), -5.0f);
        mo::moe_layer<Spec, any> layer{ctx};
        auto const weights = layer.make_weights(mo::seed{8});
        int told = 0;
        try {
          layer.forward(weights, x, y, {.sequences = mine});
        } catch (mo::data_error const& e) {
          told = std::string(e.what()).find(words) != std::string::npos &&
                 std::all_of(y.begin(), y.end(), [](float v) { return v == -5; });
        }
        layer.forward(weights, x, y);
        ctx.stage().all_reduce(std::span(&told, 1));
        return told;
      },
      {.deadline = std::chrono::seconds(20)}, shape, {.threads = 1});
}

/// The statistics of sequences that ranks of these offsets have, by rank.
std::vector<std::string> statistics_of(std::vector<std::vector<std::int64_t>> const& sequences) {
  return mo::run<any>(
      [&](mo::context<any>& ctx) {
        mo::matrix<float> x(8, 6), y(8, 6);
        mo::fill_normal(ctx, x, mo::seed{5}, mo::first_row{8 * ctx.stage().rank()});
        mo::moe_layer<counted, any> layer{ctx, {.router = {mo::constant_logit_noise<>{.value = 1e-30f}}}};
        auto const weights = layer.make_weights(mo::seed{8});
        auto const tape = layer.forward(weights, x, y,
                                        {.sequences = sequences[static_cast<std::size_t>(ctx.stage().rank())],
                                         .first_row = 8 * ctx.stage().rank()});
        std::string const mine = units_of(tape, 0, tape.units().count);
        std::vector<char> const all = ctx.stage().template all_gather_v<char>({mine.data(), mine.size()});
        std::vector<std::string> each;
        for (std::size_t i = 0; i < all.size(); i += mine.size()) each.emplace_back(all.data() + i, mine.size());
        return each;
      },
      {}, mo::layout{.tensor = static_cast<int>(sequences.size())}, {.threads = 1});
}

template <class Spec> void check_counts_of_sequences() {
  auto const words = [](int fewest, int on, int most, int there) {
    return mo::detail::sentence("mo::batch{.sequences} has parts of ", fewest, " sequences on rank ", on, " and of ",
                                most, " on rank ", there, " of the stage, which share them.");
  };
  CHECK(refused_for<Spec>({.tensor = 2}, {{0, 4, 8}, {0, 8}}, words(1, 1, 2, 0)) == 2);
  CHECK(refused_for<Spec>({.context = 3}, {{0, 4, 8}, {}, {0, 4, 8}}, words(1, 1, 2, 2)) == 3);
  CHECK(refused_for<Spec>({.tensor = 2}, {{0}, {0, 8}}, words(0, 0, 1, 1)) == 2);
  CHECK(refused_for<Spec>({.tensor = 2}, {{0, 0, 0, 0, 3}, {0, 4, 8}}, words(2, 1, 4, 0)) == 2);
  // Data ranks may have other numbers; where one has two, the ranks of all hear of it.
  CHECK(refused_for<Spec>({.data = 2, .tensor = 2}, {{0, 4, 8}, {0, 5, 8}, {}, {0, 8}}, "") == 0);
  CHECK(refused_for<Spec>({.data = 2, .tensor = 2}, {{0, 4, 8}, {0, 5, 8}, {}, {0, 1, 2, 8}}, words(1, 2, 3, 3)) == 4);
}

}  // namespace

TEST_CASE("ranks that share sequences have parts of as many, or all ranks of the stage hear of it and go on") {
  check_counts_of_sequences<counted>();
  check_counts_of_sequences<limited_sequences>();
}

TEST_CASE("a call without offsets is one sequence, on each of the ranks that share it") {
  std::vector<std::int64_t> const none, one{0, 8};
  auto const said = statistics_of({one, one});
  CHECK(statistics_of({none, one}) == said);
  CHECK(statistics_of({one, none}) == said);
  CHECK(statistics_of({none, none}) == said);
}

TEST_CASE("what goes wrong between the ranks that share sequences is told with the step of the call") {
  for (mo::layout const& shape : {mo::layout{.tensor = 2}, mo::layout{.context = 2}}) {
    std::int64_t step = -1;
    auto const disagree = [&](mo::context<any>& ctx) {
      mo::call_together(ctx, false, {"forward", 41}, [] {});
      std::vector<int> values(ctx.sequence_parts().rank() == 0 ? 1 : 2);
      ctx.sequence_parts().all_reduce(std::span(values));
    };
    try {
      mo::run<any>(disagree, {}, shape, {.threads = 1});
    } catch (mo::comm_error const& e) {
      step = e.step;
    }
    CHECK(step == 41);
  }
}
