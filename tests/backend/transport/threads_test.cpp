// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/threads.hpp>

#include "backend/transport/thread_ranks.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using mo::comm_fault;
using namespace std::chrono_literals;

namespace {

using ranks_of = mo::thread_communicator;
using numbers = std::vector<std::int64_t>;

std::byte const* sent(std::int64_t const* values) { return reinterpret_cast<std::byte const*>(values); }
std::byte* received(std::int64_t* values) { return reinterpret_cast<std::byte*>(values); }

/// The same values to every rank, and room for the values of every rank.
struct exchange {
  exchange(ranks_of& ranks, numbers values)
      : out(std::move(values)), in(out.size() * static_cast<std::size_t>(ranks.size()), -1) {
    auto const n = static_cast<std::int64_t>(out.size());
    for (std::int64_t r = 0; r < ranks.size(); ++r) {
      to.push_back({sent(out.data()), n, 8, 8, nullptr});
      from.push_back({received(in.data() + r * n), n, 8, 8, nullptr});
    }
  }
  ranks_of::request start(ranks_of& ranks, char const* name = "rows") const {
    return ranks.start({.name = name, .width = 8}, to, from);
  }

  numbers out, in;
  std::vector<mo::outgoing_rows> to;
  std::vector<mo::incoming_rows> from;
};

mo::comm_error error_of(outcomes const& all, std::size_t rank) {
  auto const error = thrown<mo::comm_error>(all[rank]);
  REQUIRE(error.has_value());
  return *error;
}

bool contains(mo::comm_error const& error, std::string const& text) {
  return std::string(error.what()).find(text) != std::string::npos;
}

/// That every rank has this error, and its message one of these texts.
void check_all(outcomes const& all, comm_fault fault, std::initializer_list<char const*> texts) {
  for (std::size_t r = 0; r < all.size(); ++r) {
    mo::comm_error const error = error_of(all, r);
    CHECK(error.fault == fault);
    CHECK_MESSAGE(std::ranges::any_of(texts, [&](char const* text) { return contains(error, text); }), error.what());
  }
}

void await_failure(thread_ranks const& threads) {
  for (int i = 0; i < 60000 && !threads.world->failed(); ++i) std::this_thread::sleep_for(1ms);
}

/// Sets the clock forward, again and again, until the run has failed.
void let_time_pass(thread_ranks const& threads) {
  for (int i = 0; i < 60000 && !threads.world->failed(); ++i) {
    set_clock::seconds += 31;
    std::this_thread::sleep_for(1ms);
  }
}

void broadcast(ranks_of& ranks, std::size_t n, int root) {
  numbers values(n);
  ranks.broadcast(std::span(values), root);
}

void all_reduce(ranks_of& ranks, std::size_t n) {
  numbers values(n);
  ranks.all_reduce(std::span(values));
}

void rows(ranks_of& ranks, char const* name) {
  exchange const one(ranks, {1});
  ranks.finish(one.start(ranks, name));
}

}  // namespace

TEST_CASE("rows go from where they lie to where they belong, none lost and none twice") {
  struct row {
    std::int64_t rank, index;
    auto operator<=>(row const&) const = default;
  };
  struct wide_row {
    row tag{-1, -1};
    std::int64_t padding = 77;
  };
  constexpr int count = 300;
  for (int const size : {1, 2, 3, 4})
    on_ranks(size, [&](ranks_of& ranks) {
      std::mt19937 random(static_cast<unsigned>(ranks.rank()));
      std::vector<row> mine(count);
      std::vector<std::int32_t> order(count);
      numbers out_counts(static_cast<std::size_t>(size)), in_counts(out_counts);
      for (std::int32_t i = 0; i < count; ++i) {
        order[static_cast<std::size_t>(i)] = i;
        mine[static_cast<std::size_t>(i)] = {ranks.rank(), i};
        ++out_counts[random() % out_counts.size() * (random() % 3 == 0)];  // most go to rank 0
      }
      std::ranges::shuffle(order, random);
      ranks.all_to_all<std::int64_t>(out_counts, in_counts);

      std::vector<mo::outgoing_rows> to;
      std::vector<mo::incoming_rows> from;
      auto const total = std::reduce(in_counts.begin(), in_counts.end());
      std::vector<wide_row> got(static_cast<std::size_t>(total));
      std::vector<std::int32_t> places(got.size());
      std::iota(places.begin(), places.end(), 0);
      std::ranges::shuffle(places, random);
      std::int64_t first_out = 0, first_in = 0;
      for (std::size_t r = 0; r < out_counts.size(); ++r) {
        to.push_back({reinterpret_cast<std::byte const*>(mine.data()), out_counts[r], sizeof(row), sizeof(row),
                      order.data() + first_out});
        from.push_back({reinterpret_cast<std::byte*>(got.data()), in_counts[r], sizeof(row), sizeof(wide_row),
                        places.data() + first_in});
        first_out += out_counts[r];
        first_in += in_counts[r];
      }
      ranks.finish(ranks.start({.name = "rows", .width = sizeof(row)}, to, from));

      std::size_t place = 0;
      for (std::int64_t r = 0; r < size; ++r)
        for (std::int64_t i = 0; i < in_counts[static_cast<std::size_t>(r)]; ++i, ++place)
          expect(got[static_cast<std::size_t>(places[place])].tag.rank == r, "a row is not where it belongs");
      std::vector<row> tags;
      for (wide_row const& r : got) {
        expect(r.padding == 77, "written between rows");
        tags.push_back(r.tag);
      }
      auto all = ranks.all_gather_v<row>(tags);
      std::ranges::sort(all);
      for (int r = 0, next = 0; r < size; ++r)
        for (int i = 0; i < count; ++i, ++next) expect(all[static_cast<std::size_t>(next)] == row{r, i}, "rows differ");
      expect(all.size() == static_cast<std::size_t>(size * count), "a row is there twice");
    });
}

