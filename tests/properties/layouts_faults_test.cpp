// SPDX-License-Identifier: Apache-2.0
// What goes wrong on one rank ends the call on all, in bounded time: before anything is written where the ranks can still
// tell each other, and then their layers work again.
#include "properties/ranks.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory_resource>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

using spread = ranks::spread<float>;
using context = mo::context<spread>;

struct plain : mo::layer_spec<mo::dims{.hidden = 10, .ffn = 6, .experts = 4}> {
  using router = ranks::softmax_2;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
  using shared = mo::shared_experts<1>;
};

/// Silu, which throws where it is told to, on the rank that runs it.
struct fragile {
  static inline thread_local bool breaks = false;
  template <std::floating_point S> static S value(S v) {
    if (breaks) throw std::runtime_error("the activation broke.");
    return mo::silu::value(v);
  }
  template <std::floating_point S> static S derivative(S v) { return mo::silu::derivative(v); }
};
struct breaking : plain {
  using experts = mo::gated_mlp<fragile>;
};

/// What a call threw on one rank: 'd'ata, 'c'onfig, 's'tate, 'm'emory, c'o'mm, 'e'lse, or '-'; and its words.
struct heard {
  char kind;
  std::string words;
};
template <class Call> heard hear(Call const& call) {
  try {
    call();
  } catch (mo::data_error const& e) {
    return {'d', e.what()};
  } catch (mo::config_error const& e) {
    return {'c', e.what()};
  } catch (mo::state_error const& e) {
    return {'s', e.what()};
  } catch (mo::comm_error const& e) {
    return {'o', e.what()};
  } catch (std::bad_alloc const& e) {
    return {'m', e.what()};
  } catch (std::exception const& e) {
    return {'e', e.what()};
  }
  return {'-', ""};
}

/// A layer of plain, with inputs of 6 tokens a rank.
struct bench {
  context& ctx;
  mo::moe_layer<plain, spread> layer{ctx};
  mo::moe_layer<plain, spread>::weights_type weights = layer.make_weights(mo::seed{4});
  mo::matrix<float> x = ctx.matrix(6, 10), y = ctx.matrix(6, 10), dy = ctx.matrix(6, 10), dx = ctx.matrix(6, 10);

  explicit bench(context& of) : ctx(of) {
    mo::fill_normal(ctx, x, mo::seed{1}, first());
    mo::fill_normal(ctx, dy, mo::seed{2}, first());
    std::fill_n(y.data(), y.size(), -5.0f);
  }
  mo::first_row first() const { return mo::first_row{std::int64_t{6} * ctx.stage().rank()}; }
  bool untouched() const {
    return std::all_of(y.begin(), y.end(), [](float v) { return v == -5; });
  }

  /// The bits of a step, of all ranks.
  std::vector<float> step() {
    auto tape = layer.forward(weights, x, y);
    auto gradients = layer.make_gradients();
    layer.backward(weights, tape, dy, dx, gradients);
    auto all = mo::all_gather(ctx.stage(), y);
    auto const more = mo::all_gather(ctx.stage(), dx);
    all.insert(all.end(), more.begin(), more.end());
    gradients.for_each([&](mo::parameter const&, std::span<float> values) {
      auto const of_all = ctx.stage().all_gather_v<float>(values);
      all.insert(all.end(), of_all.begin(), of_all.end());
    });
    return all;
  }
};

std::vector<mo::layout> const layouts{
    {.data = 3}, {.data = 4, .expert = 4}, {.data = 2, .tensor = 2, .expert = 2}, {.data = 4, .expert_tensor = 2}};

/// A call that goes wrong on the last rank: how, and what that rank hears.
struct fault {
  char const* name;
  char kind;
  char const* words;
  std::function<void(bench&, bool here)> call;
};

/// Runs the fault on every layout: the last rank hears its own error, the others one of its kind that names it; y is untouched;
/// a step afterwards has the bits of one that nothing went before.
void check(fault const& of) {
  INFO(std::string(of.name));
  for (mo::layout const& shape : layouts) {
    int const last = shape.stage() - 1;
    std::string const wrong = mo::run<spread>(
        [&](context& ctx) {
          bool const here = ctx.stage().rank() == last;
          auto const expected = bench(ctx).step();
          bench b(ctx);
          std::string mine;
          for (int turn = 0; turn < 2; ++turn) {
            heard const got = hear([&] { of.call(b, here); });
            std::string const told = "rank " + std::to_string(last) + " of the " + std::to_string(last + 1) +
                                     " that call together refused: ";
            if (got.kind != of.kind || got.words.find(of.words) == std::string::npos ||
                (!here && got.words.find(told) != 0))
              mine += "heard " + std::string(1, got.kind) + ' ' + got.words + '\n';
            if (!b.untouched()) mine += "y was written\n";
          }
          if (b.step() != expected) mine += "another step afterwards\n";
          auto const all = ctx.stage().all_gather_v<char>({mine.data(), mine.size()});
          return std::string(all.begin(), all.end());
        },
        {}, shape, {.threads = 1});
    CHECK(wrong == "");
  }
}

}  // namespace

