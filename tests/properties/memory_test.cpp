// SPDX-License-Identifier: Apache-2.0
// Promise 6 at sizes that grow: the memory of a step is what its costs say, for any number of tokens and experts; and of ranks
// that share the experts.
#include "counting_memory.hpp"

#include <moiety/dispatcher/all_gather.hpp>
#include <moiety/dispatcher/padded.hpp>
#include <moiety/experts/fp8.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <ratio>
#include <type_traits>
#include <vector>

namespace mo = moiety;

namespace {

template <int Experts> struct block : mo::layer_spec<mo::dims{.hidden = 40, .ffn = 24, .experts = Experts}> {
  using router = mo::router<mo::softmax, mo::top_k<4>>;
  using losses = mo::losses<mo::load_balance<mo::over::sequence>, mo::router_z>;
};

template <class T, class Layout> struct in : mo::deployment<> {
  using element = T;
  using weight_layout = Layout;
};

/// Where blocks of other sizes could serve what the rows of products want, or would stay beside it.
struct wide : mo::layer_spec<mo::dims{.hidden = 256, .ffn = 64, .experts = 8}> {
  using router = mo::router<mo::softmax, mo::top_k<4>>;
};
struct wide_and_shared : mo::layer_spec<mo::dims{.hidden = 64, .ffn = 32, .experts = 8}> {
  using router = mo::router<mo::softmax, mo::top_k<4>>;
  using shared = mo::shared_experts<1>;
};

template <class T> struct forward_in_fp8 : mo::deployment<> {
  using element = T;
  using expert_products = mo::fp8_block_forward_products;
};
template <class T> struct in_fp8 : mo::deployment<> {
  using element = T;
  using expert_products = mo::fp8_products;
};

/// The loads of the experts are even.
template <std::int64_t Ffn> struct even : mo::layer_spec<mo::dims{.hidden = 20, .ffn = Ffn, .experts = 8}> {
  using router = mo::router<mo::softmax, mo::forced<2, mo::imbalance::round_robin>>;
};
struct plain : even<12> {
  using experts = mo::mlp<mo::relu, mo::down_in_by_out>;
};
struct latent : even<12> {
  static constexpr mo::dims size{.hidden = 20, .ffn = 12, .experts = 8, .latent = 12};
  using shared = mo::shared_experts<1, mo::sigmoid_gated>;
};
struct biased : even<12> {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::linear_bias, mo::selection_bias>;
  using experts = mo::gated_mlp<mo::silu, mo::biased>;
};
struct limited : even<12> {
  using capacity = mo::capacity<std::ratio<5, 4>>;
};
struct limited_sequences : even<12> {
  using capacity = mo::capacity<std::ratio<5, 4>, mo::per::sequence>;
};

template <class T, class Dispatcher, class Layout = mo::row_major, class Products = mo::grouped_products>
struct spread : mo::deployment<mo::dynamic> {
  using element = T;
  using transport = mo::threads;
  using dispatcher = Dispatcher;
  using weight_layout = Layout;
  using expert_products = Products;
};

/// Counts for each thread what it asks for.
class by_thread final : public std::pmr::memory_resource {
 public:
  static counting& mine() {
    thread_local counting here;
    return here;
  }

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override { return mine().allocate(bytes, alignment); }
  void do_deallocate(void* block, std::size_t bytes, std::size_t alignment) override {
    mine().deallocate(block, bytes, alignment);
  }
  bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override { return this == &other; }
};

/// What a rank was seen to ask for, and how many rows its experts had room for.
struct seen {
  std::int64_t weights, gradients, saved, step, arrived, ffn;
};

template <class Spec, class D> std::vector<seen> on_ranks(mo::layout const& shape, std::int64_t tokens) {
  by_thread hook;
  std::vector<seen> all(static_cast<std::size_t>(shape.world()));
  mo::run<D>(
      [&](mo::context<D>& ctx) {
        seen& here = all[static_cast<std::size_t>(ctx.world().rank())];
        counting& mine = by_thread::mine();
        mo::moe_layer<Spec, D> layer{ctx};
        std::int64_t before = mine.live;
        auto weights = layer.make_weights(mo::seed{1});
        here.weights = mine.live - before, before = mine.live;
        auto gradients = layer.make_gradients();
        here.gradients = mine.live - before;
        constexpr std::int64_t hidden = mo::spec_of<Spec>::hidden;
        mo::matrix<typename D::element> x(tokens, hidden), y(tokens, hidden), dx(tokens, hidden);
        std::int64_t const first = ctx.stage().rank() * tokens;
        mo::fill_normal(ctx, x, mo::seed{2}, mo::first_row{first});
        ctx.memory().release();
        before = mine.most = mine.live;
        auto tape = layer.forward(weights, x, y, {.first_row = first});
        here.arrived = tape.size().arrived, here.ffn = tape.size().ffn;
        ctx.memory().release();
        here.saved = mine.live - before;
        layer.backward(weights, tape, y, dx, gradients);
        here.step = mine.most - before;
      },
      {}, shape, mo::host{.threads = 1, .memory = &hook});
  return all;
}

constexpr mo::tokens of_a_rank(64);

/// Weights and gradients to the byte; the rest, too, where no row travels, else without what rows travel by.
template <class Spec, class D> std::vector<seen> check_ranks(mo::layout const& shape) {
  INFO(mo::detail::sentence(shape));
  auto const all = on_ranks<Spec, D>(shape, of_a_rank.count);
  mo::layer_bytes const bytes = mo::bytes_of_rank<Spec, D>(shape, of_a_rank);
  mo::tokens const size = mo::detail::on_rank<Spec, D>(shape, of_a_rank);
  constexpr bool forced = std::is_same_v<typename Spec::router, even<12>::router>;
  for (seen const& rank : all) {
    CHECK(rank.weights == bytes.weights);
    CHECK(rank.gradients == bytes.gradients);
    CHECK(rank.ffn == size.ffn);
    if (!forced) continue;
    CHECK(rank.arrived == size.arrived);
    CHECK((D::dispatcher::travels ? rank.saved > bytes.saved : rank.saved == bytes.saved));
    CHECK((D::dispatcher::travels ? rank.step > bytes.saved + bytes.workspace
                                  : rank.step == bytes.saved + bytes.workspace));
  }
  return all;
}

/// What rows travel by does not depend on the width of an expert: between two widths the difference is what costs say.
template <class D> void check_widths(mo::layout const& shape) {
  auto const narrow = check_ranks<even<12>, D>(shape), wide = check_ranks<even<24>, D>(shape);
  auto const first = mo::bytes_of_rank<even<12>, D>(shape, of_a_rank),
             second = mo::bytes_of_rank<even<24>, D>(shape, of_a_rank);
  for (std::size_t r = 0; r < narrow.size(); ++r) {
    CHECK(wide[r].saved - narrow[r].saved == second.saved - first.saved);
    CHECK(wide[r].step - narrow[r].step == second.saved + second.workspace - first.saved - first.workspace);
  }
}

template <class Spec, class D> void check(std::int64_t count) {
  using T = typename D::element;
  constexpr std::int64_t hidden = mo::spec_of<Spec>::hidden;
  CAPTURE(count);
  CAPTURE(mo::spec_of<Spec>::experts);
  counting hook;
  mo::context<D> ctx{mo::host{.threads = 2, .memory = &hook}};
  mo::moe_layer<Spec, D> layer{ctx, {}};
  auto weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  std::int64_t const kept =
      2 * mo::host_engine::scratch_bytes + mo::weight_bytes<Spec, D> + mo::gradient_bytes<Spec, D>;
  CHECK(hook.live == kept);
  mo::matrix<T> x(count, hidden), y(count, hidden), dx(count, hidden);
  mo::fill_normal(ctx, x, mo::seed{2});
  std::vector<std::int64_t> const sequences{0, count / 4, count};
  mo::tokens const size(count, 2);
  std::int64_t const saved = mo::saved_bytes<Spec, D>(size), workspace = mo::workspace_bytes<Spec, D>(size);
  std::int64_t const shared = mo::layer_workspace<Spec, D>(size);

  // Each call on an arena that holds nothing else.
  ctx.memory().release();
  hook.most = hook.live;
  std::int64_t working = 0;
  {
    auto tape = layer.forward(weights, x, y, {.sequences = sequences});
    working = hook.most - kept - saved;
    CHECK(working == shared);
    ctx.memory().release();
    CHECK(hook.live == kept + saved);
    hook.most = hook.live;
    layer.backward(weights, tape, y, dx, gradients);
    working = std::max(working, hook.most - kept - saved);
  }
  ctx.memory().release();
  CHECK(hook.live == kept);
  hook.most = hook.live;
  layer.infer(weights, x, y, {.sequences = sequences});
  CHECK(std::max(working, hook.most - kept) == workspace);

  // A whole step without a release between its calls takes no more, and the next step adds nothing.
  ctx.memory().release();
  hook.most = hook.live;
  std::int64_t most = 0;
  for (int again = 0; again < 2; ++again) {
    auto tape = layer.forward(weights, x, y, {.sequences = sequences});
    layer.backward(weights, tape, y, dx, gradients);
    if (again == 0) most = hook.most;
    CHECK(hook.most == most);
    CHECK(most == kept + saved + mo::pending_plan<Spec, T>(size).block.bytes() + shared);
    CHECK(most <= kept + saved + workspace);
  }
}

}  // namespace