TEST_CASE("what was sent may change as soon as the call has returned") {
  constexpr std::int64_t bytes = 1 << 19;
  std::vector<std::int32_t> index(bytes);
  std::iota(index.begin(), index.end(), 0);
  on_ranks(2, [&](ranks_of& ranks) {  // rank 1 is slow to take what rank 0 is quick to change
    std::vector<std::byte> out(bytes), in(bytes);
    for (int round = 1; round <= 10; ++round) {
      std::vector<mo::outgoing_rows> to(2);
      std::vector<mo::incoming_rows> from(2);
      std::ranges::fill(out, std::byte(round));
      if (ranks.rank() == 0) to[1] = {out.data(), bytes, 1, 1, index.data()};
      if (ranks.rank() == 1) from[0] = {in.data(), bytes, 1, 1, index.data()};
      ranks.finish(ranks.start({.name = "rows", .width = 1}, to, from));
      std::ranges::fill(out, std::byte{255});
      if (ranks.rank() == 1) expect(std::ranges::count(in, std::byte(round)) == bytes, "changed while it was taken");
      ranks.barrier();
    }
  });
}

TEST_CASE("several operations are in flight, and finish in the order in which they began") {
  on_ranks(3, [](ranks_of& ranks) {
    for (int round = 0; round < 20; ++round) {
      std::vector<exchange> all;
      for (std::int64_t i = 0; i < 3; ++i)
        all.emplace_back(ranks, numbers(static_cast<std::size_t>(5 * i + 1), 100 * ranks.rank() + i));
      auto first = all[0].start(ranks), second = all[1].start(ranks);
      auto third = std::make_optional(all[2].start(ranks));
      ranks.finish(std::move(first));
      auto fourth = all[0].start(ranks);
      ranks.finish(std::move(second));
      ranks.finish(std::move(*third));
      ranks.finish(std::move(fourth));
      for (std::size_t i = 0; i < all.size(); ++i)
        for (std::size_t at = 0; at < all[i].in.size(); ++at)
          expect(all[i].in[at] == static_cast<std::int64_t>(100 * (at / (5 * i + 1)) + i), "other values");
    }
  });
}

TEST_CASE(
    "requests out of order, finished twice, of another communicator or too many are state_errors, and harm nothing") {
  on_ranks(2, [](ranks_of& ranks) {
    exchange one(ranks, {1, 2}), two(ranks, {3});
    auto part = ranks.split(0, 0, "part");
    auto first = one.start(ranks), second = two.start(ranks);
    expect_throws<mo::state_error>([&] { ranks.finish(std::move(second)); });
    expect_throws<mo::state_error>([&] { part.finish(std::move(first)); });
    ranks.finish(std::move(first));
    expect_throws<mo::state_error>([&] { ranks.finish(std::move(first)); });
    auto moved = std::move(second);
    expect_throws<mo::state_error>([&] { ranks.finish(std::move(second)); });
    ranks.finish(std::move(moved));
    expect(one.in == numbers{1, 2, 1, 2} && two.in == numbers{3, 3}, "other values");

    std::vector<ranks_of::request> many;
    for (int i = 0; i < 8; ++i) many.push_back(one.start(part));
    expect_throws<mo::state_error>([&] { one.start(part); });
    for (auto& request : many) part.finish(std::move(request));
    part.barrier();
  });
}

