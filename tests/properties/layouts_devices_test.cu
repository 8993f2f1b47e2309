// SPDX-License-Identifier: Apache-2.0
// Ranks that share a device give the answer of one rank on it, and that of ranks on the host.
#include "properties/ranks.hpp"

#include "device_memory.hpp"

#include <moiety/cuda.cuh>

#include <moiety/dispatcher/all_gather.hpp>
#include <moiety/dispatcher/all_to_all.hpp>
#include <moiety/dispatcher/local.hpp>
#include <moiety/dispatcher/padded.hpp>
#include <moiety/dispatcher/two_level.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <ratio>
#include <stdexcept>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

using by_sequence = mo::load_balance<mo::over::sequence>;
using plain = ranks::small<ranks::softmax_2>;
using in_sequences = ranks::small<ranks::softmax_2, by_sequence>;
struct weighted : ranks::small<mo::router<mo::sigmoid, mo::selection_bias, mo::top_k<2>, mo::on_activation>> {
  using experts = mo::mlp<mo::gelu_tanh, mo::biased>;  // erf is that of each library
};
struct beside : mo::layer_spec<mo::dims{.hidden = 20, .ffn = 12, .experts = 8, .zero_experts = 3, .latent = 8}> {
  using router = mo::router<mo::softmax, mo::top_k<3>>;
  using shared = mo::shared_experts<1>;
  using losses = mo::losses<mo::load_balance<>>;
};
template <class Base, class... Options> struct limited : Base {
  using capacity = mo::capacity<std::ratio<3, 4>, Options...>;
};
using on_input = ranks::small<mo::router<mo::sigmoid, mo::top_k<3>, mo::on_input>>;
using brought = ranks::small<mo::router<mo::softmax, mo::precomputed<2>>>;
struct with_noise : mo::layer_spec<ranks::size> {
  using router = mo::router<mo::logit_noise, mo::softmax, mo::top_k<2>, mo::jitter<>>;
  using losses = mo::losses<mo::noisy_load<>>;
};

template <class Spec, class T, class Dispatcher = mo::all_to_all>
ranks::outcome<T> on_device(mo::layout const& shape, std::vector<ranks::cut> const& tokens,
                            ranks::tokens_of_all const& about) {
  return ranks::step_on<Spec, T, Dispatcher, mo::threads, mo::cuda>(shape, tokens, ranks::trained<Spec>(), about);
}

/// A spec on layouts against one rank of the device, and that against one of the host.
template <class Spec, class T, class Dispatcher = mo::all_to_all>
void check(std::vector<mo::layout> const& shapes, ranks::tokens_of_all const& about = {},
           std::vector<ranks::share> const& shares = {ranks::share::uneven}) {
  constexpr bool chains = std::same_as<T, float> || std::same_as<T, double>;
  auto const one = on_device<Spec, T>({}, {{64}}, about);
  auto const host = ranks::step_on<Spec, T>({}, {{64}}, ranks::trained<Spec>(), about);
  if (mo::spec_of<Spec>::capacity_type::drops) CHECK(ranks::total(one.dropped) > 8);
  CHECK(std::any_of(one.y.begin(), one.y.end(), [](T v) { return static_cast<double>(v) != 0; }));
  ranks::check_routing(one, host);
  if (chains && !mo::spec_of<Spec>::router_type::has_jitter) CHECK(ranks::same_bits(one.y, host.y));
  ranks::check_gradients(one, host, false, chains ? 4e-6 : 1e-2);
  for (mo::layout const& shape : shapes)
    for (ranks::share const how : shares) {
      INFO(mo::detail::sentence(shape), " ", static_cast<int>(how));
      ranks::check_same(on_device<Spec, T, Dispatcher>(shape, {ranks::tokens_of(shape.stage(), how)}, about), one,
                        shape);
    }
}

}  // namespace

TEST_CASE("experts on every rank, on two and on four") {
  check<plain, float>(
      {{.data = 2}, {.data = 2, .expert = 2}, {.data = 4, .expert = 2}, {.data = 2, .tensor = 2, .expert = 4}}, {},
      {ranks::share::even, ranks::share::uneven, ranks::share::one_rank});
  check<plain, mo::bf16>({{.data = 2, .expert = 2}});
}

