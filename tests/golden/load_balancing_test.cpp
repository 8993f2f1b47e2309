// SPDX-License-Identifier: Apache-2.0
// load_balance beside load_balancing_loss_func of Hugging Face transformers, which takes all layers as one batch, and of which
// `convention::huggingface` is the ratio.
#include "golden/golden_file.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

struct in_double : mo::deployment<> {
  using element = double;
};

template <int Slots> void agrees(std::string const& model) {
  CAPTURE(model);
  golden::file const file(std::filesystem::path(__FILE__).parent_path() / "transformers" /
                          ("load_balancing_" + model + ".safetensors"));
  auto const experts = static_cast<std::int64_t>(file.number("config.num_experts"));
  auto const layers = static_cast<std::int64_t>(file.number("config.layers"));
  REQUIRE(file.number("config.num_experts_per_tok") == Slots);
  std::vector<double> const& given = file.reals("router_logits");
  std::int64_t const tokens = static_cast<std::int64_t>(given.size()) / experts;  // of all layers
  std::vector<std::uint8_t> mask;
  for (std::int64_t l = 0; l < layers; ++l)
    for (std::int64_t const m : file.integers("attention_mask")) mask.push_back(static_cast<std::uint8_t>(m));
  mo::context<in_double> ctx;
  mo::matrix_view<double const> const logits{given.data(), tokens, experts};
  mo::router<mo::softmax, mo::top_k<Slots>> const router;
  // One batch of all layers: then the convention's ratio is k, whatever the number of layers.
  constexpr double ratio = 1 / mo::convert_coefficient<mo::convention::unit, mo::convention::huggingface>(
                                   1, {.experts = 1, .slots = Slots, .layers = 1});
  CHECK(ratio == Slots);
  for (bool const masked : {false, true}) {
    std::string const suffix = masked ? "_masked" : "";
    mo::batch const about = masked ? mo::batch{.mask = mask} : mo::batch{};
    auto const stats = mo::statistics(ctx, logits, router, router.forward(ctx, logits, about));
    mo::load_balance<> const loss;
    CHECK(ratio * loss.value(stats) == doctest::Approx(file.reals("float64.loss" + suffix)[0]).epsilon(1e-12));
    mo::matrix<double> dlogits(tokens, experts);
    loss.gradient(ctx, stats, logits, router, dlogits);
    auto const& expected = file.reals("float64.grad.router_logits" + suffix);
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t e = 0; e < experts; ++e) {
        if (masked && mask[static_cast<std::size_t>(t)] == 0) continue;
        CHECK(std::abs(ratio * dlogits(t, e) - expected[static_cast<std::size_t>(t * experts + e)]) < 1e-12);
      }
  }
}

}  // namespace

TEST_CASE("the balance loss of Hugging Face is k times ours, of all layers as one batch") {
  agrees<2>("mixtral");
  agrees<3>("olmoe");
  agrees<2>("qwen3_moe");
}
