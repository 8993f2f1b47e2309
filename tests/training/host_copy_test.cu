// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/host_copy.hpp>

#include "device_memory.hpp"

#include <moiety/cuda.cuh>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

struct small : mo::layer_spec<mo::dims{.hidden = 20, .ffn = 12, .experts = 8}> {
  using router = mo::router<mo::sigmoid, mo::selection_bias, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>>;
};

template <class T, class Backend> struct on : mo::deployment<mo::dynamic> {
  using backend = Backend;
  using element = T;
};

using weights = std::map<std::string, std::vector<double>>;

/// This rank's values of a set of the host.
template <class Set> weights values_of(Set& set) {
  weights all;
  set.for_each([&](mo::parameter const& p, auto values) {
    for (auto const v : values) all[p.name].push_back(static_cast<double>(v));
  });
  return all;
}

/// Three steps of a layer: the norms, and rank 0's weights at last.
struct trained {
  std::vector<double> norms;
  weights last;
};
template <class T, class Backend> trained train(mo::layout const& shape) {
  using deployment = on<T, Backend>;
  return mo::run<deployment>(
      [](mo::context<deployment>& ctx) {
        mo::moe_layer<small, deployment> layer{ctx};
        auto held = layer.make_weights(mo::seed{3});
        auto sums = layer.make_gradients();
        mo::host_copy weights_here(ctx, held);
        mo::host_copy gradients_here(ctx, sums);
        weights_here.load();
        auto const groups = mo::groups_of(ctx);
        auto const parameters = mo::parameters_of(weights_here, gradients_here);
        mo::sharded_adamw<mo::sum_t<T>, typename mo::context<deployment>::communicator> optimiser{groups};
        std::int64_t const tokens = 32 / ctx.stage().size();
        auto x = ctx.matrix(tokens, 20), y = ctx.matrix(tokens, 20), dy = ctx.matrix(tokens, 20),
             dx = ctx.matrix(tokens, 20);
        trained found;
        for (int step = 0; step < 3; ++step) {
          std::int64_t const row = 100 * step + tokens * ctx.stage().rank();
          mo::fill_normal(ctx, x, mo::seed{1}, mo::first_row{row});
          mo::fill_normal(ctx, dy, mo::seed{2}, mo::first_row{row});
          sums.reset();
          auto tape = layer.forward(held, x, y);
          layer.backward(held, tape, dy, dx, sums);
          gradients_here.load();
          auto const list = mo::gradients_of<mo::sum_t<T>>(parameters);
          mo::reduce_gradients(list, groups);
          found.norms.push_back(mo::global_norm(ctx, gradients_here));
          mo::clip_gradients(list, 1.0, found.norms.back());
          optimiser.step(parameters, 1e-2, found.norms.back());
          weights_here.store();
        }
        found.last = values_of(weights_here);
        return found;
      },
      {}, shape);
}

}  // namespace

TEST_CASE_TEMPLATE("what is loaded is what the device has, and what is stored it has from then on", T, float, double,
                   mo::bf16) {
  using deployment = on<T, mo::cuda>;
  mo::run<deployment>(
      [](mo::context<deployment>& ctx) {
        mo::moe_layer<small, deployment> layer{ctx};
        auto held = layer.make_weights(mo::seed{3}), changed = layer.make_weights(mo::seed{4});
        auto gradients = layer.make_gradients();
        mo::host_copy here(ctx, held), of_changed(ctx, changed);
        mo::host_copy sums(ctx, gradients);
        here.load(), of_changed.load(), sums.load();
        auto const first = values_of(here);
        CHECK(first != values_of(of_changed));
        CHECK(first.at("experts.up").size() == 8 * 12 * 20);
        CHECK(first.contains("router.selection_bias"));
        for (auto const& [name, values] : values_of(sums))
          for (double const v : values) CHECK(v == 0);
        std::vector<std::vector<std::byte>> bytes;
        here.for_each([&](mo::parameter const&, auto values) {
          auto const raw = std::as_bytes(values);
          bytes.emplace_back(raw.begin(), raw.end());
        });
        std::size_t index = 0;
        of_changed.for_each([&](mo::parameter const&, auto values) {
          std::memcpy(values.data(), bytes[index].data(), bytes[index].size());
          ++index;
        });
        of_changed.store();
        auto x = ctx.matrix(9, 20), y = ctx.matrix(9, 20), again = ctx.matrix(9, 20);
        mo::fill_normal(ctx, x, mo::seed{5});
        layer.infer(held, x, y);
        layer.infer(changed, x, again);
        auto const a = y.host(), b = again.host();
        CHECK(testing::same_bits(std::vector<T>(a.begin(), a.end()), std::vector<T>(b.begin(), b.end())));
      },
      {}, mo::layout{});
}

TEST_CASE("a layer on a device is trained as one on the host, on one rank and on several") {
  trained const host = train<double, mo::host>({}), one = train<double, mo::cuda>({}),
                many = train<double, mo::cuda>({.data = 2, .expert = 2});
  REQUIRE(host.norms.size() == 3);
  for (std::size_t step = 0; step < 3; ++step) {
    CHECK(host.norms[step] > 1);
    CHECK(one.norms[step] == doctest::Approx(host.norms[step]).epsilon(1e-12));
    CHECK(many.norms[step] == doctest::Approx(host.norms[step]).epsilon(1e-12));
  }
  for (auto const& [name, values] : host.last)
    for (std::size_t i = 0; i < values.size(); ++i) {
      REQUIRE(one.last.at(name)[i] == doctest::Approx(values[i]).epsilon(1e-9));
      if (i < many.last.at(name).size())  // rank 0 has the first experts
        REQUIRE(many.last.at(name)[i] == doctest::Approx(values[i]).epsilon(1e-9));
    }
}