TEST_CASE("an operation needs rows for every rank") {
  thread_ranks threads(1);
  ranks_of ranks(threads.group, 0);
  std::vector<mo::outgoing_rows> const to(2);
  std::vector<mo::incoming_rows> const from(1);
  CHECK_THROWS_WITH_AS(ranks.start({.name = "rows"}, to, from),
                       "rows needs rows for 1 ranks, but was given 2 to send and 1 to receive.", mo::data_error);
  CHECK_FALSE(threads.world->failed());
}

TEST_CASE("messages round a ring, in both directions, and to oneself") {
  for (int const size : {1, 2, 3, 7})
    on_ranks(size, [&](ranks_of& ranks) {
      int const me = ranks.rank(), next = (me + 1) % size, last = (me + size - 1) % size;
      for (std::int64_t round = 0; round < 20; ++round) {
        numbers const out{100 * round + me, 1000 + 100 * round + me, me};
        numbers in(3, -1);
        std::vector<mo::outgoing_message> const sends{
            {next, sent(&out[0]), 8, 0}, {last, sent(&out[1]), 8, 1}, {me, sent(&out[2]), 8, 2}};
        std::vector<mo::incoming_message> const receives{
            {me, received(&in[2]), 8, 2}, {next, received(&in[1]), 8, 1}, {last, received(&in[0]), 8, 0}};
        ranks.send_recv(sends, receives);
        expect(in == numbers{100 * round + last, 1000 + 100 * round + next, me}, "other messages");
      }
    });
}

TEST_CASE("messages keep their order within a channel, and channels are independent") {
  on_ranks(2, [](ranks_of& ranks) {
    int const other = 1 - ranks.rank();
    std::mt19937 random(5);  // the same on both ranks
    for (int round = 0; round < 30; ++round) {
      numbers out(40), in(40, -1);
      std::array<std::vector<std::size_t>, 3> by_channel;
      std::vector<mo::outgoing_message> sends;
      std::vector<mo::incoming_message> receives;
      for (std::size_t i = 0; i < out.size(); ++i) {
        out[i] = static_cast<std::int64_t>(i) + 100 * ranks.rank();
        auto const channel = static_cast<int>(random() % 3);
        by_channel[static_cast<std::size_t>(channel)].push_back(i);
        sends.push_back({other, sent(&out[i]), 8, channel});
      }
      for (int const channel : {2, 0, 1})
        for (std::size_t const i : by_channel[static_cast<std::size_t>(channel)])
          receives.push_back({other, received(&in[i]), 8, channel});
      ranks.send_recv(sends, receives);
      for (std::size_t i = 0; i < in.size(); ++i)
        expect(in[i] == static_cast<std::int64_t>(i) + 100 * other, "other order");
    }
  });
}

TEST_CASE("sends that go on: they wait for nobody, keep their order, and end when they are taken") {
  on_ranks(3, [](ranks_of& ranks) {
    int const next = (ranks.rank() + 1) % 3, last = (ranks.rank() + 2) % 3;
    numbers out(10);
    std::iota(out.begin(), out.end(), 100 * ranks.rank());
    std::vector<ranks_of::sending> under_way;
    for (std::int64_t const& value : out) {
      std::vector<mo::outgoing_message> const sends{{next, sent(&value), 8, 1}, {last, sent(&value), 8, 2}};
      under_way.push_back(ranks.start_sends(sends));
    }
    ranks.barrier();  // other calls go on meanwhile
    expect(!ranks.sent(under_way.front()), "sent before it was taken");
    ranks.barrier();
    for (int const channel : {2, 1})
      for (int i = 0; i < 10; ++i) {
        int const peer = channel == 1 ? last : next;
        std::int64_t value = -1;
        mo::incoming_message const into{peer, received(&value), 8, channel};
        ranks.send_recv({}, {&into, 1});
        expect(value == 100 * peer + i, "other order");
      }
    for (auto& one : under_way) ranks.finish(std::move(one));
    expect_throws<mo::state_error>([&] { ranks.finish(std::move(under_way.front())); });
    mo::outgoing_message const beyond{3, sent(&out[0]), 8, 0};
    expect_throws<mo::data_error>([&] { ranks.start_sends({&beyond, 1}); });
    static_cast<void>(ranks.start_sends({}));  // nothing is not let go of
    ranks.barrier();
  });
}

