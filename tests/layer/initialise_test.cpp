// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/initialise.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

template <int E> struct spec : mo::layer_spec<mo::dims{.hidden = 96, .ffn = 48, .experts = E}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

template <int E> std::map<std::string, std::vector<float>> drawn(int seed, int threads = 1) {
  mo::context<> ctx{mo::host{.threads = threads}};
  std::map<std::string, std::vector<float>> all;
  mo::moe_layer<spec<E>>{ctx}.make_weights(mo::seed{seed}).for_each([&](mo::parameter const& p, auto values) {
    all[p.name].assign(values.begin(), values.end());
  });
  return all;
}

}  // namespace

TEST_CASE("weights are normal with standard deviation 1/sqrt(fan in)") {
  auto const all = drawn<16>(3);
  struct of {
    char const* name;
    double fan_in;
  };
  for (of const p : {of{"router.weight", 96}, {"experts.gate", 96}, {"experts.up", 96}, {"experts.down", 48}}) {
    CAPTURE(p.name);
    double sum = 0, square = 0;
    for (float const v : all.at(p.name)) sum += v, square += static_cast<double>(v) * v;
    auto const n = static_cast<double>(all.at(p.name).size());
    double const deviation = std::sqrt(square / n);
    CHECK(deviation * std::sqrt(p.fan_in) == doctest::Approx(1).epsilon(6 / std::sqrt(n)));
    CHECK(std::abs(sum / n) < 5 * deviation / std::sqrt(n));
  }
}

TEST_CASE("a value depends on seed, name and index alone") {
  auto const one = drawn<4>(3), more = drawn<16>(3, 4);
  for (auto const& [name, values] : one) CHECK(std::equal(values.begin(), values.end(), more.at(name).begin()));
  CHECK(one.at("experts.gate") != one.at("experts.up"));
  CHECK(one.at("experts.gate") != drawn<4>(4).at("experts.gate"));
}

namespace {

using any = mo::deployment<mo::dynamic>;

template <class Mlp> struct stored : mo::layer_spec<mo::dims{.hidden = 10, .ffn = 12, .experts = 6}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using experts = Mlp;
};

/// Of each parameter, the values of all ranks where they belong in the whole tensor, and how many ranks hold each element.
struct joined {
  std::map<std::string, std::vector<float>> values;
  std::map<std::string, std::vector<int>> holders;
};

template <class Spec> joined weights_of(mo::layout const& shape) {
  return mo::run<any>(
      [](mo::context<any>& ctx) {
        joined all;
        mo::moe_layer<Spec, any> const layer{ctx};
        auto const weights = layer.make_weights(mo::seed{21});
        weights.for_each([&]<class V>(mo::parameter const& p, std::span<V> values) {
          std::int64_t size = 1;
          for (auto const n : p.shape) size *= n;
          std::vector<float>& whole = all.values[p.name];
          std::vector<int>& holders = all.holders[p.name];
          whole.resize(static_cast<std::size_t>(size)), holders.resize(whole.size());
          auto next = values.begin();
          p.for_each_piece([&](std::int64_t first, std::int64_t count) {
            for (std::int64_t i = first; i < first + count; ++i) {
              whole[static_cast<std::size_t>(i)] = static_cast<float>(*next++);
              ++holders[static_cast<std::size_t>(i)];
            }
          });
          // The first rank that holds a value has its word: values of the others must be the same, or -1 is left.
          std::vector<float> const by_rank = ctx.stage().template all_gather_v<float>(whole);
          std::vector<int> const held = ctx.stage().template all_gather_v<int>(holders);
          for (std::size_t i = 0; i < whole.size(); ++i) {
            bool found = false;
            holders[i] = 0;
            for (std::size_t at = i; at < held.size(); at += whole.size()) {
              if (held[at] == 0) continue;
              if (found && whole[i] != by_rank[at]) whole[i] = -1;
              if (!found) whole[i] = by_rank[at];
              found = true, holders[i] += held[at];
            }
          }
        });
        return all;
      },
      {}, shape, {.threads = 1});
}

template <class Mlp> void check_slices(std::vector<mo::layout> const& shapes) {
  using spec = stored<Mlp>;
  auto const one = weights_of<spec>({});
  for (mo::layout const& shape : shapes) {
    joined const many = weights_of<spec>(shape);
    CHECK(many.values == one.values);
    for (auto const& [name, holders] : many.holders) {
      int const replicas = name.starts_with("experts.") ? shape.expert_data() : shape.stage();
      CHECK(std::all_of(holders.begin(), holders.end(), [&](int n) { return n == replicas; }));
    }
  }
}

}  // namespace

TEST_CASE("weights of any layout are slices of those of one rank, however they are stored") {
  std::vector<mo::layout> const split{{.data = 3, .expert = 3},
                                      {.data = 2, .tensor = 2, .expert = 2},
                                      {.data = 2, .expert_tensor = 2},
                                      {.data = 4, .expert = 2, .expert_tensor = 2},
                                      {.context = 3, .expert_tensor = 3}};
  std::vector<mo::layout> const whole{{.data = 3, .expert = 3}, {.data = 4, .expert = 2}};
  check_slices<mo::gated_mlp<mo::silu>>(split);
  check_slices<mo::mlp<mo::gelu>>(split);
  check_slices<mo::gated_mlp<mo::silu, mo::interleaved>>(split);
  check_slices<mo::gated_mlp<mo::silu, mo::in_by_out>>(split);
  check_slices<mo::gated_mlp<mo::silu, mo::down_in_by_out>>(split);
  check_slices<mo::gated_mlp<mo::silu, mo::interleaved, mo::in_by_out>>(split);
  check_slices<mo::gated_mlp<mo::silu, mo::concatenated>>(whole);
  check_slices<mo::gated_mlp<mo::silu, mo::biased>>(whole);
}