TEST_CASE("experts on every rank, in other number types" * doctest::test_suite("long")) {
  check<plain, double>({{.data = 2, .context = 2, .expert = 4}});
  check<plain, mo::bf16>({{.data = 2, .expert_tensor = 2}});
}

TEST_CASE("sequences that ranks share, and padding") {
  ranks::tokens_of_all about{.mask = std::vector<std::uint8_t>(64, 1), .sequences = {0, 20, 33, 64}};
  for (std::size_t const t : {0, 7, 8, 30, 63}) about.mask[t] = 0;
  check<in_sequences, float>({{.tensor = 2, .context = 2, .expert = 4}, {.context = 2, .expert = 2}}, about);
}

TEST_CASE("all tokens to the same experts") {
  ranks::tokens_of_all about;
  for (int t = 0; t < 64; ++t) about.experts.insert(about.experts.end(), {5, 6});
  check<brought, float>({{.data = 4, .expert = 4}}, about);
}

TEST_CASE("weights on activations or inputs, biases, shared and zero-compute experts, latent widths, noise") {
  check<weighted, float>({{.data = 4, .expert = 4}});
  check<on_input, float>({{.data = 2, .expert = 2}});
  check<beside, float>({{.data = 2, .expert = 2}});
  check<with_noise, float>({{.data = 2, .expert = 2}});
}

TEST_CASE("capacities over the tokens of all ranks, and of sequences that ranks share") {
  check<limited<plain>, float>({{.data = 2}, {.data = 4, .expert = 2}, {.data = 2, .expert_tensor = 2}});
  check<limited<plain, mo::drop::position>, double>({{.data = 2, .context = 2, .expert = 4}});
  check<limited<plain, mo::drop::priority, mo::renormalise_after_drop>, float>({{.data = 4, .expert = 4}});
  check<limited<plain, mo::drop::random>, float, mo::local>({{.data = 2}, {.tensor = 2, .context = 2}});
  check<limited<in_sequences, mo::per::sequence>, float>(
      {{.tensor = 2, .context = 2, .expert = 4}, {.context = 2, .expert = 2}}, {.sequences = {0, 20, 33, 64}});
}

TEST_CASE("messages of one size, which the host knows nothing of") {
  using by_rank = mo::padded_all_to_all<64>;
  check<limited<plain>, float, by_rank>(
      {{.data = 2, .expert = 2}, {.data = 4, .expert = 2}, {.data = 4, .expert = 2, .expert_tensor = 2}}, {},
      {ranks::share::uneven, ranks::share::one_rank});
  check<limited<plain, mo::drop::priority>, mo::bf16, mo::keep_rows<by_rank>>({{.data = 4, .expert = 4}});
  check<limited<on_input>, double, by_rank>({{.data = 2, .expert = 2}});
  check<limited<in_sequences, mo::per::sequence>, float, mo::padded_all_to_all<16, 7>>(
      {{.data = 4, .expert = 4}}, {.sequences = {0, 7, 16, 17, 32, 48, 57, 64}});  // none is on two ranks
}

TEST_CASE("every token on every rank") {
  check<plain, float, mo::all_gather_tokens>(
      {{.data = 2, .expert = 2}, {.data = 4, .expert = 2}, {.data = 4, .expert = 4}});
  check<on_input, float, mo::all_gather_tokens>({{.data = 2, .expert = 2}});
  check<plain, mo::bf16, mo::keep_rows<mo::all_gather_tokens>>({{.data = 2, .expert_tensor = 2}});
}

TEST_CASE("rows kept, experts in parts, nodes, and experts that ranks split") {
  check<weighted, float, mo::keep_rows<mo::all_to_all>>({{.data = 4, .expert = 4}});
  check<plain, float, mo::two_level<2>>({{.data = 4, .expert = 4}});
  check<plain, float, mo::chunked<2>>({{.data = 2, .expert = 2}, {.data = 4, .expert = 2, .expert_tensor = 2}});
}