TEST_CASE("sends that are let go of end the run, those that are taken do not") {
  for (bool const takes : {true, false}) {
    auto const results = thread_ranks(2).run([&](ranks_of& ranks) {
      std::int64_t value = 7;
      if (ranks.rank() == 0) {
        mo::outgoing_message const out{1, sent(&value), 8, 0};
        auto const one = ranks.start_sends({&out, 1});
        if (takes) ranks.barrier();
      } else {
        mo::incoming_message const in{0, received(&value), 8, 0};
        if (takes) ranks.send_recv({}, {&in, 1});
        ranks.barrier();
      }
    });
    CHECK(results[0] == nullptr);
    CHECK((results[1] == nullptr) == takes);
    if (!takes) CHECK(thrown<mo::comm_error>(results[1])->fault == mo::comm_fault::remote);
  }
}

TEST_CASE("messages of no bytes, none at all, and one side only") {
  on_ranks(3, [](ranks_of& ranks) {
    ranks.send_recv({}, {});
    if (ranks.rank() == 2) return;
    std::int64_t value = ranks.rank() == 0 ? 5 : -1;
    mo::outgoing_message const empty{1, nullptr, 0, 0}, full{1, sent(&value), 8, 0};
    mo::incoming_message const no_bytes{0, nullptr, 0, 0}, into{0, received(&value), 8, 0};
    for (int round = 0; round < 5; ++round)
      if (ranks.rank() == 0) {
        ranks.send_recv({&empty, 1}, {});
        ranks.send_recv({&full, 1}, {});
      } else {
        ranks.send_recv({}, {&no_bytes, 1});
        ranks.send_recv({}, {&into, 1});
        expect(value == 5, "other message");
      }
    expect_throws<mo::data_error>([&] {
      mo::outgoing_message const beyond{3, sent(&value), 8, 0};
      ranks.send_recv({&beyond, 1}, {});
    });
    expect_throws<mo::data_error>([&] {
      mo::incoming_message const before{-1, received(&value), 8, 0};
      ranks.send_recv({}, {&before, 1});
    });
  });
}

TEST_CASE("groups of groups, in the order of their keys, and at the same time") {
  on_ranks(7, [](ranks_of& ranks) {
    int const me = ranks.rank();
    auto parity = ranks.split(me % 2, 0, "parity");
    auto reversed = ranks.split(0, -me, "reversed");
    auto alone = ranks.split(me, 5, "alone");
    auto half = parity.split(parity.rank() / 2, -me, "half");
    expect(parity.size() == (me % 2 == 0 ? 4 : 3) && parity.rank() == me / 2, "parity");
    expect(reversed.size() == 7 && reversed.rank() == 6 - me, "reversed");
    expect(alone.size() == 1 && alone.rank() == 0, "alone");
    expect(half.name() == "half" && half.size() == (me == 5 ? 1 : 2), "half");

    for (int round = 0; round < 10; ++round) {
      std::int64_t sum = me, root = me;
      parity.all_reduce(std::span(&sum, 1));
      expect(sum == (me % 2 == 0 ? 12 : 9), "sum of a parity");
      reversed.broadcast(std::span(&root, 1), 0);
      expect(root == 6, "root of the reversed group");
      expect(
          half.all_gather_v<int>(std::vector<int>{me}) ==
              (half.size() == 1 ? std::vector<int>{5} : std::vector<int>{me / 4 * 4 + me % 2 + 2, me / 4 * 4 + me % 2}),
          "members of a half");
      alone.barrier();
      exchange of_parity(parity, {me}), of_all(ranks, {me});  // in flight together, in groups of their own
      auto first = of_parity.start(parity), second = of_all.start(ranks);
      ranks.finish(std::move(second));
      parity.finish(std::move(first));
      for (std::size_t r = 0; r < of_parity.in.size(); ++r)
        expect(of_parity.in[r] == static_cast<std::int64_t>(r) * 2 + me % 2, "values of a parity");
      for (std::int64_t r = 0; r < 7; ++r) expect(of_all.in[static_cast<std::size_t>(r)] == r, "values of all");
    }
  });
}

