// SPDX-License-Identifier: Apache-2.0
#include <moiety/pipeline/stack_of.hpp>

#include <moiety/backend/arena.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <memory_resource>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

/// Named vectors of one type.
template <class T> struct part {
  std::vector<std::pair<mo::parameter, std::vector<T>>> all;

  part& add(std::string name, std::vector<T> values, bool trained = true) {
    auto const size = static_cast<std::int64_t>(values.size());
    mo::parameter p{std::move(name), {size}, {{0, size}}, 1, "", trained};
    all.emplace_back(std::move(p), std::move(values));
    return *this;
  }
  template <class F> void for_each(F&& f) {
    for (auto& [p, v] : all) f(p, std::span<T>(v));
  }
  template <class F> void for_each(F&& f) const {
    for (auto const& [p, v] : all) f(p, std::span<T const>(v));
  }
};
template <class T> struct sums : part<T> {
  int resets = 0;
  void reset() { ++resets; }
};
/// Another kind whose parts are of the same type.
using weights = mo::stack_of<part<float>, part<float>, part<double>>;
using gradients = mo::stack_of<sums<float>, sums<float>, sums<double>>;

weights of_three() {
  weights all;
  all.add<0>(2, part<float>().add("a", {1, 2}).add("state", {7}, false));
  all.add<2>(3, part<double>().add("a", {3}));
  all.add<1>(11, part<float>().add("b", {4}).add("a", {5, 6}));
  return all;
}

template <class Stack> std::string words(Stack&& stack) {
  std::string all;
  stack.for_each([&](mo::parameter const& p, auto values) {
    all += p.name;
    for (auto const v : values) all += ' ' + std::to_string(static_cast<int>(v));
    all += "; ";
  });
  return all;
}

template <class Stack>
concept can_reset = requires(Stack& stack) {
  stack.reset();
};
static_assert(can_reset<gradients> && !can_reset<weights>);

}  // namespace

TEST_CASE("parts of several kinds, by their names in the model") {
  weights all = of_three();
  std::string const expected = "layers.2.a 1 2; layers.2.state 7; layers.3.a 3; layers.11.b 4; layers.11.a 5 6; ";
  CHECK(words(std::as_const(all)) == expected);
  CHECK(words(all) == expected);
  CHECK(all.size() == 3);
  CHECK(all.number(2) == 11);
  CHECK(all.get<1>(2).all[0].first.name == "b");
  CHECK_THROWS(all.get<0>(2));
  std::string seen;
  mo::for_each_parameter(std::as_const(all), [&](mo::parameter const& p, auto) { seen += p.name + ' '; });
  CHECK(seen == "layers.2.a layers.2.state layers.3.a layers.11.b layers.11.a ");
  all.for_each([](mo::parameter const&, auto values) { values[0] += 1; });
  CHECK(words(all) == "layers.2.a 2 2; layers.2.state 8; layers.3.a 4; layers.11.b 5; layers.11.a 6 6; ");
  CHECK(words(weights()) == "");
}

TEST_CASE("weights with their gradients: those that are trained") {
  weights all = of_three();
  gradients sum;
  sums<float> first, third;
  sums<double> second;
  first.add("a", {10, 20}), second.add("a", {30}), third.add("b", {40}).add("a", {50, 60});
  sum.add<0>(2, first), sum.add<2>(3, second), sum.add<1>(11, third);
  std::string seen;
  auto const step = [&](mo::parameter const& p, auto w, auto g) {
    seen += p.name + ' ';
    REQUIRE(w.size() == g.size());
    for (std::size_t i = 0; i < w.size(); ++i) CHECK(w[i] * 10 == g[i]);
  };
  mo::for_each_parameter(all, sum, step);
  CHECK(seen == "layers.2.a layers.3.a layers.11.b layers.11.a ");
  seen.clear();
  mo::for_each_parameter(std::as_const(all), sum, step);
  CHECK(seen == "layers.2.a layers.3.a layers.11.b layers.11.a ");
  sum.reset();
  CHECK(sum.get<0>(0).resets == 1);
  CHECK(sum.get<1>(2).resets == 1);
}

TEST_CASE("layers, and what is tied") {
  weights one = of_three(), two(true);
  one.get<2>(1).all[0].first.tied = true;
  two.add<0>(5, part<float>().add("a", {1}));
  auto const said = [](weights const& of) {
    std::string all;
    of.for_each([&](mo::parameter const& p, auto) {
      all += p.name + ' ' + std::to_string(p.layer) + (p.tied ? " tied; " : "; ");
    });
    return all;
  };
  CHECK(said(one) == "layers.2.a 2; layers.2.state 2; a 3 tied; layers.11.b 11; layers.11.a 11; ");
  CHECK(said(two) == "layers.5.a 5 tied; ");
}

TEST_CASE("gradients that were united are given up by all holders but the first before more is added") {
  mo::arena memory(*std::pmr::new_delete_resource());
  gradients sum;
  sum.add<0>(2, sums<float>()), sum.add<0>(3, sums<float>()), sum.add<2>(4, sums<double>());
  sum.get<0>(0).add("a", {1}), sum.get<0>(1).add("b", {2, 2}), sum.get<2>(2).add("c", {3});
  sum.before_more(memory);
  CHECK(words(sum) == "layers.2.a 1; layers.3.b 2 2; layers.4.c 3; ");
  struct shared {
    bool all;
    void sum(gradients& of) const {
      of.for_each([](mo::parameter const&, auto values) { values[0] *= 10; });
    }
    bool counts(std::size_t i) const { return all || i != 1; }
  };
  sum.unite(shared{false});
  CHECK(words(sum) == "layers.2.a 10; layers.3.b 20 2; layers.4.c 30; ");
  sum.before_more(memory);
  CHECK(words(sum) == "layers.2.a 10; layers.3.b 0 0; layers.4.c 30; ");
  sum.for_each([](mo::parameter const&, auto values) { values[0] += 1; });
  sum.before_more(memory);
  CHECK(words(sum) == "layers.2.a 11; layers.3.b 1 0; layers.4.c 31; ");
  sum.unite(shared{true});
  sum.before_more(memory);
  CHECK(words(sum) == "layers.2.a 110; layers.3.b 10 0; layers.4.c 310; ");
  sum.unite(shared{false});
  sum.reset();
  sum.before_more(memory);
  CHECK(words(sum) == "layers.2.a 1100; layers.3.b 100 0; layers.4.c 3100; ");
}
