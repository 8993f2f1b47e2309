// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/router_parameters.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

struct plain {};
struct with_bias {
  static constexpr bool has_linear_bias = true, has_learned_noise = false;
};
struct with_both {
  static constexpr bool has_linear_bias = true, has_learned_noise = true;
};

/// What a router of 3 experts of 2 inputs has, each with its place.
template <class Router> std::vector<std::string> names() {
  std::vector<std::string> all;
  mo::detail::router_parameters<Router, float> of;
  of.visit(of, 3, 2,
           [&](float*& pointer, std::string const& name, std::vector<std::int64_t> const& shape, std::int64_t fan_in) {
             CHECK(pointer == nullptr);
             CHECK(shape == (name == "router.bias" ? std::vector<std::int64_t>{3} : std::vector<std::int64_t>{3, 2}));
             CHECK(fan_in == (name == "router.weight" ? 2 : 0));
             all.push_back(name);
           });
  return all;
}

}  // namespace

TEST_CASE("a router has the tensors that its roles ask for") {
  CHECK(names<plain>() == std::vector<std::string>{"router.weight"});
  CHECK(names<with_bias>() == std::vector<std::string>{"router.weight", "router.bias"});
  CHECK(names<with_both>() == std::vector<std::string>{"router.weight", "router.bias", "router.noise"});
  CHECK(names<mo::router<mo::softmax, mo::top_k<2>, mo::constant_logit_noise<>>>().size() == 1);
  CHECK(names<mo::router<mo::softmax, mo::top_k<2>, mo::logit_noise>>().size() == 2);
}

TEST_CASE("their values are counted") {
  using mo::detail::router_parameters;
  CHECK(router_parameters<plain, float>::values(3, 2) == 6);
  CHECK(router_parameters<with_bias, float>::values(3, 2) == 9);
  CHECK(router_parameters<with_both, float>::values(3, 2) == 15);
  CHECK(router_parameters<with_both, float>::matrix_values(3, 2) == 12);
}