TEST_CASE("splits leave nothing behind") {
  std::weak_ptr<mo::detail::thread_world> world;
  {
    thread_ranks threads(4);
    world = threads.world;
    threads.run([](ranks_of& ranks) {
      for (int i = 0; i < 20; ++i) ranks.split(ranks.rank() % 2, 0, "part").split(ranks.rank(), 0, "alone").barrier();
    });
    CHECK(threads.group->parts.empty());
    CHECK(threads.group.use_count() == 1);
  }
  CHECK(world.expired());
}

TEST_CASE("a communicator is a handle: it can be copied and moved while operations are in flight") {
  on_ranks(2, [](ranks_of& ranks) {
    exchange one(ranks, {ranks.rank()});
    auto other = std::make_unique<ranks_of>(ranks);
    auto request = one.start(*other);
    other.reset();
    ranks.finish(std::move(request));
    expect(one.in == numbers{0, 1}, "other values");
  });
}

TEST_CASE("ranks that disagree all throw a mismatch that says how") {
  using call = void (*)(ranks_of&);
  struct disagreement {
    call of_one, of_others;
    char const *text, *other_way;
  };
  static constexpr auto gather = [](ranks_of& ranks, auto value) {
    std::vector<decltype(value)> all(static_cast<std::size_t>(ranks.size()));
    ranks.all_gather<decltype(value)>({&value, 1}, all);
  };
  disagreement const all[] = {
      {[](ranks_of& r) { rows(r, "dispatch"); }, [](ranks_of& r) { rows(r, "combine"); }, "dispatch", "combine"},
      {[](ranks_of& r) { gather(r, 1.0F); }, [](ranks_of& r) { gather(r, 1.0); }, "elements of 4 bytes", "of 8 bytes"},
      {[](ranks_of& r) { broadcast(r, 3, 0); }, [](ranks_of& r) { broadcast(r, 4, 0); }, "3 of them", "4 of them"},
      {[](ranks_of& r) { broadcast(r, 3, 0); }, [](ranks_of& r) { broadcast(r, 3, 1); }, "root 0", "root 1"},
      {[](ranks_of& r) { r.barrier(); }, [](ranks_of& r) { gather(r, 1.0); }, "barrier", "all_gather"},
      {[](ranks_of& r) { all_reduce(r, 5); }, [](ranks_of& r) { all_reduce(r, 5000); }, "all_gather", "reduce_scatter"},
      {[](ranks_of& r) { all_reduce(r, 5000); }, [](ranks_of& r) { all_reduce(r, 5001); }, "5000 of", "5001 of"},
  };
  for (disagreement const& how : all)
    for (int const one : {0, 2}) {
      auto const results = thread_ranks(3).run([&](ranks_of& ranks) {
        ranks.at_step(41);
        (ranks.rank() == one ? how.of_one : how.of_others)(ranks);
      });
      check_all(results, comm_fault::mismatch, {how.text});
      check_all(results, comm_fault::mismatch, {how.other_way});
      for (std::size_t r = 0; r < results.size(); ++r) {
        mo::comm_error const error = error_of(results, r);
        CHECK(error.step == 41);
        CHECK(contains(error, "among the 3 world ranks, call "));
        CHECK(contains(error, "step 41"));
        CHECK(error.what() == std::string(error_of(results, 0).what()));
      }
    }
}

TEST_CASE("the order of operations is part of what ranks agree on") {
  auto const results = thread_ranks(3).run([](ranks_of& ranks) {
    std::vector<int> one(1), all(3);
    if (ranks.rank() == 1) ranks.barrier();
    ranks.all_gather<int>(one, all);
    if (ranks.rank() != 1) ranks.barrier();
  });
  check_all(results, comm_fault::mismatch, {"it called barrier", "it called all_gather"});
}

TEST_CASE("counts of two sides that differ are a mismatch with both") {
  auto const results = thread_ranks(3).run([](ranks_of& ranks) {
    numbers const values(6), counts{2, 2, 2};
    numbers in(ranks.rank() == 2 ? 7 : 6), in_counts = counts;
    in_counts[0] += ranks.rank() == 2;
    ranks.all_to_all_v<std::int64_t>(values, counts, in, in_counts);
  });
  check_all(results, comm_fault::mismatch, {"it sends 2 rows of 8 bytes where rank 2 expects 3 of 8"});
  CHECK(error_of(results, 1).rank == 0);

  std::int64_t const large = std::int64_t{1} << 33, more = large + (std::int64_t{1} << 32);
  check_all(thread_ranks(2).run([&](ranks_of& ranks) {
    std::byte byte{};
    std::vector<mo::outgoing_rows> to(2);
    std::vector<mo::incoming_rows> from(2);
    if (ranks.rank() == 0) to[1] = {&byte, large, 1, 1, nullptr};
    if (ranks.rank() == 1) from[0] = {&byte, more, 1, 1, nullptr};
    ranks.finish(ranks.start({.name = "rows", .width = 1}, to, from));
  }),
            comm_fault::mismatch, {"it sends 8589934592 rows of 1 bytes where rank 1 expects 12884901888 of 1"});
}

