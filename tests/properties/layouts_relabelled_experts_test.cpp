// SPDX-License-Identifier: Apache-2.0
// Experts under other numbers: what a layer gives stays, and what it tells by expert is renumbered, on any layout.
#include "properties/ranks.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

using T = float;
using tensors = std::map<std::string, std::vector<T>>;
using labels = std::array<std::size_t, 8>;  // the old number of each expert

constexpr labels same{0, 1, 2, 3, 4, 5, 6, 7}, other{5, 2, 7, 0, 6, 1, 4, 3};

/// Values by expert, that of each new number from its old one.
template <class V> std::vector<V> relabelled(std::vector<V> const& by_expert, labels const& old) {
  std::size_t const each = by_expert.size() / old.size();
  std::vector<V> to;
  for (std::size_t const e : old)
    to.insert(to.end(), by_expert.begin() + static_cast<std::ptrdiff_t>(e * each),
              by_expert.begin() + static_cast<std::ptrdiff_t>((e + 1) * each));
  return to;
}
tensors relabelled(tensors const& all, labels const& old) {
  tensors to;
  for (auto const& [name, values] : all) to[name] = relabelled(values, old);
  return to;
}

/// All weights: drawn on one rank, apart from selection biases.
template <class Spec> tensors drawn() {
  return mo::run<ranks::spread<T>>(
      [](mo::context<ranks::spread<T>>& ctx) {
        mo::moe_layer<Spec, ranks::spread<T>> layer{ctx};
        auto weights = layer.make_weights(mo::seed{17});
        tensors all;
        weights.for_each([&]<class V>(mo::parameter const& p, std::span<V> values) {
          auto& to = all[p.name];
          for (std::size_t i = 0; i < values.size(); ++i)
            to.push_back(p.name == "router.selection_bias" ? static_cast<T>(i * 7 % 5) * 0.05f
                                                           : static_cast<T>(values[i]));
        });
        return all;
      },
      {}, {}, ranks::of_one_thread<mo::host>());
}

/// What each token chose, and the outcome of the layer with these weights.
struct told {
  std::vector<T> y, dx;
  std::vector<std::vector<std::size_t>> chosen;
  std::vector<std::int64_t> counts;
  std::map<std::string, std::vector<mo::sum_t<T>>> experts, router;
};

template <class Spec> told step(mo::layout const& shape, tensors const& of, labels const& old) {
  using deployment = ranks::spread<T>;
  using S = mo::sum_t<T>;
  constexpr std::int64_t hidden = 20;
  constexpr std::size_t slots = mo::spec_of<Spec>::slots;
  return mo::run<deployment>(
      [&](mo::context<deployment>& ctx) {
        mo::moe_layer<Spec, deployment> layer{ctx, ranks::trained<Spec>()};
        auto weights = layer.make_weights(mo::seed{1});
        weights.for_each([&]<class V>(mo::parameter const& p, std::span<V> values) {
          auto to = values.begin();
          p.for_each_piece([&](std::int64_t first, std::int64_t count) {
            for (std::int64_t i = first; i < first + count; ++i)
              *to++ = static_cast<V>(of.at(p.name)[static_cast<std::size_t>(i)]);
          });
        });
        std::int64_t const count = 64 / ctx.stage().size(), first = count * ctx.stage().rank();
        auto x = ctx.matrix(count, hidden), y = ctx.matrix(count, hidden), dy = ctx.matrix(count, hidden),
             dx = ctx.matrix(count, hidden);
        mo::fill_normal(ctx, x, mo::seed{1}, mo::first_row{first});
        mo::fill_normal(ctx, dy, mo::seed{2}, mo::first_row{first});
        auto tape = layer.forward(weights, x, y);
        mo::loss_ledger<Spec> ledger{ctx, 1};
        ledger.record(0, tape);
        auto gradients = layer.make_gradients();
        layer.backward(weights, tape, dy, dx, gradients);
        told result{mo::all_gather(ctx.stage(), y), mo::all_gather(ctx.stage(), dx), {}, {}, {}, {}};
        result.counts = ledger.reduce().counts();
        auto const ids = ctx.stage().template all_gather_v<std::int32_t>(
            ranks::on_host(ctx, tape.routing().ids, count * static_cast<std::int64_t>(slots)));
        for (std::size_t t = 0; t < ids.size(); t += slots) {
          auto& chosen = result.chosen.emplace_back();
          for (std::size_t k = 0; k < slots; ++k) chosen.push_back(old[static_cast<std::size_t>(ids[t + k])]);
          std::sort(chosen.begin(), chosen.end());
        }
        gradients.for_each([&](mo::parameter const& p, std::span<S> values) {
          if (p.of_experts) {
            result.experts[p.name] = ranks::joined(ctx, p, values);
          } else {
            ctx.stage().all_reduce(values);
            result.router[p.name].assign(values.begin(), values.end());
          }
        });
        return result;
      },
      {}, shape, ranks::of_one_thread<mo::host>());
}

/// To the bit, unless a softmax divides by a sum over all experts, whose order the numbers change; dx is such a sum too.
template <class Spec> void check(bool to_the_bit) {
  tensors const weights = drawn<Spec>(), renumbered = relabelled(weights, other);
  CHECK(renumbered != weights);
  double const rounding = ranks::bound<T>(64);
  for (mo::layout const& shape :
       {mo::layout{}, mo::layout{.data = 2, .expert = 2}, mo::layout{.data = 4, .expert = 4}}) {
    INFO(mo::detail::sentence(shape));
    told const before = step<Spec>(shape, weights, same), after = step<Spec>(shape, renumbered, other);
    CHECK(std::any_of(before.y.begin(), before.y.end(), [](T v) { return v != 0; }));
    CHECK(after.chosen == before.chosen);
    CHECK(after.counts == relabelled(before.counts, other));
    CHECK(after.counts != before.counts);
    if (to_the_bit) CHECK(ranks::same_bits(after.y, before.y));
    CHECK(ranks::distance(after.y, before.y) < rounding);
    CHECK(ranks::distance(after.dx, before.dx) < rounding);
    CHECK(before.experts.size() == 3);
    for (auto const& gradient : before.experts) {
      INFO(gradient.first);
      auto const wanted = relabelled(gradient.second, other);
      if (to_the_bit) CHECK(ranks::same_bits(after.experts.at(gradient.first), wanted));
      CHECK(ranks::distance(after.experts.at(gradient.first), wanted) < rounding);
    }
    for (auto const& gradient : before.router) {
      INFO(gradient.first);
      CHECK(ranks::distance(after.router.at(gradient.first), relabelled(gradient.second, other)) < rounding);
    }
  }
}

using softmax = ranks::small<mo::router<mo::softmax, mo::top_k<3>>>;
using sigmoid = ranks::small<mo::router<mo::sigmoid, mo::selection_bias, mo::top_k<2>, mo::renormalised>>;

}  // namespace

TEST_CASE("softmax over all experts") { check<softmax>(false); }
TEST_CASE("sigmoid with selection bias, two of the experts") { check<sigmoid>(true); }
