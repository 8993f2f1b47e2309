// SPDX-License-Identifier: Apache-2.0
#include <moiety/pipeline/stage_messages.hpp>

#include "backend/transport/thread_ranks.hpp"

#include <moiety/core/matrix.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <string>

namespace {

using messages = mo::detail::stage_messages<mo::thread_communicator, float>;

constexpr mo::operation sent{{0, 3, mo::computation::forward}, mo::message::send, 1, 0};
constexpr mo::operation received{{1, 3, mo::computation::forward}, mo::message::receive, 0, 0};

/// Rank 0 sends 2 x 3 values in step `of_sender`, rank 1 receives what it awaits in step 5; what each threw.
outcomes exchange(std::int64_t of_sender, mo::operation const& awaited, std::int64_t rows) {
  return thread_ranks(2).run([&](mo::thread_communicator& pipeline) {
    messages all(pipeline);
    mo::matrix<float> values(pipeline.rank() == 0 ? 2 : rows, 3);
    if (pipeline.rank() == 0) {
      for (std::int64_t i = 0; i < 6; ++i) values.data()[i] = static_cast<float>(i + 1);
      all.at_step(of_sender);
      all.send(sent, values.view());
    } else {
      all.at_step(5);
      all.receive(awaited, values.view());
      for (std::int64_t i = 0; i < 6; ++i) expect(values.data()[i] == static_cast<float>(i + 1), "a value");
    }
  });
}

}  // namespace

TEST_CASE("rows arrive with their label") {
  for (auto const& thrown : exchange(5, received, 2)) CHECK(thrown == nullptr);
}

TEST_CASE("a message that is not awaited is an error that says both") {
  mo::operation other = received;
  other.what.microbatch = 2;
  for (auto const& results : {exchange(4, received, 2), exchange(5, other, 2)}) {
    auto const error = thrown<mo::comm_error>(results[1]);
    REQUIRE(error);
    std::string const words = error->what();
    CHECK(words.find("stage 0 sent micro-batch 3") != std::string::npos);
    CHECK(words.find("was awaited") != std::string::npos);
  }
}

TEST_CASE("so are rows of another number") {
  auto const results = exchange(5, received, 1);
  auto const error = thrown<mo::comm_error>(results[1]);
  REQUIRE(error);
  CHECK(error->fault == mo::comm_fault::mismatch);
}
