// SPDX-License-Identifier: Apache-2.0
#include <moiety/capacity/capacity.hpp>

#include "properties/float_gradients.hpp"
#include "router/example.hpp"

#include <moiety/moiety.hpp>
#include <moiety/testing.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <ratio>
#include <set>
#include <sstream>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

using softmax_2 = mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>;

template <class Capacity, class Router = softmax_2, mo::dims Size = mo::dims{.hidden = 8, .ffn = 6, .experts = 5}>
struct limited : mo::layer_spec<Size> {
  using router = Router;
  using capacity = Capacity;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};

/// A layer's forward over random tokens, and what the same router would do without a capacity.
template <class Spec> struct forwarded {
  struct free_spec : Spec {
    using capacity = mo::dropless;
  };
  mo::context<> ctx;
  mo::matrix<float> x, y;
  mo::moe_layer<Spec> layer;
  typename mo::moe_layer<Spec>::weights_type weights;
  typename mo::moe_layer<Spec>::tape_type tape;
  mo::routing<float> asked;

  explicit forwarded(std::int64_t tokens, mo::batch const& about = {}, int threads = 1)
      : ctx{mo::host{.threads = threads}},
        x(tokens, Spec::size.hidden),
        y(tokens, Spec::size.hidden),
        layer(ctx, {.name = "limited"}),
        weights(layer.make_weights(mo::seed{3})),
        tape((mo::fill_normal(ctx, x, mo::seed{4}), layer.forward(weights, x, y, about))),
        asked(typename mo::spec_of<Spec>::router_type{}.forward(ctx, tape.logits(), about)) {}

  std::int64_t rows(std::int64_t e) const {
    return tape.permutation().offsets()[e + 1] - tape.permutation().offsets()[e];
  }
};

/// What each rule keeps, by a full sort: sets of (token, expert).
std::set<std::pair<std::int64_t, int>> kept_by_sorting(mo::routing_view<float> const& asked, std::int64_t begin,
                                                       std::int64_t end, std::int64_t capacity, auto const& better) {
  std::set<std::pair<std::int64_t, int>> kept;
  for (int e = 0; e < asked.experts; ++e) {
    std::vector<std::pair<std::int64_t, float>> takers;
    for (std::int64_t t = begin; t < end; ++t)
      for (std::int64_t j = 0; j < asked.slots; ++j)
        if (asked.dispatched(t) && asked.expert(t, j) == e) takers.emplace_back(t, asked.weight(t, j));
    std::stable_sort(takers.begin(), takers.end(), better);
    for (std::size_t i = 0; i < takers.size() && static_cast<std::int64_t>(i) < capacity; ++i)
      kept.emplace(takers[i].first, e);
  }
  return kept;
}

std::set<std::pair<std::int64_t, int>> kept_in(mo::routing_view<float> const& r) {
  std::set<std::pair<std::int64_t, int>> kept;
  for (std::int64_t t = 0; t < r.tokens; ++t)
    for (std::int64_t j = 0; j < r.slots; ++j)
      if (r.has_row(t, j)) kept.emplace(t, r.expert(t, j));
  return kept;
}

/// Four experts of tokens that are their own logits.
template <class Ratio, class... Options> struct worked : mo::layer_spec<mo::dims{.hidden = 4, .ffn = 3, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using capacity = mo::capacity<Ratio, Options...>;
};

/// The slots of the worked example, by token, that lose their expert on a layout that splits its six tokens evenly.
template <class Spec> std::vector<std::pair<int, int>> dropped_on(mo::layout const& shape) {
  using deployment = mo::deployment<mo::dynamic>;
  auto const has_row = mo::run<deployment>(
      [](mo::context<deployment>& ctx) {
        std::int64_t const count = 6 / ctx.stage().size(), first = count * ctx.stage().rank();
        mo::moe_layer<Spec, deployment> layer{ctx};
        auto weights = layer.make_weights(mo::seed{3});
        weights.for_each([](mo::parameter const& p, auto values) {
          for (std::size_t i = 0; p.name == "router.weight" && i < 16; ++i) values[i] = i % 5 == 0 ? 1.0f : 0.0f;
        });
        auto const x = example::make_logits<float>();
        auto y = ctx.matrix(count, 4);
        auto const tape = layer.forward(weights, x.rows(first, count), y, {.first_row = first});
        std::vector<std::int32_t> mine;
        for (std::int64_t t = 0; t < count; ++t)
          for (std::int64_t j = 0; j < 2; ++j) mine.push_back(tape.routing().has_row(t, j) ? 1 : 0);
        return ctx.stage().template all_gather_v<std::int32_t>(mine);
      },
      {}, shape, {.threads = 1});
  std::vector<std::pair<int, int>> dropped;
  for (int s = 0; s < 12; ++s)
    if (has_row.at(static_cast<std::size_t>(s)) == 0) dropped.emplace_back(s / 2, s % 2);
  return dropped;
}

