// SPDX-License-Identifier: Apache-2.0
#include <moiety/mesh/run.hpp>

#include "backend/transport/thread_ranks.hpp"

#include <moiety/layer/deployment.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace mo = moiety;

namespace {

using any = mo::deployment<mo::dynamic>;
using three = mo::deployment<mo::layout{.data = 3}>;
struct alone : mo::deployment<mo::dynamic> {
  using transport = mo::self;
};

mo::run_options const patient{.deadline = std::chrono::minutes(2)};

/// What went wrong on one rank, whichever type it has.
struct broken : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace

TEST_CASE("a run gives back what rank 0 returned, and the function ran once on every rank") {
  for (int const ranks : {1, 2, 3, 5}) {
    std::vector<int> calls(static_cast<std::size_t>(ranks));
    auto const result = mo::run<any>(
        [&](mo::context<any>& ctx) {
          ++calls[static_cast<std::size_t>(ctx.world().rank())];
          return std::to_string(ctx.world().rank()) + " of " + std::to_string(ctx.world().size());
        },
        patient, mo::layout{.data = ranks});
    CHECK(result == "0 of " + std::to_string(ranks));
    CHECK(calls == std::vector<int>(static_cast<std::size_t>(ranks), 1));
  }
}

TEST_CASE("a function may return nothing, a reference, or what cannot be copied") {
  std::atomic<int> calls{0};
  mo::run<three>([&](mo::context<three>&) { ++calls; });
  CHECK(calls == 3);
  std::vector<int> const lasting{4, 5};
  auto const copy = mo::run<three>([&](mo::context<three>&) -> std::vector<int> const& { return lasting; });
  CHECK(copy == lasting);
  auto const moved =
      mo::run<three>([](mo::context<three>& ctx) { return std::make_unique<int>(ctx.world().rank() + 7); });
  CHECK(*moved == 7);
  mo::run<mo::deployment<>>([&](mo::context<>& ctx) { calls += 10 * ctx.world().size(); });
  CHECK(calls == 13);
}

TEST_CASE("the first rank that throws is heard, and the others are woken") {
  for (int const thrower : {0, 1, 3}) {
    CAPTURE(thrower);
    std::atomic<int> woken{0}, unwound{0};
    auto const body = [&](mo::context<any>& ctx) {
      struct guard {
        std::atomic<int>& count;
        ~guard() { ++count; }
      } const on_the_way_out{unwound};
      if (ctx.world().rank() == thrower) throw broken("of rank " + std::to_string(thrower));
      try {
        ctx.world().barrier();
      } catch (mo::comm_error const& e) {
        if (e.fault == mo::comm_fault::remote && e.rank == thrower) ++woken;
        throw;
      }
      return 0;
    };
    auto const begin = std::chrono::steady_clock::now();
    CHECK_THROWS_WITH_AS(mo::run<any>(body, patient, mo::layout{.data = 4}),
                         ("of rank " + std::to_string(thrower)).c_str(), broken);
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(60));
    CHECK(woken == 3);
    CHECK(unwound == 4);
  }
}

TEST_CASE("of ranks that all throw, one is heard; what is no std::exception is thrown as it is") {
  for (int turn = 0; turn < 20; ++turn)
    CHECK_THROWS_AS(mo::run<any>([](mo::context<any>& ctx) { throw broken(std::to_string(ctx.world().rank())); },
                                 patient, mo::layout{.data = 3}),
                    broken);
  CHECK_THROWS_AS(mo::run<three>([](mo::context<three>& ctx) {
                    if (ctx.world().rank() == 2) throw 17;
                    ctx.world().barrier();
                  }),
                  int);
}

TEST_CASE("a failure after rank 0 has returned is heard too") {
  std::atomic<bool> returned{false};
  CHECK_THROWS_AS(mo::run<three>([&](mo::context<three>& ctx) {
                    if (ctx.world().rank() == 0) returned = true;
                    while (!returned) std::this_thread::yield();
                    if (ctx.world().rank() == 1) throw broken("late");
                  }),
                  broken);
}

TEST_CASE("a rank that returns early fails those that wait for it") {
  for (int const early : {0, 2})
    CHECK_THROWS_AS(mo::run<three>([&](mo::context<three>& ctx) {
                      if (ctx.world().rank() != early) ctx.world().barrier();
                    }),
                    mo::comm_error);
}