TEST_CASE("messages of another size are a mismatch with both") {
  auto const results = thread_ranks(2).run([](ranks_of& ranks) {
    ranks.at_step(8);
    numbers values(2);
    mo::outgoing_message const out{1, sent(values.data()), 16, 3};
    mo::incoming_message const in{0, received(values.data()), 8, 3};
    if (ranks.rank() == 0) ranks.send_recv({&out, 1}, {});
    if (ranks.rank() == 1) ranks.send_recv({}, {&in, 1});
  });
  check_all(results, comm_fault::mismatch, {"rank 0 disagrees: it sends 16 bytes on channel 3 where rank 1 expects 8"});
  CHECK(error_of(results, 0).operation == "send_recv");
  CHECK(error_of(results, 0).rank == 0);
  CHECK(error_of(results, 0).step == 8);
}

TEST_CASE("a rank that returns early is named by those that wait for it") {
  for (int const early : {0, 2}) {
    auto const results = thread_ranks(3).run([&](ranks_of& ranks) {
      ranks.barrier();
      if (ranks.rank() == early) return;
      numbers one(1);
      ranks.all_reduce(std::span(one));
    });
    for (int r = 0; r < 3; ++r) {
      if (r == early) {
        CHECK(results[static_cast<std::size_t>(r)] == nullptr);
        continue;
      }
      mo::comm_error const error = error_of(results, static_cast<std::size_t>(r));
      CHECK(error.fault == comm_fault::remote);
      CHECK(error.rank == early);
      CHECK(contains(error, "has ended and will not come"));
    }
  }
  auto const results = thread_ranks(2).run([](ranks_of& ranks) {
    std::int64_t value = 0;
    mo::incoming_message const in{0, received(&value), 8, 0};
    if (ranks.rank() == 1) ranks.send_recv({}, {&in, 1});
  });
  CHECK(error_of(results, 1).rank == 0);
}

TEST_CASE("the deadline names those that did not come, and they learn of it") {
  thread_ranks threads(4, {.deadline = 30s, .now = &set_clock::now});
  auto const results = threads.run([&](ranks_of& ranks) {
    ranks.at_step(3);
    ranks.barrier();
    if (ranks.rank() == 1) {
      while (!threads.has_begun(0, 2) || !threads.has_begun(3, 2)) std::this_thread::sleep_for(1ms);
      let_time_pass(threads);
    }
    if (ranks.rank() == 2) await_failure(threads);
    ranks.barrier();
  });
  check_all(results, comm_fault::timeout, {"rank 1 and rank 2 did not come within 30000 ms"});
  mo::comm_error const error = error_of(results, 0);
  CHECK(error.operation == "barrier");
  CHECK(error.rank == 1);
  CHECK(error.step == 3);
}

TEST_CASE("a message that does not come, or that nobody takes, ends at the deadline") {
  for (bool const sends : {true, false}) {
    thread_ranks threads(2, {.deadline = 30s, .now = &set_clock::now});
    check_all(threads.run([&](ranks_of& ranks) {
      std::int64_t value = 0;
      mo::outgoing_message const out{1, sent(&value), 8, 0};
      mo::incoming_message const in{1, received(&value), 8, 0};
      if (ranks.rank() == 1) let_time_pass(threads);
      if (ranks.rank() == 1) ranks.barrier();
      if (sends) ranks.send_recv({&out, 1}, {});
      if (!sends) ranks.send_recv({}, {&in, 1});
    }),
              comm_fault::timeout, {"send_recv among the 2 world ranks, call 0, step 0: rank 1 did not come"});
  }
}

TEST_CASE("a deadline by the clock of the machine") {
  thread_ranks threads(2, {.deadline = 100ms});
  auto const results = threads.run([&](ranks_of& ranks) {
    if (ranks.rank() == 1) await_failure(threads);
    ranks.barrier();
  });
  CHECK(error_of(results, 0).fault == comm_fault::timeout);
  CHECK(error_of(results, 1).fault == comm_fault::timeout);
  CHECK(error_of(results, 0).rank == 1);
}