namespace {

struct four_ranks : mo::deployment<mo::layout{.data = 4, .expert = 4}> {
  using backend = mo::cuda;
};

/// A layer with inputs of 6 tokens a rank.
struct bench {
  mo::context<four_ranks>& ctx;
  mo::moe_layer<plain, four_ranks> layer{ctx, ranks::trained<plain>()};
  mo::moe_layer<plain, four_ranks>::weights_type weights = layer.make_weights(mo::seed{4});
  mo::moe_layer<plain, four_ranks>::gradients_type gradients = layer.make_gradients();
  mo::device_matrix<float> x = ctx.matrix(6, 20), y = ctx.matrix(6, 20), dy = ctx.matrix(6, 20), dx = ctx.matrix(6, 20);

  explicit bench(mo::context<four_ranks>& of) : ctx(of) {
    mo::first_row const first{std::int64_t{6} * ctx.stage().rank()};
    mo::fill_normal(ctx, x, mo::seed{1}, first);
    mo::fill_normal(ctx, dy, mo::seed{2}, first);
  }
  void step() {
    gradients.reset();
    auto tape = layer.forward(weights, x, y);
    layer.backward(weights, tape, dy, dx, gradients);
  }
  std::vector<float> all_dx() { return mo::all_gather(ctx.stage(), dx); }
};

}  // namespace

TEST_CASE("later steps allocate nothing, and memory goes back when the ranks end") {
  testing::counted_device_memory hook;
  mo::run<four_ranks>(
      [&](mo::context<four_ranks>& ctx) {
        bench of(ctx);
        for (int i = 0; i < 2; ++i) of.step();  // in the second the arena settles which block serves what
        auto const first = of.all_dx();
        ctx.stage().barrier();
        std::int64_t const blocks = hook.blocks;
        ctx.stage().barrier();
        for (int i = 0; i < 3; ++i) of.step();
        ctx.stage().barrier();
        if (hook.blocks != blocks) throw std::logic_error("a later step allocated");
        if (!ranks::same_bits(of.all_dx(), first)) throw std::logic_error("a later step has other bits");
      },
      {}, four_ranks::shape, mo::cuda{.memory = &hook});
  CHECK(hook.live == 0);
}

TEST_CASE("what one rank refuses is refused on all, and they go on") {
  testing::counted_device_memory hook;
  std::vector<int> const told = mo::run<four_ranks>(
      [&](mo::context<four_ranks>& ctx) {
        bench of(ctx);
        of.step();
        auto const wanted = of.all_dx();
        bool const here = ctx.stage().rank() == 2;
        std::string said;
        try {
          auto const y = here ? of.y.rows(0, 5) : of.y.view();
          static_cast<void>(of.layer.forward(of.weights, of.x, y));
        } catch (mo::data_error const& e) {
          said = e.what();
        }
        int mine = said.find("needs y of the shape [6 x 20], but was given [5 x 20].") != std::string::npos &&
                   (here || said.find("rank 2 of the 4") != std::string::npos);
        of.step();
        mine += ranks::same_bits(of.all_dx(), wanted);
        return ctx.stage().all_gather_v<int>({&mine, 1});
      },
      {}, four_ranks::shape, mo::cuda{.memory = &hook});
  CHECK(told == std::vector<int>(4, 2));
  CHECK(hook.live == 0);
}

TEST_CASE("a rank that throws between calls ends the others' waiting, and all memory goes back") {
  testing::counted_device_memory hook;
  std::atomic<int> heard{0};
  auto const body = [&](mo::context<four_ranks>& ctx) {
    bench of(ctx);
    auto tape = of.layer.forward(of.weights, of.x, of.y);
    if (ctx.stage().rank() == 1) throw std::runtime_error("rank 1 gives up.");
    try {
      of.layer.backward(of.weights, tape, of.dy, of.dx, of.gradients);
    } catch (mo::comm_error const& e) {
      heard += e.rank == 1;
      throw;
    }
  };
  CHECK_THROWS_WITH_AS(mo::run<four_ranks>(body, {}, four_ranks::shape, mo::cuda{.memory = &hook}), "rank 1 gives up.",
                       std::runtime_error);
  CHECK(heard == 3);
  CHECK(hook.live == 0);
}
