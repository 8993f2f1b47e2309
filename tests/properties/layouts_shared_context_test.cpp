// SPDX-License-Identifier: Apache-2.0
// Two layers of one context, and so of the same communicators, used from two threads of each rank.
#include "properties/ranks.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace mo = moiety;

namespace {

using spec = ranks::small<ranks::softmax_2>;
using deployment = ranks::spread<float>;
using values = std::vector<float>;

/// A clock that tells when the thread that is watched waits for another rank, in a call of a communicator.
thread_local bool watched = false;
std::atomic<bool> waits{false};
std::chrono::steady_clock::time_point clock_of_waits() {
  if (watched) waits.store(true);
  return std::chrono::steady_clock::now();
}

/// A layer and what it reads and gives on one rank.
struct user {
  user(mo::context<deployment>& ctx, std::uint64_t seed)
      : layer(ctx), weights(layer.make_weights(mo::seed{seed})), x(ctx.matrix(16, 20)), y(ctx.matrix(16, 20)) {
    mo::fill_normal(ctx, x, mo::seed{seed}, mo::first_row{16 * ctx.stage().rank()});
  }
  values infer() {
    layer.infer(weights, x, y);
    return {y.data(), y.data() + y.rows() * y.cols()};
  }

  mo::moe_layer<spec, deployment> layer;
  typename mo::moe_layer<spec, deployment>::weights_type weights;
  typename mo::context<deployment>::backend::template matrix<float> x, y;
};

/// Whether the layer gives what it gave, without an error.
bool repeats(user& of, values const& before) {
  try {
    return of.infer() == before;
  } catch (std::exception const&) {
    return false;
  }
}

mo::layout const two{.data = 2, .expert = 2};

/// What the call throws, if it does.
template <class Error, class Call> bool throws(Call const& call) {
  try {
    call();
  } catch (Error const&) {
    return true;
  } catch (...) {
  }
  return false;
}

}  // namespace

TEST_CASE(
    "a layer called while another thread is in a call of the layer beside it: a state_error, and no harm to either") {
  waits = false;
  std::atomic<bool> tried{false}, refused{false}, same{true};
  mo::run<deployment>(
      [&](mo::context<deployment>& ctx) {
        user a(ctx, 3), b(ctx, 4);
        values const of_a = a.infer(), of_b = b.infer();
        if (ctx.stage().rank() == 1) {
          while (!tried.load()) std::this_thread::yield();
          if (a.infer() != of_a) same = false;
        } else {
          std::thread other([&] {
            while (!waits.load()) std::this_thread::yield();
            refused = throws<mo::state_error>([&] { b.infer(); });
            tried = true;
          });
          watched = true;
          values again;
          bool const failed = throws<std::exception>([&] { again = a.infer(); });
          watched = false;
          other.join();
          if (failed || again != of_a) same = false;
        }
        if (b.infer() != of_b) same = false;
      },
      {.deadline = std::chrono::seconds(60), .now = &clock_of_waits}, two, ranks::of_one_thread<mo::host>());
  CHECK(refused.load());
  CHECK(same.load());
}

TEST_CASE("layers that two threads call in turn give what one thread gets") {
  std::atomic<bool> same{true};
  mo::run<deployment>(
      [&](mo::context<deployment>& ctx) {
        user a(ctx, 3), b(ctx, 4);
        values const of_a = a.infer(), of_b = b.infer();
        std::atomic<int> turn{0};
        constexpr int turns = 6;
        std::thread other([&] {
          for (int t = 1; t < turns; t += 2) {
            while (turn.load() != t) std::this_thread::yield();
            if (!repeats(b, of_b)) same = false;
            turn = t + 1;
          }
        });
        for (int t = 0; t < turns; t += 2) {
          while (turn.load() != t) std::this_thread::yield();
          if (!repeats(a, of_a)) same = false;
          turn = t + 1;
        }
        other.join();
      },
      {.deadline = std::chrono::seconds(60)}, two, ranks::of_one_thread<mo::host>());
  CHECK(same.load());
}