TEST_CASE("a slow rank is waited for") {
  on_ranks(3, [](ranks_of& ranks) {
    for (int slow = 0; slow < 3; ++slow) {
      if (ranks.rank() == slow) std::this_thread::sleep_for(30ms);
      std::int64_t sum = 1;
      ranks.all_reduce(std::span(&sum, 1));
      expect(sum == 3, "sum");
    }
  });
}

TEST_CASE("a rank that throws ends the waiting of all, and every later call, in every group") {
  auto const begin = std::chrono::steady_clock::now();
  auto const results = thread_ranks(4).run([](ranks_of& ranks) {
    auto pair = ranks.split(ranks.rank() / 2, 0, "pair");
    if (ranks.rank() == 3) throw std::runtime_error("an expert is broken");
    numbers one(1);
    expect_throws<mo::comm_error>([&] {
      for (;;) pair.all_reduce(std::span(one));
    });
    for (int again = 0; again < 3; ++again) {
      expect_throws<mo::comm_error>([&] { ranks.barrier(); });
      expect_throws<mo::comm_error>([&] { ranks.split(0, 0, "other"); });
      expect_throws<mo::comm_error>([&] { pair.send_recv({}, {}); });
    }
    exchange rows(ranks, {1});
    rows.start(ranks);
  });
  CHECK(thrown<std::runtime_error>(results[3])->what() == std::string("an expert is broken"));
  for (std::size_t r = 0; r < 3; ++r) {
    CHECK(error_of(results, r).fault == comm_fault::remote);
    CHECK(error_of(results, r).rank == 3);
  }
  CHECK(std::chrono::steady_clock::now() - begin < 60s);
}

TEST_CASE("to let go of a request is a failure that names the operation") {
  auto const results = thread_ranks(3).run([](ranks_of& ranks) {
    ranks.at_step(6);
    exchange rows(ranks, {1});
    auto request = rows.start(ranks, "dispatch");
    if (ranks.rank() == 1) {
      { auto const gone = std::move(request); }
      ranks.barrier();
    }
    ranks.finish(std::move(request));
  });
  for (std::size_t r = 0; r < 3; ++r) {
    mo::comm_error const error = error_of(results, r);
    CHECK(error.fault == (r == 1 ? comm_fault::aborted : comm_fault::remote));
    CHECK(error.rank == 1);
    CHECK(error.operation == "dispatch");
    CHECK(error.what() ==
          std::string("dispatch among the 3 world ranks, call 1, step 6: rank 1 let go of it unfinished."));
  }
}

TEST_CASE("a request outlives its communicator, in bounded time") {
  auto const results = thread_ranks(2).run([](ranks_of& ranks) {
    std::optional<ranks_of::request> request;
    auto part = std::make_unique<ranks_of>(ranks.split(0, 0, "part"));
    exchange rows(*part, {1});
    request.emplace(rows.start(*part));
    part.reset();
    ranks.barrier();
    request.reset();
    ranks.barrier();
  });
  for (std::size_t r = 0; r < 2; ++r) CHECK(error_of(results, r).operation == "rows");
}

TEST_CASE("nothing is read of a rank that has failed and gone") {
  std::atomic<bool> gone{false};
  numbers memory(1000, 1), into(1000, -1);
  thread_ranks threads(2);
  auto const results = threads.run([&](ranks_of& ranks) {
    std::vector<mo::outgoing_rows> to(2);
    std::vector<mo::incoming_rows> from(2);
    if (ranks.rank() == 0) {
      while (!threads.has_begun(1, 1)) std::this_thread::yield();
      to[1] = {sent(memory.data()), 1000, 8, 8, nullptr};
      { auto const request = ranks.start({.name = "rows", .width = 8}, to, from); }
      std::ranges::fill(memory, 666);
      gone.store(true);
    } else {
      from[0] = {received(into.data()), 1000, 8, 8, nullptr};
      auto request = ranks.start({.name = "rows", .width = 8}, to, from);
      while (!gone.load()) std::this_thread::yield();
      ranks.finish(std::move(request));
    }
  });
  CHECK(into == numbers(1000, -1));
  CHECK(results[0] == nullptr);
  CHECK(error_of(results, 1).rank == 0);
}