std::int64_t sum(std::vector<std::int64_t> const& v) { return std::accumulate(v.begin(), v.end(), std::int64_t{0}); }

}  // namespace

static_assert(mo::is_capacity<mo::dropless> && mo::is_capacity<mo::capacity<std::ratio<1>>> && !mo::is_capacity<int>);

TEST_CASE("the capacity is the rounded share of a unit, at least the floor, at most its tokens") {
  using c = mo::capacity<std::ratio<5, 4>>;
  CHECK(c::of(16, 2, 8) == 5);
  CHECK(c::of(10, 2, 8) == 4);  // 3.125
  CHECK(mo::capacity<std::ratio<5, 4>, mo::rounded_down>::of(10, 2, 8) == 3);
  CHECK(mo::capacity<std::ratio<1, 4>, mo::at_least<4>>::of(10, 2, 8) == 4);
  CHECK(mo::capacity<std::ratio<1, 4>, mo::at_least<4>>::of(3, 2, 8) == 3);
  CHECK(mo::capacity<std::ratio<100>>::of(10, 2, 8) == 10);
  CHECK(c::of(0, 2, 8) == 0);
  CHECK(c::of(std::int64_t{1} << 40, 8, 384) == ((std::int64_t{1} << 40) * 40 + 384 * 4 - 1) / (384 * 4));
}

TEST_CASE("the worked example: what one rank drops, and two, whether or not they hold every expert") {
  using down = mo::rounded_down;
  CHECK(worked<std::ratio<1>>::capacity::of(6, 2, 4) == 3);
  CHECK(worked<std::ratio<1, 2>, down>::capacity::of(6, 2, 4) == 1);
  CHECK(worked<std::ratio<5, 4>, down>::capacity::of(6, 2, 4) == 3);
  CHECK(worked<std::ratio<5, 4>>::capacity::of(6, 2, 4) == 4);
  using slots = std::vector<std::pair<int, int>>;
  slots const last{{4, 1}, {5, 0}}, lowest{{3, 1}, {4, 1}}, one_over{{4, 1}};
  slots const after_the_first{{1, 0}, {2, 0}, {2, 1}, {3, 1}, {4, 0}, {4, 1}, {5, 0}, {5, 1}};
  for (mo::layout const& shape : {mo::layout{}, mo::layout{.data = 2}, mo::layout{.data = 2, .expert = 2}}) {
    INFO(mo::detail::sentence(shape));
    CHECK(dropped_on<worked<std::ratio<1>, mo::drop::position>>(shape) == last);
    CHECK(dropped_on<worked<std::ratio<1>>>(shape) == lowest);
    CHECK(dropped_on<worked<std::ratio<5, 4>, mo::drop::position, down>>(shape) == last);
    CHECK(dropped_on<worked<std::ratio<5, 4>, down>>(shape) == lowest);
    CHECK(dropped_on<worked<std::ratio<5, 4>>>(shape) == one_over);
    CHECK(dropped_on<worked<std::ratio<1, 2>, mo::drop::position, down>>(shape) == after_the_first);
    CHECK(dropped_on<worked<std::ratio<1, 2>, down>>(shape).size() == 12 - 4);
  }
}

TEST_CASE("what each rule keeps is what a full sort keeps") {
  auto const keeps_as = [](auto const& run, auto const& better, std::int64_t capacity) {
    CHECK(kept_in(run.tape.routing()) == kept_by_sorting(run.asked, 0, run.asked.tokens, capacity, better));
  };
  auto const by_weight = [](auto const& a, auto const& b) { return a.second > b.second; };
  auto const by_token = [](auto const& a, auto const& b) { return a.first < b.first; };
  for (std::int64_t const tokens : {1, 2, 37, 512}) {
    CAPTURE(tokens);
    forwarded<limited<mo::capacity<std::ratio<1>>>> const lowest(tokens);
    keeps_as(lowest, by_weight, (tokens * 2 + 4) / 5);
    forwarded<limited<mo::capacity<std::ratio<1, 2>, mo::drop::position, mo::rounded_down>>> const position(tokens);
    keeps_as(position, by_token, tokens / 5);
    forwarded<limited<mo::capacity<std::ratio<3, 4>, mo::drop::priority>>> const priority(tokens);
    auto const largest = [&](std::int64_t t) {
      return std::max(priority.asked.weight(t, 0), priority.asked.weight(t, 1));
    };
    keeps_as(
        priority, [&](auto const& a, auto const& b) { return largest(a.first) > largest(b.first); },
        (tokens * 2 * 3 + 19) / 20);
  }
}

