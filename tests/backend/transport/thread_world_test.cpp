// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/thread_world.hpp>

#include "backend/transport/thread_ranks.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>

using mo::comm_fault;
using mo::detail::reading;
using mo::detail::thread_world;
using mo::detail::waited;
using namespace std::chrono_literals;

namespace {
mo::comm_error seen_by(thread_world const& world, int rank) {
  return expect_throws<mo::comm_error>([&] { world.rethrow(rank); });
}
}  // namespace

TEST_CASE("who waits goes on when the condition is met, whether it was awake or asleep") {
  for (int const ranks : {2, 1000}) {  // 1000 ranks have no processor each, and sleep at once
    thread_world world(ranks, {.deadline = 2min});
    CHECK(world.wait([] { return true; }, 1) == waited::met);
    for (auto const delay : {0ms, 30ms}) {
      std::atomic<bool> come{false};
      std::thread other([&] {
        std::this_thread::sleep_for(delay);
        come.store(true);
        world.wake();
      });
      CHECK(world.wait([&] { return come.load(); }, 1) == waited::met);
      other.join();
    }
  }
}

TEST_CASE("a rank is late when the deadline has passed by the clock of the run, not before") {
  thread_world real(2, {.deadline = 30ms});
  auto const begin = std::chrono::steady_clock::now();
  CHECK(real.wait([] { return false; }, 1) == waited::late);
  CHECK(std::chrono::steady_clock::now() - begin >= 30ms);
  CHECK_FALSE(real.failed());

  thread_world hasty(2, {.deadline = 30s, .now = &hasty_clock});
  auto const start = std::chrono::steady_clock::now();
  CHECK(hasty.wait([] { return false; }, 1) == waited::late);
  CHECK(std::chrono::steady_clock::now() - start < 20s);

  thread_world still(1000, {.deadline = 1ms, .now = &set_clock::now});
  int looks = 0;
  CHECK(still.wait([&] { return ++looks == 60; }, 1) == waited::met);
}

TEST_CASE("a rank that has ended is not waited for, unless it met the condition before") {
  thread_world world(3, {.deadline = 2min});
  world.leave(1);
  CHECK(world.wait([] { return false; }, 1) == waited::left);
  CHECK(world.wait([] { return true; }, 1) == waited::met);
  thread_world many(1000, {.deadline = 2min});
  many.leave(1);
  int looks = 0;
  CHECK(many.wait([&] { return ++looks > 20; }, 1) == waited::met);  // seen when asleep
  std::atomic<bool> waiting{false};
  std::thread other([&] {
    while (!waiting.load()) std::this_thread::yield();
    std::this_thread::sleep_for(20ms);
    world.leave(2);
  });
  CHECK(world.wait(
            [&] {
              waiting.store(true);
              return false;
            },
            2) == waited::left);
  other.join();
}

TEST_CASE("a failure ends all waiting, and only the first counts") {
  thread_world world(3, {.deadline = 2min});
  CHECK_FALSE(world.failure());
  std::thread other([&] {
    std::this_thread::sleep_for(20ms);
    world.fail({comm_fault::mismatch, "all_gather", 2, 17, "first."});
    world.fail({comm_fault::timeout, "barrier", 1, 18, "second."});
  });
  CHECK(world.wait([] { return false; }, 1) == waited::failed);
  other.join();
  world.leave(1);
  CHECK(world.wait([] { return false; }, 1) == waited::failed);
  for (int const rank : {0, 1, 2}) {
    mo::comm_error const error = seen_by(world, rank);
    CHECK(error.fault == comm_fault::mismatch);
    CHECK(error.operation == "all_gather");
    CHECK(error.rank == 2);
    CHECK(error.step == 17);
    CHECK(error.what() == std::string("first."));
  }
}

TEST_CASE("the failure of a rank is its own there, and a remote one elsewhere") {
  for (comm_fault const fault : {comm_fault::aborted, comm_fault::remote}) {
    thread_world world(2, {});
    world.fail({fault, "run", 1, 0, "rank 1 threw."});
    CHECK(seen_by(world, 0).fault == comm_fault::remote);
    CHECK(seen_by(world, 1).fault == comm_fault::aborted);
  }
  thread_world late(2, {});
  late.fail({comm_fault::timeout, "barrier", 1, 0, "rank 1 did not come."});
  CHECK(seen_by(late, 0).fault == comm_fault::timeout);
  CHECK(seen_by(late, 1).fault == comm_fault::timeout);
}

TEST_CASE("a rank waits for those that read its memory, and for no others") {
  thread_world world(3, {});
  reading const of_another(world, 2);
  std::atomic<bool> ended{false};
  std::atomic<int> marked{0};
  std::thread reader([&] {
    reading const first(world, 1);
    {
      reading const second(world, 1);
      marked.store(1);
      std::this_thread::sleep_for(30ms);
    }
    ended.store(true);
  });
  while (marked.load() == 0) std::this_thread::yield();
  world.await_readers(1);
  CHECK(ended.load());
  reader.join();
  world.await_readers(0);
}

TEST_CASE("a deadline is positive") {
  CHECK_THROWS_WITH_AS(thread_world(2, {.deadline = 0ms}), "the deadline of a run must be positive.", mo::config_error);
  CHECK_THROWS_AS(thread_world(2, {.deadline = -1ms}), mo::config_error);
  CHECK(thread_world(2, {.deadline = 1500ms}).deadline_words() == "1500 ms");
}