TEST_CASE("memory is what the costs say") {
  for (std::int64_t const count : {0, 1, 64}) {
    check<block<8>, in<float, mo::row_major>>(count);
    check<block<32>, in<mo::bf16, mo::packed>>(count);
    check<block<8>, in_fp8<mo::bf16>>(count);
    check<wide, in_fp8<mo::bf16>>(count);
    check<wide_and_shared, in_fp8<mo::bf16>>(count);
    check<wide_and_shared, forward_in_fp8<float>>(count);
  }
}

TEST_CASE("a rank that holds a share of the experts has what its costs say") {
  constexpr mo::layout two{.data = 2, .expert = 2}, four{.data = 4, .expert = 4}, twice{.data = 4, .expert = 2},
      split{.data = 2, .expert_tensor = 2}, both{.data = 4, .expert = 2, .expert_tensor = 2};
  for (mo::layout const& shape : {two, four, twice, split, both})
    check_widths<spread<float, mo::all_to_all, mo::packed>>(shape);
  for (mo::layout const& shape : {four, both}) {
    check_ranks<latent, spread<float, mo::all_to_all>>(shape);
    check_ranks<plain, spread<double, mo::all_gather_tokens>>(shape);
    check_ranks<even<12>, spread<mo::bf16, mo::all_to_all, mo::row_major, mo::fp8_products>>(shape);
    check_ranks<limited, spread<float, mo::padded_all_to_all<64>>>(shape);
  }
  check_ranks<biased, spread<mo::bf16, mo::chunked<2>>>(twice);
  for (mo::layout const& shape : {two, mo::layout{.data = 2, .context = 2, .expert = 2}})
    check_ranks<limited_sequences, spread<float, mo::padded_all_to_all<64>>>(shape);
  check_ranks<limited, spread<float, mo::local>>({.data = 2});
}

TEST_SUITE("long") {
  TEST_CASE("memory grows with the tokens of a call as its costs say") {
    for (std::int64_t const count : {64, 1024, 16384, 65536}) {
      check<block<32>, in<float, mo::row_major>>(count);
      check<block<32>, in<mo::bf16, mo::packed>>(count);
      check<block<32>, in_fp8<mo::bf16>>(count);
    }
  }

  TEST_CASE("memory grows with the experts of a layer as its costs say, slots being the same") {
    auto const each = [](auto element) {
      using T = decltype(element);
      check<block<8>, in<T, mo::row_major>>(4096);
      check<block<32>, in<T, mo::packed>>(4096);
      check<block<128>, in<T, mo::row_major>>(4096);
      check<block<384>, in<T, mo::packed>>(4096);
    };
    each(float{}), each(mo::bf16{});
  }
}
