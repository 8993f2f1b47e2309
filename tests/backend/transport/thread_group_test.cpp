// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/thread_group.hpp>

#include "backend/transport/thread_ranks.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using mo::comm_fault;
using mo::detail::thread_call;
using mo::detail::thread_group;
using mo::detail::thread_rank;
using mo::detail::thread_world;
using namespace std::chrono_literals;

namespace {
/// A group of the ranks 4, 1 and 2 of a run of five.
std::shared_ptr<thread_group> three_of_five(mo::run_options const& options = {}) {
  return std::make_shared<thread_group>(std::make_shared<thread_world>(5, options), std::vector<int>{4, 1, 2},
                                        "expert");
}
}  // namespace

TEST_CASE("a rank of a group has a rank of the run") {
  auto const group = three_of_five();
  thread_rank const first(group, 0), again(group, 0), second(group, 1);
  CHECK(first.rank() == 0);
  CHECK(first.world_rank() == 4);
  CHECK(first == again);
  CHECK_FALSE(first == second);
  CHECK_FALSE(first == thread_rank(three_of_five(), 0));
  CHECK(thread_rank().none());
  CHECK_FALSE(first.none());
}

TEST_CASE("the deadline names every rank that has not come, by its rank of the run") {
  auto const group = three_of_five({.deadline = 30s, .now = &hasty_clock});
  thread_rank const me(group, 0);
  me.member().step = 12;
  auto const error =
      expect_throws<mo::comm_error>([&] { me.await({.name = "all_to_all"}, 1, [](int of) { return of == 0; }); });
  CHECK(error.fault == comm_fault::timeout);
  CHECK(error.operation == "all_to_all");
  CHECK(error.rank == 1);
  CHECK(error.step == 12);
  CHECK(error.what() ==
        std::string("all_to_all among the 3 expert ranks, call 0, step 12: rank 1 and rank 2 did not come within "
                    "30000 ms."));
  CHECK(expect_throws<mo::comm_error>([&] { me.check_open(); }).what() == std::string(error.what()));
}

TEST_CASE("a rank that has ended is named") {
  auto const group = three_of_five();
  group->world->leave(2);
  auto const error = expect_throws<mo::comm_error>(
      [&] { thread_rank(group, 0).await({.name = "barrier"}, 2, [](int) { return false; }); });
  CHECK(error.fault == comm_fault::remote);
  CHECK(error.rank == 2);
  CHECK(std::string(error.what()).find("rank 2 has ended and will not come.") != std::string::npos);
}

TEST_CASE("nothing is read after a failure") {
  auto const group = three_of_five();
  thread_rank const me(group, 0), other(group, 1);
  int reads = 0;
  me.read_from(1, [&] { ++reads; });
  CHECK(reads == 1);
  other.let_go("broadcast");
  CHECK_THROWS_WITH_AS(me.read_from(1, [&] { ++reads; }),
                       "broadcast among the 3 expert ranks, call 0, step 0: rank 1 let go of it unfinished.",
                       mo::comm_error);
  CHECK(reads == 1);
  group->world->await_readers(1);
}

TEST_CASE("memory is let go of when nobody reads it any more") {
  auto const group = three_of_five();
  std::atomic<bool> reads{false}, has_read{false};
  std::thread reader([&] {
    thread_rank(group, 0).read_from(1, [&] {
      reads.store(true);
      std::this_thread::sleep_for(30ms);
      has_read.store(true);
    });
  });
  while (!reads.load()) std::this_thread::yield();
  thread_rank(group, 1).let_go("all_gather");
  CHECK(has_read.load());
  reader.join();
}

TEST_CASE("one call of a rank at a time") {
  auto const group = three_of_five();
  thread_rank const me(group, 0), other(group, 1);
  {
    thread_call const one(me, "barrier"), of_another(other, "barrier");
    CHECK_THROWS_WITH_AS(thread_call(me, "all_gather"), "all_gather: another thread is in a call of this communicator.",
                         mo::state_error);
    CHECK_THROWS_AS(thread_call(me, "all_gather"), mo::state_error);
  }
  thread_call const next(me, "barrier");
}
