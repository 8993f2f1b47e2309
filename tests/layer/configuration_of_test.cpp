// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/configuration_of.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <ratio>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mo = moiety;

namespace {

using any = mo::deployment<mo::dynamic>;
struct in_double : any {
  using element = double;
};
struct fastest : any {
  using numerics = mo::numerics::fastest;
};
struct locally : any {
  using dispatcher = mo::local;
};

struct small : mo::layer_spec<mo::dims{.hidden = 12, .ffn = 7, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};
template <mo::dims Size> struct sized : small { static constexpr mo::dims size = Size; };
template <class Router> struct routed : small { using router = Router; };
struct plain : small {
  using experts = mo::mlp<mo::silu>;
};
struct sharing : small {
  using shared = mo::shared_experts<1>;
};
struct measured : small {
  using losses = mo::losses<mo::router_z>;
};
struct limited : small {
  using capacity = mo::capacity<std::ratio<1>>;
};

/// On how many of three ranks the words of a config_error have this part, where rank 1 has the other configuration.
int told(mo::configuration const& common, mo::configuration const& other, std::string const& part) {
  return mo::run<any>(
      [&](mo::context<any>& ctx) {
        int found = 0;
        try {
          (ctx.stage().rank() == 1 ? other : common).check(ctx.stage(), "a layer");
        } catch (mo::config_error const& e) {
          found = std::string(e.what()).find("the ranks of a layer disagree on " + part + ": that of rank 1 is not") !=
                  std::string::npos;
        }
        ctx.stage().all_reduce(std::span(&found, 1));
        return found;
      },
      {}, mo::layout{.data = 3}, {.threads = 1});
}

template <class Spec, class Deployment = any> mo::configuration of(mo::layer_options<Spec> const& options = {}) {
  return mo::configuration_of<Spec, Deployment>(options);
}

}  // namespace

TEST_CASE("each part of a spec and of a deployment that changes rows is compared, and named") {
  auto const common = of<small>();
  CHECK(told(common, of<sized<mo::dims{.hidden = 13, .ffn = 7, .experts = 4}>>(), "dims.hidden") == 3);
  CHECK(told(common, of<sized<mo::dims{.hidden = 12, .ffn = 8, .experts = 4}>>(), "dims.ffn") == 3);
  CHECK(told(common, of<sized<mo::dims{.hidden = 12, .ffn = 7, .experts = 5}>>(), "dims.experts") == 3);
  CHECK(told(common, of<sized<mo::dims{.hidden = 12, .ffn = 7, .experts = 4, .zero_experts = 1}>>(),
             "dims.zero_experts") == 3);
  CHECK(told(common, of<sized<mo::dims{.hidden = 12, .ffn = 7, .experts = 4, .latent = 3}>>(), "dims.latent") == 3);
  CHECK(told(common, of<routed<mo::router<mo::softmax, mo::top_k<3>>>>(), "router") == 3);
  CHECK(told(common, of<routed<mo::router<mo::sigmoid, mo::top_k<2>>>>(), "router") == 3);
  CHECK(told(common, of<plain>(), "experts") == 3);
  CHECK(told(common, of<sharing>(), "shared") == 3);
  CHECK(told(common, of<measured>(), "losses") == 3);
  CHECK(told(common, of<limited>(), "capacity") == 3);
  CHECK(told(common, of<small, in_double>(), "element") == 3);
  CHECK(told(common, of<small, locally>(), "dispatcher") == 3);
  CHECK(told(common, of<small, fastest>(), "numerics") == 3);
}

TEST_CASE("options are compared by their bits, and named") {
  auto const common = of<small>();
  CHECK(told(common, of<small>({.losses = {mo::load_balance<>{.coefficient = 1e-30f}}}),
             "options.losses.coefficient") == 3);
  CHECK(told(common, of<small>({.losses = {mo::load_balance<>{}, mo::router_z{.coefficient = 0.5f}}}),
             "options.losses.coefficient") == 3);
  CHECK(told(common, of<small>({.loss_scale = 2}), "options.loss_scale") == 3);
  CHECK(told(common, of<small>({.non_finite = mo::non_finite::sanitise}), "options.non_finite") == 3);
}

TEST_CASE("values of a router's policies are compared, and named") {
  using biased = routed<mo::router<mo::sigmoid, mo::selection_bias, mo::top_k<2>>>;
  using balanced = routed<mo::router<mo::sigmoid, mo::quantile_bias, mo::top_k<2>>>;
  using noisy = routed<mo::router<mo::jitter<>, mo::logit_noise, mo::softmax, mo::top_k<2>>>;
  using constant = routed<mo::router<mo::constant_logit_noise<>, mo::softmax, mo::top_k<2>>>;
  CHECK(told(of<biased>(), of<biased>({.router = {mo::selection_bias{.rate = 2e-3f}}}),
             "options.router selection_bias.rate") == 3);
  CHECK(told(of<biased>(), of<biased>({.router = {mo::selection_bias{.centred = true}}}),
             "options.router selection_bias.centred") == 3);
  CHECK(told(of<balanced>(), of<balanced>({.router = {mo::quantile_bias{.momentum = 0.5f}}}),
             "options.router quantile_bias.momentum") == 3);
  CHECK(told(of<noisy>(), of<noisy>({.router = {mo::jitter<>{.epsilon = 0.5f}}}), "options.router jitter.epsilon") ==
        3);
  CHECK(told(of<noisy>(), of<noisy>({.router = {mo::jitter<>{.key = mo::seed{1}}}}), "options.router jitter.key") == 3);
  CHECK(told(of<noisy>(), of<noisy>({.router = {mo::logit_noise{.floor = 0.5f}}}),
             "options.router logit_noise.floor") == 3);
  CHECK(told(of<constant>(), of<constant>({.router = {mo::constant_logit_noise<>{.value = 0.5f}}}),
             "options.router constant_logit_noise.value") == 3);
}

