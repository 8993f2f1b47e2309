// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/expert_parameters.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

constexpr mo::expert_sizes sizes{.experts = 4, .hidden = 3, .ffn = 5};

using tensors = std::vector<std::pair<std::string, std::vector<std::int64_t>>>;

/// Names and shapes; as many pointers, and the memory that is given holds as many values as are counted.
template <class Mlp> tensors listed() {
  using parameters = mo::detail::expert_parameters<Mlp, float>;
  tensors all;
  std::int64_t values = 0;
  for (mo::detail::expert_tensor const& of : parameters::tensors("experts", sizes)) {
    CHECK((of.fan_in == 0) == (of.name.find("bias") != std::string::npos));
    all.emplace_back(of.name, of.shape);
    std::int64_t size = 1;
    for (std::int64_t const extent : of.shape) size *= extent;
    values += size;
  }
  CHECK(values == sizes.experts * (parameters::matrix_values(sizes) + parameters::bias_values(sizes)));
  parameters of;
  std::size_t pointers = 0;
  parameters::visit(of, [&](float*& pointer) {
    CHECK(pointer == nullptr);
    ++pointers;
  });
  CHECK(pointers == all.size());
  return all;
}

}  // namespace

TEST_CASE("experts have the tensors of their MLP") {
  CHECK(listed<mo::gated_mlp<mo::silu>>() ==
        tensors{{"experts.gate", {4, 5, 3}}, {"experts.up", {4, 5, 3}}, {"experts.down", {4, 3, 5}}});
  CHECK(listed<mo::mlp<mo::relu, mo::biased>>() == tensors{{"experts.up", {4, 5, 3}},
                                                           {"experts.down", {4, 3, 5}},
                                                           {"experts.up_bias", {4, 5}},
                                                           {"experts.down_bias", {4, 3}}});
}

TEST_CASE("tensors have the names and shapes of how they lie") {
  CHECK(listed<mo::gated_mlp<mo::silu, mo::concatenated, mo::biased>>() == tensors{{"experts.gate_up", {4, 10, 3}},
                                                                                   {"experts.down", {4, 3, 5}},
                                                                                   {"experts.gate_up_bias", {4, 10}},
                                                                                   {"experts.down_bias", {4, 3}}});
  CHECK(listed<mo::gated_mlp<mo::silu, mo::interleaved, mo::in_by_out>>() ==
        tensors{{"experts.gate_up", {4, 3, 10}}, {"experts.down", {4, 5, 3}}});
  CHECK(listed<mo::gated_mlp<mo::silu, mo::separate, mo::in_by_out>>() ==
        tensors{{"experts.gate", {4, 3, 5}}, {"experts.up", {4, 3, 5}}, {"experts.down", {4, 5, 3}}});
  CHECK(listed<mo::mlp<mo::silu, mo::down_in_by_out>>() ==
        tensors{{"experts.up", {4, 5, 3}}, {"experts.down", {4, 5, 3}}});
}
