// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/describe.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <ratio>
#include <string>

namespace mo = moiety;

namespace {

struct own_score : mo::softmax {
  static constexpr int name = 0;
};

struct spec : mo::layer_spec<mo::dims{.hidden = 2048, .ffn = 768, .experts = 128}> {
  using router = mo::router<mo::sigmoid, mo::top_k<8>, mo::renormalised, mo::scale<std::ratio<5, 2>>>;
  using losses = mo::losses<mo::load_balance<mo::over::sequence>>;
};
struct beside : spec {
  using experts = mo::clamped_swiglu<std::ratio<7>, mo::biased, mo::interleaved, mo::in_by_out>;
  using shared = mo::shared_experts<2, mo::sigmoid_gated, mo::mlp<mo::relu, mo::down_in_by_out>>;
};
struct with_zeros : mo::resized<spec, mo::dims{.hidden = 8, .ffn = 4, .experts = 8, .zero_experts = 3, .latent = 5}> {};
struct own : spec {
  using router = mo::router<own_score, mo::top_k<1>>;
  using losses = mo::losses<>;
};

struct v3 : spec {
  using router = mo::router<mo::jitter<>, mo::linear_bias, mo::sigmoid, mo::selection_bias, mo::groups<8, 4>,
                            mo::top_k<8>, mo::renormalised, mo::on_input>;
  using capacity = mo::capacity<std::ratio<5, 4>, mo::drop::position, mo::per::sequence, mo::renormalise_after_drop>;
};
struct chosen : spec {
  using router = mo::router<mo::softmax, mo::expert_choice<2>, mo::on_activation>;
};

bool says(std::string const& text, char const* what) {
  INFO(text);
  CHECK(text.find(what) != std::string::npos);
  return true;
}

}  // namespace

TEST_CASE("a spec is described by its roles, sizes and costs") {
  std::string const text = mo::describe<spec>().text;
  says(text, "sigmoid, top_k<8>, weights renormalised x 2.5");
  says(text, "128 x gated_mlp<silu>, 3 matrices, hidden 2048, ffn 768");
  says(text, "load_balance over sequence");
  says(text, "604.2 M parameters, 38.01 M active");
  says(mo::describe<own>().text, "user-defined, top_k<1>, weights as_scored");
  says(mo::describe<own>().text, "losses   none");
}

TEST_CASE("options of experts, and shared experts, are described as a spec writes them") {
  std::string const text = mo::describe<beside>().text;
  says(text, "gated_mlp<gelu_quick, clamped 7, up + 1, biased, interleaved, in_by_out>, 3 matrices");
  says(text, "shared   2 x mlp<relu, down_in_by_out>, ffn of all 1536, sigmoid_gated");
  says(mo::describe<spec>().text, "ffn 768\nlosses");
  says(mo::describe<with_zeros>().text,
       "8 x gated_mlp<silu>, 3 matrices, hidden 8, ffn 4, latent 5, and 3 of no computation\n");
}

TEST_CASE("every role of a router, and a capacity, are described") {
  says(
      mo::describe<v3>().text,
      "router   jitter, linear_bias, sigmoid, selection_bias, groups<8, 4>, top_k<8>, weights renormalised on_input\n");
  says(mo::describe<v3>().text,
       "capacity 1.25 of the mean load, drops position per sequence, renormalise_after_drop\n");
  says(mo::describe<chosen>().text, "softmax, expert_choice, weights as_scored on_activation\n");
}

TEST_CASE("a layer is described with the work and the memory of a call") {
  using D = mo::deployment<>;
  constexpr mo::tokens of{16384};
  constexpr std::int64_t forward = mo::forward_flops<spec>(of), backward = mo::backward_flops<spec>(of),
                         weights = mo::weight_bytes<spec, D>, gradients = mo::gradient_bytes<spec, D>,
                         saved = mo::saved_bytes<spec, D>(of), workspace = mo::workspace_bytes<spec, D>(of);
  static_assert(0 < forward && forward < backward && saved != workspace);
  using mo::detail::scaled;
  mo::context<> ctx;
  std::string const text = mo::describe(mo::moe_layer<spec>{ctx}, of).text;
  CHECK(text == mo::describe<spec>().text +
                    "element  float, weights row_major, products grouped_products, of the router fma_products, "
                    "numerics invariant\n16384 tokens: " +
                    scaled(forward, "FLOP") + " forward, " + scaled(backward, "FLOP") + " backward\nmemory   weights " +
                    scaled(weights, "B") + ", gradients " + scaled(gradients, "B") + ", saved for backward " +
                    scaled(saved, "B") + ", workspace " + scaled(workspace, "B") + '\n');
  // Three products of 8 experts and one with the router, of 2 FLOPs a weight.
  says(text, "a token  76.02 MFLOP forward, ");
}

TEST_CASE("a layer whose experts are spread over ranks is described with the memory of one rank") {
  struct small : mo::resized<spec, mo::dims{.hidden = 64, .ffn = 48, .experts = 16}> {};
  struct spread : mo::deployment<mo::dynamic> {};
  for (mo::layout const& shape : {mo::layout{.data = 2, .expert = 2}, mo::layout{.data = 2, .expert_tensor = 2}}) {
    std::string const text = mo::run<spread>(
        [](mo::context<spread>& ctx) { return mo::describe(mo::moe_layer<small, spread>{ctx}, mo::tokens{100}).text; },
        {}, shape, {.threads = 1});
    mo::layer_bytes const of = mo::bytes_of_rank<small, spread>(shape, mo::tokens{100});
    constexpr std::int64_t experts = 16 * 3 * 64 * 48 * 4;
    CHECK(of.weights == mo::weight_bytes<small, spread> - experts / 2);
    CHECK(of.gradients == mo::gradient_bytes<small, spread> - experts / 2);
    using mo::detail::scaled;
    std::string const memory = "memory   weights " + scaled(of.weights, "B") + ", gradients " +
                               scaled(of.gradients, "B") + ", saved for backward " + scaled(of.saved, "B") +
                               ", workspace " + scaled(of.workspace, "B") + '\n';
    says(text, memory.c_str());
  }
}

TEST_CASE("large numbers are written with a prefix") {
  CHECK(mo::detail::scaled(std::int64_t{999}, "B") == "999 B");
  CHECK(mo::detail::scaled(std::int64_t{12345678}, "B") == "12.35 MB");
  CHECK(mo::detail::scaled(3e18, "FLOP") == "3000 PFLOP");
}