namespace {

/// A score rule of a user's, which names its value.
struct cooled {
  static constexpr std::string_view name = "cooled";
  float temperature = 1;
  void forward(mo::score_row auto& row) const {
    row.map([&](auto v) { return v / temperature; });
  }
  void backward(mo::score_row auto const&, mo::score_row auto& gradient) const {
    gradient.map([&](auto g) { return g / temperature; });
  }
  template <class F> void for_each_value(F const& f) const { f("temperature", temperature); }
};

}  // namespace

TEST_CASE("values of selections, score rules and weight rules are compared, and named") {
  using top_p = routed<mo::router<mo::softmax, mo::top_p<2>>>;
  using forced = routed<mo::router<mo::softmax, mo::forced<2>>>;
  using rounded = routed<mo::router<mo::softmax, mo::token_rounding<2>>>;
  using sparse = routed<mo::router<mo::softmax, mo::top_k<2>, mo::sparsemixer<>>>;
  using scored = routed<mo::router<cooled, mo::top_k<2>>>;
  CHECK(told(of<top_p>(), of<top_p>({.router = {mo::top_p<2>{.mass = 0.5f}}}), "options.router top_p.mass") == 3);
  CHECK(told(of<forced>(), of<forced>({.router = {mo::forced<2>{.key = mo::seed{1}}}}), "options.router forced.key") ==
        3);
  CHECK(told(of<rounded>(), of<rounded>({.router = {mo::token_rounding<2>{.key = mo::seed{1}}}}),
             "options.router token_rounding.key") == 3);
  CHECK(told(of<sparse>(), of<sparse>({.router = {mo::sparsemixer<>{.epsilon = 0.5f}}}),
             "options.router sparsemixer.epsilon") == 3);
  CHECK(told(of<scored>(), of<scored>({.router = {cooled{.temperature = 0.5f}}}),
             "options.router cooled.temperature") == 3);
}

TEST_CASE("the entries of a hash table are compared, and what it says, wherever it lies") {
  using hashed = routed<mo::router<mo::softmax, mo::hash<2>>>;
  std::vector<std::int32_t> const table{0, 1, 2, 3, 1, 3}, copy = table, other{0, 1, 2, 3, 1, 2};
  auto const with = [](std::vector<std::int32_t> const& at, std::int64_t entries) {
    return of<hashed>({.router = {mo::hash<2>{.table = at.data(), .entries = entries}}});
  };
  CHECK(told(with(table, 3), with(copy, 3), "") == 0);
  CHECK(told(with(table, 3), with(copy, 2), "options.router hash.entries") == 3);
  CHECK(told(with(table, 3), with(other, 3), "options.router hash.table") == 3);
  CHECK(told(with(table, 2), with(other, 2), "") == 0);  // rows behind the last are not read
  // What can never work is not read: the layer refuses it.
  auto const unsound = [](mo::hash<2> const& list) { return of<hashed>({.router = {list}}); };
  CHECK(told(with(table, 3), unsound({.entries = 3}), "options.router hash.table") == 3);
  CHECK(told(with(table, 3), unsound({.table = table.data(), .entries = -1}), "options.router hash.entries") == 3);
}

TEST_CASE("the same configuration is accepted, whatever ranks call their layers") {
  CHECK(told(of<small>(), of<small>({.name = "mine"}), "") == 0);
  auto const odd = of<small>({.losses = {mo::load_balance<>{.coefficient = 0.1f}}, .loss_scale = 1e30f});
  CHECK(told(odd, odd, "") == 0);
}

TEST_CASE("a layer of ranks that disagree throws on every rank, also where one rank's option can never work") {
  for (float const coefficient : {0.25f, -1.0f}) {
    int const refused = mo::run<any>(
        [&](mo::context<any>& ctx) {
          int caught = 0;
          try {
            mo::moe_layer<small, any> const layer{
                ctx, {.losses = {mo::load_balance<>{.coefficient = ctx.stage().rank() == 2 ? coefficient : 0.5f}}}};
          } catch (mo::config_error const& e) {
            caught = std::string(e.what()).find("options.losses.coefficient") != std::string::npos;
          }
          ctx.stage().all_reduce(std::span(&caught, 1));
          return caught;
        },
        {}, mo::layout{.data = 4, .expert = 2}, {.threads = 1});
    CHECK(refused == 4);
  }
}

TEST_CASE("ranks may make layers of different specs, and all hear of it") {
  int const refused = mo::run<any>(
      [](mo::context<any>& ctx) {
        int caught = 0;
        try {
          if (ctx.stage().rank() == 0)
            mo::moe_layer<small, any> const layer{ctx};
          else
            mo::moe_layer<measured, any> const layer{ctx};
        } catch (mo::config_error const& e) {
          caught = std::string(e.what()).find("disagree on losses") != std::string::npos;
        }
        ctx.stage().all_reduce(std::span(&caught, 1));
        return caught;
      },
      {}, mo::layout{.data = 2}, {.threads = 1});
  CHECK(refused == 2);
}