TEST_CASE("a rank that fails keeps its memory until nobody reads it") {
  constexpr std::int64_t bytes = 1 << 18;
  std::vector<std::int32_t> index(bytes);
  std::iota(index.begin(), index.end(), 0);
  for (int round = 0; round < 12; ++round) {
    std::array<std::vector<std::byte>, 3> into;
    into.fill(std::vector<std::byte>(bytes));
    auto const results = thread_ranks(3).run([&](ranks_of& ranks) {
      std::vector<std::byte> out(bytes, std::byte{1});
      struct spoiled {  // so that a late reader is seen without a sanitizer
        std::vector<std::byte>& memory;
        ~spoiled() { std::ranges::fill(memory, std::byte{2}); }
      } const at_the_end{out};
      std::vector<mo::outgoing_rows> to(3);
      std::vector<mo::incoming_rows> from(3);
      if (ranks.rank() == 0)
        for (std::size_t r : {1U, 2U}) to[r] = {out.data(), bytes, 1, 1, index.data()};
      else
        from[0] = {into[static_cast<std::size_t>(ranks.rank())].data(), bytes, 1, 1, index.data()};
      auto request = ranks.start({.name = "rows", .width = 1}, to, from);
      if (ranks.rank() == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(100 * round));
        throw std::runtime_error("in flight");
      }
      ranks.finish(std::move(request));
    });
    CHECK(thrown<std::runtime_error>(results[0]));
    for (std::size_t r : {1U, 2U}) CHECK(std::ranges::count(into[r], std::byte{2}) == 0);
  }
}

TEST_CASE("letters of a rank that fails are not read when it has gone") {
  constexpr std::size_t bytes = 1 << 20;
  for (int round = 0; round < 8; ++round) {
    std::vector<std::byte> into(bytes);
    thread_ranks(3).run([&](ranks_of& ranks) {
      std::vector<std::byte> out(bytes, std::byte{1});
      mo::outgoing_message const to_one{1, out.data(), bytes, 0};
      mo::incoming_message const from_zero{0, into.data(), bytes, 0};
      if (ranks.rank() == 2) std::this_thread::sleep_for(std::chrono::microseconds(50 * round));
      if (ranks.rank() == 2) throw std::runtime_error("elsewhere");
      if (ranks.rank() == 0) {
        try {
          ranks.send_recv({&to_one, 1}, {});
        } catch (mo::comm_error const&) {
        }
        std::ranges::fill(out, std::byte{2});
      } else {
        ranks.send_recv({}, {&from_zero, 1});
      }
    });
    CHECK(std::ranges::count(into, std::byte{2}) == 0);
  }
}

TEST_CASE("the first failure is the one that all see") {
  thread_ranks threads(3);
  auto const results = threads.run([&](ranks_of& ranks) {
    if (ranks.rank() == 0) ranks.fail(comm_fault::mismatch, "routing", "the layouts differ");
    while (!threads.world->failed()) std::this_thread::yield();
    if (ranks.rank() == 1) throw std::runtime_error("second");
    expect_throws<mo::comm_error>([&] { ranks.fail(comm_fault::timeout, "third", "late"); });
    ranks.barrier();
  });
  for (std::size_t r : {0U, 2U}) {
    CHECK(error_of(results, r).operation == "routing");
    CHECK(error_of(results, r).rank == 0);
    CHECK(error_of(results, r).fault == comm_fault::mismatch);
    CHECK(error_of(results, r).what() ==
          std::string("routing among the 3 world ranks, call 0, step 0: the layouts differ."));
  }
}

TEST_CASE("two threads in calls of one communicator: a state_error, and no harm to the one that came first") {
  thread_ranks threads(2);
  std::atomic<bool> finishes{false}, tried{false}, refused{false};
  auto const results = threads.run([&](ranks_of& ranks) {
    exchange rows(ranks, {ranks.rank()});
    if (ranks.rank() == 1) {
      while (!tried.load()) std::this_thread::yield();
      ranks.finish(rows.start(ranks));
      return;
    }
    auto request = rows.start(ranks);
    std::thread other([&] {
      while (!finishes.load() || !threads.group->of(0).in_call.load()) std::this_thread::yield();
      try {
        ranks.send_recv({}, {});
      } catch (mo::state_error const&) {
        refused.store(true);
      }
      tried.store(true);
    });
    finishes.store(true);
    ranks.finish(std::move(request));
    other.join();
    expect(rows.in == numbers{0, 1}, "other values");
  });
  CHECK(refused.load());
  for (auto const& outcome : results) CHECK(outcome == nullptr);
}