TEST_CASE("a deadline ends the waiting for a rank that does not come") {
  std::atomic<int> late{0};
  CHECK_THROWS_AS(mo::run<three>(
                      [&](mo::context<three>& ctx) {
                        if (ctx.world().rank() == 1) {
                          for (; late < 2; set_clock::seconds += 31)
                            std::this_thread::sleep_for(std::chrono::milliseconds(1));
                          return;
                        }
                        try {
                          ctx.world().barrier();
                        } catch (mo::comm_error const&) {
                          ++late;
                          throw;
                        }
                      },
                      {.deadline = std::chrono::seconds(30), .now = &set_clock::now}),
                  mo::comm_error);
  CHECK(late == 2);
}

TEST_CASE("layouts that cannot be, or are not those of the deployment, are refused before any rank starts") {
  int calls = 0;
  auto const of = [&]<class Deployment>(Deployment, mo::layout const& shape) {
    mo::run<Deployment>([&](mo::context<Deployment>&) { ++calls; }, patient, shape);
  };
  CHECK_THROWS_WITH_AS(of(any{}, mo::dynamic), doctest::Contains("none was given"), mo::config_error);
  CHECK_THROWS_WITH_AS(of(any{}, {.data = 0}), doctest::Contains("at least one rank"), mo::config_error);
  CHECK_THROWS_WITH_AS(of(any{}, {.data = 4, .expert = 3}), doctest::Contains("expert grid"), mo::config_error);
  CHECK_THROWS_WITH_AS(of(three{}, {.data = 2}), doctest::Contains("its deployment names"), mo::config_error);
  CHECK_THROWS_WITH_AS(of(three{}, {.data = 3, .expert = 3}), doctest::Contains("its deployment names"),
                       mo::config_error);
  CHECK_THROWS_WITH_AS(of(alone{}, {.data = 2}), doctest::Contains("needs 2 ranks, and there are 1"), mo::config_error);
  CHECK_THROWS_WITH_AS(of(mo::deployment<>{}, {.tensor = 2}), doctest::Contains("its deployment names"),
                       mo::config_error);
  CHECK_THROWS_AS(mo::run<three>([&](mo::context<three>&) { ++calls; }, {.deadline = std::chrono::seconds(0)}),
                  mo::config_error);
  CHECK(calls == 0);
  of(alone{}, {.data = 1});
  CHECK(calls == 1);
}

TEST_CASE("ranks share the processors, unless the back end says how many threads each has") {
  auto const threads_of = [](int ranks, mo::host const& options) {
    return mo::run<any>(
        [](mo::context<any>& ctx) {
          std::int64_t const mine = ctx.engine().threads();
          return ctx.world().all_gather_v<std::int64_t>({&mine, 1});
        },
        patient, mo::layout{.data = ranks}, options);
  };
  int const all = mo::host_engine(mo::host{}).threads();
  CHECK(threads_of(1, {}) == std::vector<std::int64_t>{all});
  CHECK(threads_of(2, {}) == std::vector<std::int64_t>(2, std::max(1, all / 2)));
  CHECK(threads_of(3, {.threads = 2}) == std::vector<std::int64_t>(3, 2));
  mo::run<mo::deployment<>>([](mo::context<>& ctx) { CHECK(ctx.engine().threads() == 3); }, {}, {}, {.threads = 3});
}

TEST_CASE("a run inside a rank of a run is a run of its own") {
  auto const sums = mo::run<any>(
      [](mo::context<any>& outer) {
        int const base = 10 * outer.world().rank();
        std::int64_t const inner = mo::run<any>(
            [&](mo::context<any>& ctx) {
              std::int64_t sum = base + ctx.world().rank();
              ctx.world().all_reduce(std::span(&sum, 1));
              return sum;
            },
            patient, mo::layout{.tensor = 3});
        return outer.world().all_gather_v<std::int64_t>({&inner, 1});
      },
      patient, mo::layout{.data = 2});
  CHECK(sums == std::vector<std::int64_t>{3, 33});
}

TEST_CASE("all_gather joins matrices of any number of rows, in the order of ranks") {
  auto const all = mo::run<any>(
      [](mo::context<any>& ctx) {
        int const rank = ctx.world().rank();
        auto mine = ctx.matrix(rank == 1 ? 0 : rank + 1, 2);
        for (auto& v : mine) v = static_cast<float>(rank);
        return mo::all_gather(ctx.world(), mine);
      },
      patient, mo::layout{.data = 3});
  CHECK(all == std::vector<float>{0, 0, 2, 2, 2, 2, 2, 2});
}
