// SPDX-License-Identifier: Apache-2.0
#include <moiety/pipeline/stage_messages.hpp>

#include "backend/transport/thread_ranks.hpp"

#include <moiety/backend/transport/self.hpp>
#include <moiety/core/matrix.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>

namespace {

using messages = mo::detail::stage_messages<mo::thread_communicator, mo::matrix<float>>;

constexpr std::uint64_t plan = 77;
constexpr mo::operation sent{{0, 3, mo::computation::forward}, mo::message::send, 1, 0};
constexpr mo::operation received{{1, 3, mo::computation::forward}, mo::message::receive, 0, 0};

/// Rank 0 sends 2 x 3 values in step `of_sender`, rank 1 receives what it awaits in step 5; what each threw.
outcomes exchange(std::int64_t of_sender, mo::operation const& awaited, std::int64_t rows,
                  std::uint64_t plan_of_receiver = plan) {
  return thread_ranks(2).run([&](mo::thread_communicator& pipeline) {
    messages all(pipeline, pipeline.rank() == 0 ? plan : plan_of_receiver);
    mo::matrix<float> values(pipeline.rank() == 0 ? 2 : rows, 3);
    if (pipeline.rank() == 0) {
      for (std::int64_t i = 0; i < 6; ++i) values.data()[i] = static_cast<float>(i + 1);
      all.at_step(of_sender);
      all.send(sent, std::move(values));
      all.finish();
    } else {
      all.at_step(5);
      all.receive(awaited, values);
      for (std::int64_t i = 0; i < 6; ++i) expect(values.data()[i] == static_cast<float>(i + 1), "a value");
    }
  });
}

}  // namespace

TEST_CASE("rows arrive with their label") {
  for (auto const& thrown : exchange(5, received, 2)) CHECK(thrown == nullptr);
}

static_assert(messages::overlap);
static_assert(!mo::detail::stage_messages<mo::self_communicator, mo::matrix<float>>::overlap);

TEST_CASE("sends go on by themselves, and rows live until they are taken") {
  on_ranks(2, [](mo::thread_communicator& pipeline) {
    messages all(pipeline, plan);
    int const other = 1 - pipeline.rank();
    // Both send before either receives.
    for (int m = 0; m < 5; ++m) {
      mo::matrix<float> rows(2, 3);
      for (float& v : rows) v = static_cast<float>(10 * pipeline.rank() + m);
      all.send({{pipeline.rank(), m, mo::computation::forward}, mo::message::send, other, pipeline.rank()},
               std::move(rows));
    }
    for (int m = 0; m < 5; ++m) {
      mo::matrix<float> rows(2, 3);
      // The label's sender is the stage before for a forward, the one behind for a backward.
      mo::operation const awaited{{other + 1, m, mo::computation::forward}, mo::message::receive, other, other};
      all.receive(awaited, rows);
      for (float const v : rows) expect(v == static_cast<float>(10 * other + m), "a value");
    }
    all.finish();
  });
}

TEST_CASE("rows that are dropped before they are taken are a failure of all") {
  auto const results = thread_ranks(2).run([&](mo::thread_communicator& pipeline) {
    messages all(pipeline, plan);
    if (pipeline.rank() == 0) {
      all.send(sent, mo::matrix<float>(2, 3));
      return all.drop();
    }
    pipeline.barrier();
  });
  CHECK(results[0] == nullptr);
  auto const error = thrown<mo::comm_error>(results[1]);
  REQUIRE(error);
  CHECK(error->fault == mo::comm_fault::remote);
}

TEST_CASE("a message that is not awaited is an error that says both") {
  mo::operation other = received, later = received;
  other.what.microbatch = 2, later.what.stage = 2;
  for (auto const& results : {exchange(4, received, 2), exchange(5, other, 2), exchange(5, later, 2)}) {
    auto const error = thrown<mo::comm_error>(results[1]);
    REQUIRE(error);
    std::string const words = error->what();
    CHECK(words.find("stage 0 sent micro-batch 3") != std::string::npos);
    CHECK(words.find("was awaited") != std::string::npos);
    CHECK(words.find("schedule") == std::string::npos);
  }
}

TEST_CASE("a message of another schedule is an error that says so, and where it came") {
  auto const results = exchange(5, received, 2, plan + 1);
  auto const error = thrown<mo::comm_error>(results[1]);
  REQUIRE(error);
  CHECK(error->fault == mo::comm_fault::mismatch);
  std::string const words = error->what();
  CHECK(words.find("stage 0 sent micro-batch 3 of step 5 of another schedule where 1RECV_F3") != std::string::npos);
  CHECK(words.find("(1RECV_F3: stage 1, micro-batch 3)") != std::string::npos);
}

TEST_CASE("so are rows of another number") {
  auto const results = exchange(5, received, 1);
  auto const error = thrown<mo::comm_error>(results[1]);
  REQUIRE(error);
  CHECK(error->fault == mo::comm_fault::mismatch);
}

TEST_CASE("a send that nobody takes says at the deadline which it was") {
  auto const results =
      thread_ranks(2, {.deadline = std::chrono::milliseconds(300)}).run([](mo::thread_communicator& pipeline) {
        if (pipeline.rank() == 1) return pipeline.barrier();
        messages all(pipeline, plan);
        all.send(sent, mo::matrix<float>(2, 3));
        all.finish();
      });
  auto const error = thrown<mo::comm_error>(results[0]);
  REQUIRE(error);
  CHECK(std::string(error->what()).find("(0SEND_F3: stage 0, micro-batch 3)") != std::string::npos);
}