TEST_CASE("logits that are not finite on one rank") {
  check({"NaN in x", 'd', "not all finite", [](bench& b, bool here) {
           mo::matrix<float> x = b.ctx.matrix(6, 10);
           std::copy(b.x.begin(), b.x.end(), x.data());
           if (here) x(3, 2) = std::numeric_limits<float>::quiet_NaN();
           b.layer.forward(b.weights, x, b.y);
         }});
  check({"infinity in infer", 'd', "not all finite", [](bench& b, bool here) {
           mo::matrix<float> x = b.ctx.matrix(6, 10);
           std::copy(b.x.begin(), b.x.end(), x.data());
           if (here) x(0, 0) = std::numeric_limits<float>::infinity();
           b.layer.infer(b.weights, x, b.y);
         }});
}

TEST_CASE("arguments of one rank that do not fit") {
  check({"a wrong width", 'd', "needs x of the shape [6 x 10]", [](bench& b, bool here) {
           mo::matrix<float> const narrow = b.ctx.matrix(6, 9);
           b.layer.forward(b.weights, here ? mo::matrix_view<float const>(narrow) : b.x, b.y);
         }});
  check({"y in place of x", 'd', "overlaps",
         [](bench& b, bool here) { b.layer.forward(b.weights, here ? mo::matrix_view<float const>(b.y) : b.x, b.y); }});
  check({"too short a mask", 'd', "mo::batch{.mask} has 5 entries", [](bench& b, bool here) {
           std::vector<std::uint8_t> const mask(here ? 5 : 6, 1);
           b.layer.forward(b.weights, b.x, b.y, {.mask = mask});
         }});
}

TEST_CASE("more slots on one rank than rows have an index for") {
  std::int64_t const tokens = std::int64_t{1} << 40;  // nothing of them is read, so there are none
  check({"2^40 tokens", 'd', "1099511627776 tokens of 2 slots each do not fit a row index of 32 bits.",
         [&](bench& b, bool here) {
           if (!here) return b.layer.infer(b.weights, b.x, b.y);
           auto const beyond = reinterpret_cast<std::uintptr_t>(b.x.data()) + tokens * 10 * sizeof(float);
           mo::matrix_view<float const> const x(b.x.data(), tokens, 10);
           b.layer.infer(b.weights, x, {reinterpret_cast<float*>(beyond), tokens, 10});
         }});
}

TEST_CASE("memory that one rank cannot have, before tokens travel") {
  class failing : public std::pmr::memory_resource {
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
      if (refuses()) throw std::bad_alloc();
      return std::pmr::new_delete_resource()->allocate(bytes, alignment);
    }
    void do_deallocate(void* block, std::size_t bytes, std::size_t alignment) override {
      std::pmr::new_delete_resource()->deallocate(block, bytes, alignment);
    }
    bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override { return this == &other; }

   public:
    static bool& refuses() {
      static thread_local bool on_this_rank = false;
      return on_this_rank;
    }
  };
  failing memory;
  for (mo::layout const& shape : layouts)
    for (bool const keeps : {true, false}) {
      int const last = shape.stage() - 1;
      std::string const wrong = mo::run<spread>(
          [&](context& ctx) {
            bench b(ctx);
            auto const expected = b.step();
            std::copy_n(std::vector<float>(b.y.size(), -5.0f).data(), b.y.size(), b.y.data());
            ctx.memory().release();
            failing::refuses() = ctx.stage().rank() == last;
            heard const got = hear([&] {
              keeps ? static_cast<void>(b.layer.forward(b.weights, b.x, b.y)) : b.layer.infer(b.weights, b.x, b.y);
            });
            failing::refuses() = false;
            std::string const told = "rank " + std::to_string(last) + " of the " + std::to_string(last + 1) +
                                     " that call together refused: out of memory";
            std::string mine;
            if (got.kind != 'm' || got.words.find(ctx.stage().rank() == last ? "out of memory" : told) != 0)
              mine += "heard " + std::string(1, got.kind) + ' ' + got.words + '\n';
            if (!b.untouched()) mine += "y was written\n";
            if (b.step() != expected) mine += "another step afterwards\n";
            auto const all = ctx.stage().all_gather_v<char>({mine.data(), mine.size()});
            return std::string(all.begin(), all.end());
          },
          {}, shape, {.threads = 1, .memory = &memory});
      CHECK(wrong == "");
    }
}

