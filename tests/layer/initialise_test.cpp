// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/initialise.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <map>
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