TEST_CASE(
    "random drops depend on step, layer and the token's place in the global batch, not on how the batch was cut") {
  using spec = limited<mo::capacity<std::ratio<1, 2>, mo::drop::random, mo::per::sequence>>;
  std::array<std::int64_t, 3> const sequences{0, 40, 100};
  mo::batch const whole{.sequences = sequences, .step = 5};
  forwarded<spec> const all(100, whole), again(100, whole, 3), later(100, {.sequences = sequences, .step = 6}),
      above(100, {.sequences = sequences, .step = 5, .layer = 1});
  CHECK(kept_in(all.tape.routing()) == kept_in(again.tape.routing()));
  CHECK(kept_in(all.tape.routing()) != kept_in(later.tape.routing()));
  CHECK(kept_in(all.tape.routing()) != kept_in(above.tape.routing()));
  // the second sequence alone, as the rows from 40 on
  mo::context<> ctx;
  mo::moe_layer<spec> layer{ctx};
  mo::matrix<float> y(60, 8);
  auto const part =
      layer.forward(all.weights, mo::matrix_view<float const>{all.x.row(40), 60, 8}, y, {.first_row = 40, .step = 5});
  for (std::int64_t t = 0; t < 60; ++t)
    for (std::int64_t j = 0; j < 2; ++j) CHECK(part.routing().expert(t, j) == all.tape.routing().expert(40 + t, j));
  auto const of = [](auto const& run) { return sum(mo::loss_report<spec>(run.layer.report(run.tape)).dropped()); };
  CHECK(of(all) > 0);
}

TEST_CASE("each sequence has a capacity of its own") {
  std::array<std::int64_t, 4> const sequences{0, 10, 10, 37};
  forwarded<limited<mo::capacity<std::ratio<1>, mo::per::sequence>>> const run(37, {.sequences = sequences});
  auto const by_weight = [](auto const& a, auto const& b) { return a.second > b.second; };
  auto expected = kept_by_sorting(run.asked, 0, 10, 4, by_weight);
  expected.merge(kept_by_sorting(run.asked, 10, 37, 11, by_weight));
  CHECK(kept_in(run.tape.routing()) == expected);
}

TEST_CASE("kept, dropped and masked slots are all of them, and the report counts drops by expert") {
  std::vector<std::uint8_t> mask(64, 1);
  for (std::size_t t = 0; t < 64; t += 7) mask[t] = 0;
  using spec = limited<mo::capacity<std::ratio<3, 4>>>;
  forwarded<spec> const run(64, {.mask = mask});
  auto const report = run.layer.report(run.tape);
  CHECK(run.tape.permutation().rows() + sum(report.dropped()) + 2 * report.states().masked == 64 * 2);
  CHECK(sum(report.counts()) == 2 * report.states().routed);
  for (int e = 0; e < 5; ++e) {
    auto const at = static_cast<std::size_t>(e);
    CHECK(run.rows(e) == report.counts()[at] - report.dropped()[at]);
    CHECK(run.rows(e) <= mo::capacity<std::ratio<3, 4>>::of(64, 2, 5));
  }
  std::ostringstream text;
  text << report;
  CHECK(text.str().find(", dropped ") != std::string::npos);
}

TEST_CASE("losses see what tokens asked for") {
  using spec = limited<mo::capacity<std::ratio<1, 2>>>;
  struct same_without : spec {
    using capacity = mo::dropless;
  };
  forwarded<spec> const with(64);
  forwarded<same_without> const without(64);
  auto const a = with.layer.report(with.tape);
  auto const b = without.layer.report(without.tape);
  CHECK(a.value<mo::load_balance<>>() == b.value<mo::load_balance<>>());
  CHECK(a.counts() == b.counts());
  CHECK(sum(b.dropped()) == 0);
}