TEST_CASE("memory that runs out on one rank at any moment ends the call on all, in bounded time") {
  /// Refuses the n-th request of the thread that asked for it to.
  class refusing : public std::pmr::memory_resource {
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
      if (left() >= 0 && left()-- == 0) throw std::bad_alloc();
      return std::pmr::new_delete_resource()->allocate(bytes, alignment);
    }
    void do_deallocate(void* block, std::size_t bytes, std::size_t alignment) override {
      std::pmr::new_delete_resource()->deallocate(block, bytes, alignment);
    }
    bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override { return this == &other; }

   public:
    static int& left() {
      static thread_local int n = -1;
      return n;
    }
  };
  refusing memory;
  int refused = 0;
  auto const begin = std::chrono::steady_clock::now();
  for (int request = 0; request < 60; ++request) {
    std::vector<char> kinds(3);
    bool thrown = false;
    try {
      mo::run<spread>(
          [&](context& ctx) {
            bench b(ctx);
            ctx.memory().release();
            if (ctx.stage().rank() == 1) refusing::left() = request;
            char& kind = kinds[static_cast<std::size_t>(ctx.stage().rank())];
            heard const got = hear([&] { b.step(); });
            refusing::left() = -1;
            kind = got.kind;
            if (kind != '-') throw std::runtime_error(got.words);
          },
          {.deadline = std::chrono::seconds(60)}, mo::layout{.data = 3, .expert = 1, .expert_tensor = 3},
          {.threads = 1, .memory = &memory});
    } catch (std::exception const&) {
      thrown = true;
    }
    if (!thrown) {
      CHECK(kinds == std::vector<char>(3, '-'));
      break;
    }
    ++refused;
    CHECK(kinds[1] == 'm');
    // Another rank hears of it, or was already done.
    for (std::size_t const other : {0u, 2u}) CHECK(std::string("mo-").find(kinds[other]) != std::string::npos);
  }
  CHECK(refused >= 5);
  CHECK(refused < 60);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(60));
}

TEST_CASE("an expert that throws on one rank ends the run with what it threw, and the others hear of it") {
  for (mo::layout const& shape : layouts) {
    std::vector<char> kinds(static_cast<std::size_t>(shape.stage()));
    CHECK_THROWS_WITH_AS(mo::run<spread>(
                             [&](context& ctx) {
                               mo::moe_layer<breaking, spread> layer{ctx};
                               auto weights = layer.make_weights(mo::seed{4});
                               auto x = ctx.matrix(30, 10), y = ctx.matrix(30, 10);
                               mo::fill_normal(ctx, x, mo::seed{1}, mo::first_row{30 * ctx.stage().rank()});
                               fragile::breaks = ctx.stage().rank() == 1;
                               heard const got = hear([&] {
                                 layer.forward(weights, x, y);
                                 ctx.stage().barrier();
                               });
                               kinds[static_cast<std::size_t>(ctx.stage().rank())] = got.kind;
                               if (got.kind == 'e') throw std::runtime_error(got.words);
                               if (got.kind == 'o') throw mo::comm_error(mo::comm_fault::remote, "", 1, 0, got.words);
                             },
                             {.deadline = std::chrono::seconds(60)}, shape, {.threads = 1}),
                         "the activation broke.", std::runtime_error);
    for (std::size_t r = 0; r < kinds.size(); ++r) CHECK(kinds[r] == (r == 1 ? 'e' : 'o'));
  }
}

TEST_CASE("ranks that call for different steps, or one infer, are told, and can go on") {
  std::string const heard_by_all = mo::run<spread>(
      [](context& ctx) {
        bench b(ctx);
        bool const second = ctx.stage().rank() == 1;
        auto const expected = b.step();
        heard const step = hear([&] { b.layer.forward(b.weights, b.x, b.y, {.step = second ? 8 : 7}); });
        heard const call = hear([&] {
          second ? b.layer.infer(b.weights, b.x, b.y) : static_cast<void>(b.layer.forward(b.weights, b.x, b.y));
        });
        std::string mine;
        mine += step.kind, mine += call.kind;
        mine += step.words.find("calls forward in step 8") != std::string::npos ? '+' : '!';
        mine += call.words.find("calls infer in step 0") != std::string::npos ? '+' : '!';
        mine += b.step() == expected ? '+' : '!';
        auto const all = ctx.stage().all_gather_v<char>({mine.data(), mine.size()});
        return std::string(all.begin(), all.end());
      },
      {}, mo::layout{.data = 3, .expert = 1}, {.threads = 1});
  CHECK(heard_by_all == "dd+++dd+++dd+++");
}

TEST_CASE("a tape in the wrong state is refused before ranks meet; what a forward held is free after an unused tape") {
  std::string const all_heard = mo::run<spread>(
      [](context& ctx) {
        bench b(ctx);
        auto const expected = b.step();
        {
          auto const unused = b.layer.forward(b.weights, b.x, b.y);  // no backward follows
        }
        auto tape = b.layer.forward(b.weights, b.x, b.y);
        auto gradients = b.layer.make_gradients();
        std::string mine(1, hear([&] { b.layer.backward_weights(tape, gradients); }).kind);
        b.layer.backward_input(b.weights, tape, b.dy, b.dx);
        mine += hear([&] { b.layer.backward_input(b.weights, tape, b.dy, b.dx); }).kind;
        b.layer.backward_weights(tape, gradients);
        mine += hear([&] { b.layer.backward_weights(tape, gradients); }).kind;
        mine += b.step() == expected ? '+' : '!';
        auto const all = ctx.stage().all_gather_v<char>({mine.data(), mine.size()});
        return std::string(all.begin(), all.end());
      },
      {}, mo::layout{.data = 2, .expert = 2}, {.threads = 1});
  CHECK(all_heard == "sss+sss+");
}
