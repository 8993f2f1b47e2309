// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/deployment.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <span>
#include <string>
#include <type_traits>

namespace mo = moiety;

TEST_CASE("the default deployment is host, float, one rank") {
  using plain = mo::deployment<>;
  CHECK(std::is_same_v<plain::backend, mo::host>);
  CHECK(std::is_same_v<plain::element, float>);
  CHECK(std::is_same_v<plain::transport, mo::self>);
  CHECK(std::is_same_v<plain::dispatcher, mo::local>);
  CHECK(std::is_same_v<plain::index_builder, mo::counting_sort>);
  CHECK(std::is_same_v<plain::expert_products, mo::grouped_products>);
  CHECK(std::is_same_v<plain::numerics, mo::numerics::invariant>);
  CHECK(plain::shape.world() == 1);
  CHECK(std::is_same_v<mo::context<>, mo::context<plain>>);
}

TEST_CASE("a derived deployment changes one role") {
  struct in_double : mo::deployment<> {
    using element = double;
  };
  mo::context<in_double> ctx;
  CHECK(std::is_same_v<decltype(ctx.matrix(1, 1)), mo::matrix<double>>);
  CHECK(ctx.data().size() == 1);
}

namespace {

using any = mo::deployment<mo::dynamic>;

template <class Mlp, mo::dims Size = mo::dims{.hidden = 8, .ffn = 6, .experts = 6}> struct of : mo::layer_spec<Size> {
  using router = mo::router<mo::softmax, mo::top_k<1>>;
  using experts = Mlp;
};

/// The words of the config_error that every rank got, or what else there was.
template <class Spec> std::string refusal(mo::layout const& shape) {
  return mo::run<any>(
      [](mo::context<any>& ctx) {
        std::string words = "accepted";
        try {
          mo::moe_layer<Spec, any> const layer{ctx};
        } catch (mo::config_error const& e) {
          words = e.what();
        }
        auto const all = ctx.world().template all_gather_v<char>({words.data(), words.size()});
        std::string expected;
        for (int r = 0; r < ctx.world().size(); ++r) expected += words;
        return std::string(all.begin(), all.end()) == expected ? words : "not the same on all ranks";
      },
      {}, shape, {.threads = 1});
}

}  // namespace

TEST_CASE("the dispatcher is what the layout needs, the transport too") {
  using two = mo::deployment<mo::layout{.data = 2}>;
  CHECK(std::is_same_v<two::transport, mo::threads>);
  CHECK(std::is_same_v<two::dispatcher, mo::local>);
  CHECK(std::is_same_v<mo::deployment<mo::layout{.data = 2, .expert = 2}>::dispatcher, mo::all_to_all>);
  CHECK(std::is_same_v<any::transport, mo::threads>);
  CHECK(any::shape.is_dynamic());
}

TEST_CASE("experts and units that do not divide are refused on every rank, with both numbers") {
  using plain = mo::gated_mlp<mo::silu>;
  CHECK(refusal<of<plain>>({.data = 4, .expert = 4}) == "an expert axis of 4 ranks does not divide 6 experts.");
  CHECK(refusal<of<plain>>({.data = 4, .expert_tensor = 4}) ==
        "an expert_tensor axis of 4 ranks does not divide an ffn of 6.");
  CHECK(refusal<of<plain, mo::dims{.hidden = 8, .ffn = 6, .experts = 1}>>({.data = 2, .expert = 2}) ==
        "an expert axis of 2 ranks does not divide 1 experts.");
  CHECK(refusal<of<plain, mo::dims{.hidden = 8, .ffn = 6, .experts = 5, .zero_experts = 1}>>(
            {.data = 2, .expert = 2}) == "an expert axis of 2 ranks does not divide 5 experts.");
  for (int const ranks : {1, 2, 3, 6}) CHECK(refusal<of<plain>>({.data = ranks, .expert = ranks}) == "accepted");
  for (int const ranks : {1, 2, 3, 6}) CHECK(refusal<of<plain>>({.data = ranks, .expert_tensor = ranks}) == "accepted");
}

TEST_CASE("experts with biases or concatenated inputs are spread whole alone") {
  mo::layout const split{.data = 2, .expert_tensor = 2}, spread{.data = 2, .expert = 2};
  std::string const words =
      "experts with biases, or with concatenated inputs, are not split over an expert_tensor axis.";
  CHECK(refusal<of<mo::gated_mlp<mo::silu, mo::biased>>>(split) == words);
  CHECK(refusal<of<mo::mlp<mo::gelu, mo::biased>>>(split) == words);
  CHECK(refusal<of<mo::gated_mlp<mo::silu, mo::concatenated>>>(split) == words);
  CHECK(refusal<of<mo::gated_mlp<mo::silu, mo::interleaved>>>(split) == "accepted");
  CHECK(refusal<of<mo::gated_mlp<mo::silu, mo::biased>>>(spread) == "accepted");
  CHECK(refusal<of<mo::gated_mlp<mo::silu, mo::concatenated>>>(spread) == "accepted");
}
