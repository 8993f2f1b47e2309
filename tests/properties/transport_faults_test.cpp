// SPDX-License-Identifier: Apache-2.0
// A program of every operation, in which one call goes wrong: for every call and rank, all ranks come to know in bounded time,
// and nothing is left behind.
#include "backend/transport/clock_of_fault.hpp"
#include "backend/transport/faulty.hpp"
#include "backend/transport/thread_ranks.hpp"

#include <moiety/backend/transport/self.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

static_assert(mo::communicator<faulty<mo::threads::communicator>> && mo::communicator<faulty<mo::self::communicator>>);

namespace {

using ranks_of = faulty<mo::thread_communicator>;
using numbers = std::vector<std::int64_t>;

numbers filled(std::size_t n, std::int64_t value) { return numbers(n, value); }

void check_copies(ranks_of& ranks) {
  int const me = ranks.rank(), size = ranks.size();
  for (int root = 0; root < size; ++root) {
    numbers values = filled(static_cast<std::size_t>(3 + root), me);
    ranks.broadcast(std::span(values), root);
    expect(values == filled(values.size(), root), "broadcast");
  }
  numbers all(static_cast<std::size_t>(2 * size));
  ranks.all_gather<std::int64_t>(filled(2, me), all);
  numbers const uneven = ranks.all_gather_v<std::int64_t>(filled(static_cast<std::size_t>(me + 1), 10 * me));
  std::size_t next = 0;
  for (int r = 0; r < size; ++r) {
    expect(all[static_cast<std::size_t>(2 * r)] == r, "all_gather");
    for (int i = 0; i <= r; ++i) expect(uneven.at(next++) == 10 * r, "all_gather_v");
  }
}

void check_exchanges(ranks_of& ranks) {
  int const me = ranks.rank(), size = ranks.size();
  auto const peers = static_cast<std::size_t>(size);
  numbers out(peers), in(peers), out_counts, in_counts, sent, expected;
  for (std::size_t r = 0; r < peers; ++r) {
    out[r] = 100 * me + static_cast<std::int64_t>(r);
    out_counts.push_back(500 * (me + 1));
    in_counts.push_back(500 * static_cast<std::int64_t>(r + 1));
    sent.insert(sent.end(), static_cast<std::size_t>(out_counts[r]), out[r]);
    expected.insert(expected.end(), static_cast<std::size_t>(in_counts[r]), 100 * static_cast<std::int64_t>(r) + me);
  }
  ranks.all_to_all<std::int64_t>(out, in);
  for (std::size_t r = 0; r < peers; ++r) expect(in[r] == 100 * static_cast<std::int64_t>(r) + me, "all_to_all");
  numbers got(expected.size());
  ranks.all_to_all_v<std::int64_t>(sent, out_counts, got, in_counts);
  expect(got == expected, "all_to_all_v");
}

void check_sums(ranks_of& ranks) {
  auto const mine = static_cast<std::uint64_t>(ranks.rank() + 1), last = static_cast<std::uint64_t>(ranks.size());
  for (std::size_t const n : {std::size_t{7}, std::size_t{3001}}) {
    std::vector<std::uint64_t> values(n, mine);  // unsigned: after a fault the sums are of anything
    ranks.all_reduce(std::span(values));
    expect(values == std::vector<std::uint64_t>(n, last * (last + 1) / 2), "all_reduce");
  }
}

void check_in_flight(ranks_of& ranks) {
  auto const peers = static_cast<std::size_t>(ranks.size());
  std::vector<numbers> out, in;
  std::vector<ranks_of::request> requests;  // gone before the values
  for (std::size_t i = 0; i < 3; ++i) {
    std::size_t const n = 400 * (i + 1);
    out.push_back(filled(n, ranks.rank() + 10 * static_cast<std::int64_t>(i)));
    in.push_back(filled(n * peers, -1));
  }
  for (std::size_t i = 0; i < 3; ++i) {
    auto const n = static_cast<std::int64_t>(out[i].size());
    std::vector<mo::outgoing_rows> const to(peers, {reinterpret_cast<std::byte const*>(out[i].data()), n, 8, 8});
    std::vector<mo::incoming_rows> from;
    for (std::int64_t r = 0; r < ranks.size(); ++r)
      from.push_back({reinterpret_cast<std::byte*>(in[i].data() + r * n), n, 8, 8, nullptr});
    requests.push_back(ranks.start({.name = "rows", .width = 8, .count = n}, to, from));
  }
  for (std::size_t i = 0; i < 3; ++i) ranks.finish(std::move(requests[i]));
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t at = 0; at < in[i].size(); ++at)
      expect(in[i][at] == static_cast<std::int64_t>(at / out[i].size() + 10 * i), "rows in flight");
}

void check_messages(ranks_of& ranks) {
  int const size = ranks.size(), me = ranks.rank(), next = (me + 1) % size, last = (me + size - 1) % size;
  numbers const out = filled(2000, me);
  numbers in(2000);
  mo::outgoing_message const to{next, reinterpret_cast<std::byte const*>(out.data()), 16000, 4};
  mo::incoming_message const from{last, reinterpret_cast<std::byte*>(in.data()), 16000, 4};
  ranks.send_recv({&to, 1}, {&from, 1});
  expect(in == filled(2000, last), "message");
}

