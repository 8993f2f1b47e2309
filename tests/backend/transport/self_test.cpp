// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/self.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

namespace mo = moiety;

namespace {
struct no_size {
  int rank() const { return 0; }
};

template <class T> std::byte const* sent(T const& value) { return reinterpret_cast<std::byte const*>(&value); }
template <class T> std::byte* received(T& value) { return reinterpret_cast<std::byte*>(&value); }
}  // namespace

static_assert(mo::communicator<mo::self::communicator> && !mo::communicator<no_size>);

TEST_CASE("one rank: collectives leave values as they were, or copy them") {
  mo::self::communicator alone;
  CHECK(alone.rank() == 0);
  CHECK(alone.size() == 1);
  for (std::size_t const n : {0U, 1U, 5000U}) {
    std::vector<std::int64_t> values(n);
    std::iota(values.begin(), values.end(), std::int64_t{7});
    auto const before = values;
    alone.barrier();
    alone.all_reduce(std::span(values));
    alone.reduce_scatter(std::span(values));
    alone.all_reduce_fastest(std::span(values));
    alone.reduce_scatter_fastest(std::span(values), std::array{static_cast<std::int64_t>(n)});
    alone.all_gather_slices(std::span(values));
    alone.broadcast(std::span(values), 0);
    CHECK(values == before);
    std::vector<std::int64_t> to(n);
    alone.all_gather<std::int64_t>(values, to);
    CHECK(to == before);
    to.assign(n, 0);
    alone.all_to_all<std::int64_t>(values, to);
    CHECK(to == before);
    CHECK(alone.all_gather_v<std::int64_t>(values) == before);
    std::array<std::int64_t, 1> const counts{static_cast<std::int64_t>(n)};
    to.assign(n, 0);
    alone.split(3, -1, "part").all_to_all_v<std::int64_t>(values, counts, to, counts);
    CHECK(to == before);
  }
}

TEST_CASE("one rank: what it sends and what it receives must agree, in rows and not only in bytes") {
  mo::self::communicator alone;
  std::array<std::int64_t, 2> const out{1, 2};
  std::array<std::int64_t, 2> in{};
  mo::outgoing_rows const two{sent(out), 2, 8, 8, nullptr};
  for (mo::incoming_rows const& other :
       {mo::incoming_rows{received(in), 1, 16, 16, nullptr}, mo::incoming_rows{received(in), 1, 8, 8, nullptr}})
    CHECK_THROWS_AS(alone.finish(alone.start({.name = "rows"}, {&two, 1}, {&other, 1})), mo::data_error);
  CHECK_THROWS_AS(alone.broadcast<std::int64_t>(in, 1), mo::data_error);
  CHECK(in == std::array<std::int64_t, 2>{});
}

TEST_CASE("one rank: messages to itself are matched in order within a channel") {
  mo::self::communicator alone;
  std::array<std::int64_t, 3> const out{10, 20, 30};
  std::array<std::int64_t, 3> in{};
  std::vector<mo::outgoing_message> sends{{0, sent(out[0]), 8, 1}, {0, sent(out[1]), 8, 0}, {0, sent(out[2]), 8, 1}};
  std::vector<mo::incoming_message> receives{
      {0, received(in[0]), 8, 0}, {0, received(in[1]), 8, 1}, {0, received(in[2]), 8, 1}};
  alone.send_recv(sends, receives);
  CHECK(in == std::array<std::int64_t, 3>{20, 10, 30});
  receives[1].bytes = 4;
  CHECK_THROWS_AS(alone.send_recv(sends, receives), mo::data_error);
  receives.pop_back();
  CHECK_THROWS_AS(alone.send_recv(sends, receives), mo::data_error);
  receives = {{0, nullptr, 0, 0}};
  sends = {{0, nullptr, 0, 0}};
  alone.send_recv(sends, receives);
}

TEST_CASE("one rank: a failure names the call") {
  mo::self::communicator alone;
  CHECK_THROWS_WITH_AS(alone.fail(mo::comm_fault::mismatch, "all_gather_v", "no"), "all_gather_v: no.", mo::comm_error);
}