TEST_CASE("a token without a row gets 0, and weights that are kept stay or are renormalised") {
  using plain = limited<mo::capacity<std::ratio<1, 4>>>;
  using renormalised = limited<mo::capacity<std::ratio<1, 4>, mo::renormalise_after_drop>,
                               mo::router<mo::softmax, mo::top_k<2>, mo::scale<std::ratio<5, 2>>>>;
  forwarded<plain> const a(50);
  forwarded<renormalised> const b(50);
  for (std::int64_t t = 0; t < 50; ++t) {
    float total = 0;
    bool any = false;
    for (std::int64_t j = 0; j < 2; ++j) {
      CHECK(a.tape.routing().weight(t, j) == (a.tape.routing().has_row(t, j) ? a.asked.weight(t, j) : 0.0f));
      total += b.tape.routing().weight(t, j);
      any = any || b.tape.routing().has_row(t, j);
    }
    CHECK(total == doctest::Approx(any ? 2.5 : 0));
    bool const none = !a.tape.routing().has_row(t, 0) && !a.tape.routing().has_row(t, 1);
    for (std::int64_t c = 0; c < 8 && none; ++c) CHECK(a.y(t, c) == 0);
  }
}

TEST_CASE("ample capacity is dropless, bit for bit, and infer agrees with forward") {
  using ample = limited<mo::capacity<std::ratio<100>>>;
  struct same_without : ample {
    using capacity = mo::dropless;
  };
  forwarded<ample> const with(64);
  forwarded<same_without> const without(64);
  CHECK(std::equal(with.y.begin(), with.y.end(), without.y.begin()));
  forwarded<limited<mo::capacity<std::ratio<1, 2>, mo::renormalise_after_drop>>> const run(64);
  mo::matrix<float> y(64, 8);
  run.layer.infer(run.weights, run.x, y);
  CHECK(std::equal(y.begin(), y.end(), run.y.begin()));
}

namespace {

template <class Spec> void gradients_pass(std::int64_t tokens, mo::batch const& about) {
  CAPTURE(tokens);
  for (auto const& check : mo::testing::check_gradients<Spec>(tokens, about)) {
    CAPTURE(check.name);
    CHECK(check.error <= mo::testing::gradient_tolerance);
  }
  float_gradients::agree<Spec>(tokens, about);
}
template <class Spec> void gradients_pass() {
  for (std::int64_t const tokens : {0, 1, 2, 37}) gradients_pass<Spec>(tokens, {});
}

template <int Experts, int K> void gradients_pass_for() {
  constexpr mo::dims size{.hidden = 8, .ffn = 6, .experts = Experts};
  using router = mo::router<mo::sigmoid, mo::top_k<K>>;
  using half = std::ratio<1, 2>;
  gradients_pass<limited<mo::capacity<half>, router, size>>();
  gradients_pass<limited<mo::capacity<half, mo::drop::position>, router, size>>();
  gradients_pass<limited<mo::capacity<half, mo::drop::random>, router, size>>();
  gradients_pass<limited<mo::capacity<half, mo::drop::priority>, router, size>>();
}

}  // namespace

TEST_CASE("gradients equal differences under every capacity") {
  using sigmoid_3 = mo::router<mo::sigmoid, mo::top_k<3>, mo::renormalised, mo::scale<std::ratio<5, 2>>>;
  using selected = mo::router<mo::softmax, mo::top_k<2>, mo::softmax_of_selected>;
  gradients_pass<limited<mo::capacity<std::ratio<1, 2>>>>();
  gradients_pass<limited<mo::capacity<std::ratio<1, 2>, mo::renormalise_after_drop>, sigmoid_3>>();
  gradients_pass<limited<mo::capacity<std::ratio<3, 4>, mo::drop::position, mo::renormalise_after_drop>, selected>>();
  gradients_pass<limited<mo::capacity<std::ratio<3, 4>, mo::drop::random>, sigmoid_3>>();
  gradients_pass<limited<mo::capacity<std::ratio<1, 2>, mo::drop::priority>>>();
  gradients_pass<limited<mo::capacity<std::ratio<1, 2>, mo::drop::priority, mo::renormalise_after_drop>, sigmoid_3>>();
  std::vector<std::int64_t> const sequences{0, 9, 9, 30, 37};
  mo::batch const about{.sequences = sequences};
  using each = mo::capacity<std::ratio<1, 2>, mo::per::sequence>;
  using each_priority =
      mo::capacity<std::ratio<1, 2>, mo::per::sequence, mo::drop::priority, mo::renormalise_after_drop>;
  gradients_pass<limited<each>>(37, about);
  gradients_pass<limited<each_priority, sigmoid_3>>(37, about);
}

TEST_CASE("gradients equal differences under a capacity of one expert, of few, and with a slot of each") {
  gradients_pass_for<1, 1>();
  gradients_pass_for<3, 1>();
  gradients_pass_for<3, 3>();
  gradients_pass_for<8, 1>();
  gradients_pass_for<8, 8>();
}

TEST_SUITE("long") {
  TEST_CASE("gradients equal differences under a capacity of 40 experts") {
    gradients_pass_for<40, 1>();
    gradients_pass_for<40, 40>();
  }
}