/// Neighbouring operations differ, so that no call can pass for the next one. The last barrier goes right.
void program(ranks_of& ranks) {
  ranks.barrier();
  check_copies(ranks);
  check_exchanges(ranks);
  check_sums(ranks);
  check_in_flight(ranks);
  check_messages(ranks);
  {
    ranks_of pair = ranks.split(ranks.rank() % 2, -ranks.rank(), "pair");
    check_exchanges(pair);
    check_messages(pair);
    ranks_of again = pair.split(0, 0, "again");
    check_sums(again);
    std::vector<char> all(static_cast<std::size_t>(ranks.size()));
    ranks.all_gather<char>(std::vector<char>{static_cast<char>(ranks.rank())}, all);
    for (std::size_t r = 0; r < all.size(); ++r) expect(all[r] == static_cast<char>(r), "all_gather of char");
    check_in_flight(pair);
  }
  check_messages(ranks);
}

constexpr int size = 4, last_calls = 2;  // start and finish of the last barrier

struct faults_result {
  outcomes all;
  int calls = 0;
  bool happened = false;
};

faults_result run_with(fault_plan plan, mo::run_options const& options = {.deadline = std::chrono::minutes(2)}) {
  faults_result result;
  std::weak_ptr<mo::detail::thread_group> group;
  clock_of_fault::happened.store(false);
  plan.happened = &clock_of_fault::happened;
  auto const begin = std::chrono::steady_clock::now();
  {
    thread_ranks threads(size, options);
    group = threads.group;
    result.all = threads.run([&](mo::thread_communicator& inner) {
      ranks_of ranks(inner, plan);
      program(ranks);
      ranks.barrier();
      if (ranks.rank() == 0) result.calls = ranks.calls();
    });
  }
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::minutes(1));
  CHECK(group.expired());
  result.happened = clock_of_fault::happened.load();
  return result;
}

/// The calls of a rank in the program.
int calls_of_program() {
  static int const calls = [] {
    faults_result const healthy = run_with({});
    for (auto const& outcome : healthy.all)
      if (outcome != nullptr) std::rethrow_exception(outcome);
    return healthy.calls - last_calls;
  }();
  return calls;
}

/// Whether every rank but one threw a comm_error.
bool others_know(outcomes const& all, int rank) {
  for (int r = 0; r < size; ++r)
    if (r != rank && !thrown<mo::comm_error>(all[static_cast<std::size_t>(r)])) return false;
  return true;
}

}  // namespace

TEST_CASE("a rank that dies at any call is known to all others at once, and nothing is left behind") {
  REQUIRE(calls_of_program() > 50);
  for (int call = 0; call < calls_of_program() + last_calls; ++call)
    for (int rank = 0; rank < size; ++rank) {
      CAPTURE(call);
      CAPTURE(rank);
      outcomes const all = run_with({.kind = fault::kill, .rank = rank, .call = call}).all;
      CHECK_THROWS_AS(std::rethrow_exception(all[static_cast<std::size_t>(rank)]), killed);
      CHECK(others_know(all, rank));
      for (int r = 0; r < size; ++r)
        if (auto const error = thrown<mo::comm_error>(all[static_cast<std::size_t>(r)])) {
          CHECK(error->fault == mo::comm_fault::remote);
          CHECK(error->rank == rank);
        }
    }
}

TEST_CASE("a call that a rank leaves out or makes twice is an error of all others") {
  for (fault const kind : {fault::drop, fault::duplicate})
    for (int call = 0; call < calls_of_program(); ++call) {
      CAPTURE(call);
      CAPTURE(static_cast<int>(kind));
      int const rank = call % size;
      faults_result const result = run_with({.kind = kind, .rank = rank, .call = call},
                                            {.deadline = std::chrono::seconds(30), .now = &clock_of_fault::now});
      CHECK(result.happened);
      CHECK(others_know(result.all, rank));
    }
}

TEST_CASE("a late rank is no error, and changes nothing") {
  for (int rank = 0; rank < size; ++rank)
    for (auto const& outcome : run_with({.kind = fault::delay, .rank = rank, .call = fault_plan::every}).all)
      CHECK(outcome == nullptr);
}

TEST_CASE("a byte that changes on its way is seen by who compares, or as a mismatch where it is a count") {
  int changed = 0;
  for (int call = 0; call < calls_of_program(); ++call)
    for (int const rank : {0, 3}) {
      CAPTURE(call);
      CAPTURE(rank);
      faults_result const result = run_with({.kind = fault::corrupt, .rank = rank, .call = call});
      int seen = 0;
      for (auto const& outcome : result.all) seen += outcome != nullptr;
      CHECK(seen == (result.happened ? size : 0));
      changed += result.happened;
    }
  CHECK(changed > 20);
}

TEST_CASE("a count that changes on its way to something hostile asks for no memory") {
  for (auto const flipped : {std::byte{0x80}, std::byte{0x40}, std::byte{0x10}}) {
    fault_plan const plan{.kind = fault::corrupt, .rank = 1, .call = 0, .byte = 7, .flipped = flipped};
    auto const all = thread_ranks(3).run([&](mo::thread_communicator& inner) {
      ranks_of ranks(inner, plan);
      ranks.all_gather_v<std::int64_t>(numbers(4, ranks.rank()));
    });
    for (auto const& outcome : all) {
      auto const error = thrown<mo::comm_error>(outcome);
      REQUIRE(error);
      CHECK(error->fault == mo::comm_fault::mismatch);
      CHECK(std::string(error->what()).find("rank 1 of the group announced ") != std::string::npos);
    }
  }
}

TEST_CASE("one rank with faults") {
  faulty<mo::self::communicator> lost({}, {.kind = fault::drop, .call = 0}), twice({}, {.kind = fault::duplicate});
  numbers values{1, 2}, copies(2);
  lost.all_to_all<std::int64_t>(values, copies);
  CHECK(copies == numbers{0, 0});
  lost.all_to_all<std::int64_t>(values, copies);
  twice.all_to_all<std::int64_t>(values, copies);
  CHECK(copies == values);
  CHECK(lost.calls() == 4);
}
