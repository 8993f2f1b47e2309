// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/mpi.hpp>

#include "backend/transport/mpi_ranks.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace mo = moiety;
using namespace std::chrono_literals;
using ranks = mo::mpi_communicator;
using mpi_ranks::ending;
using mpi_ranks::ending_of;
using mpi_ranks::values_of;
using mpi_ranks::world_of;

namespace {

/// Ways in which rows go: by boards, and what is large and of one piece as messages; as messages alone of the usual length, and of
/// one that cuts elements.
struct way {
  std::int64_t piece;
  bool boards;
};
constexpr way ways[] = {{1021, true}, {std::int64_t{1} << 26, false}, {1021, false}};

/// ((r₀ + r₁) + r₂) + …
template <class T> std::vector<T> sum_of(int size, std::int64_t n) {
  auto sum = values_of<T>(0, n);
  for (int r = 1; r < size; ++r) {
    auto const more = values_of<T>(r, n);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
  }
  return sum;
}

/// Values that `from` sends to `to`: none for some pairs, else any number.
std::int64_t count_of(int from, int to) {
  return (from + 2 * to) % 3 == 0 ? 0 : 97 * from + 31 * to + (to % 2 == 0 ? 3000 : 5);
}

bool says(std::exception const& e, std::string const& text) {
  return std::string(e.what()).find(text) != std::string::npos;
}

}  // namespace

static_assert(mo::communicator<mo::mpi::communicator> && !mo::mpi::single_rank);

TEST_CASE_TEMPLATE("all_to_all_v of uneven and empty blocks", T, char, float, std::int64_t) {
  for (auto const [piece, boards] : ways) {
    ranks w = world_of(60s, piece, boards);
    int const me = w.rank(), size = w.size();
    std::vector<std::int64_t> to, from;
    std::vector<T> out, wanted;
    for (int r = 0; r < size; ++r) {
      to.push_back(count_of(me, r));
      from.push_back(count_of(r, me));
      auto const mine = values_of<T>(me, to.back(), static_cast<unsigned>(r));
      auto const theirs = values_of<T>(r, from.back(), static_cast<unsigned>(me));
      out.insert(out.end(), mine.begin(), mine.end());
      wanted.insert(wanted.end(), theirs.begin(), theirs.end());
    }
    std::vector<T> in(wanted.size());
    w.all_to_all_v<T>(out, to, in, from);
    CHECK(in == wanted);
  }
}

TEST_CASE("broadcast, and blocks of one size") {
  ranks w = world_of();
  auto const size = static_cast<std::size_t>(w.size());
  for (std::int64_t const n : {0, 1, 7, 40000, 300000})
    for (int root = 0; root < w.size(); ++root) {
      auto values = values_of<double>(w.rank(), n, 5);
      w.broadcast<double>(values, root);
      CHECK(values == values_of<double>(root, n, 5));
    }
  for (std::int64_t const n : {0, 1, 7, 40000, 300000}) {
    auto const block = static_cast<std::size_t>(n);
    std::vector<double> all(size * block), out(size * block), in(size * block), wanted;
    for (int r = 0; r < w.size(); ++r) {
      auto const theirs = values_of<double>(r, n);
      wanted.insert(wanted.end(), theirs.begin(), theirs.end());
    }
    w.all_gather<double>(values_of<double>(w.rank(), n), all);
    CHECK(all == wanted);

    for (std::size_t r = 0; r < size; ++r)
      for (std::size_t i = 0; i < block; ++i) {
        auto const me = static_cast<std::size_t>(w.rank());
        out[r * block + i] = static_cast<double>(1000 * me + 10 * r + i % 7);
        wanted[r * block + i] = static_cast<double>(1000 * r + 10 * me + i % 7);
      }
    w.all_to_all<double>(out, in);
    CHECK(in == wanted);
  }
}

TEST_CASE("all_gather_v of any number of values each") {
  ranks w = world_of();
  std::vector<float> wanted;
  for (int r = 0; r < w.size(); ++r) {
    auto const theirs = values_of<float>(r, 1111 * (r % 3));
    wanted.insert(wanted.end(), theirs.begin(), theirs.end());
  }
  CHECK(w.all_gather_v<float>(values_of<float>(w.rank(), 1111 * (w.rank() % 3))) == wanted);
}

TEST_CASE_TEMPLATE("sums have the bits of one order", T, float, double, std::int64_t) {
  for (auto const [piece, boards] : ways) {
    ranks w = world_of(60s, piece, boards);
    for (std::int64_t const n : {0, 1, 3, 501, 30001}) {
      auto const wanted = sum_of<T>(w.size(), n);
      auto values = values_of<T>(w.rank(), n);
      w.all_reduce<T>(values);
      CHECK(values == wanted);

      auto scattered = values_of<T>(w.rank(), n), expected = scattered;
      w.reduce_scatter<T>(scattered);
      mo::range_of const mine = mo::slice_of(n, w.rank(), w.size());
      std::copy_n(wanted.begin() + mine.first, mine.count, expected.begin() + mine.first);
      CHECK(scattered == expected);
      w.all_gather_slices<T>(scattered);
      CHECK(scattered == wanted);
    }
  }
}

TEST_CASE("rows of any place, several operations in flight") {
  for (auto const [piece, boards] : ways) {
    ranks w = world_of(60s, piece, boards);
    auto const size = static_cast<std::size_t>(w.size());
    constexpr std::int64_t rows = 61, stride = 40;
    constexpr int in_flight = ranks::in_flight;
    std::vector<std::int32_t> index(rows);
    for (std::int32_t i = 0; i < rows; ++i)
      index[static_cast<std::size_t>(i)] = (i * 17) % static_cast<std::int32_t>(rows);

    // Operation o moves rows of 8 + o floats of which rank r has value 1e6 r + 1e4 peer + 100 o + row % 100.
    auto value = [](int from, int to, int o, std::int64_t row) {
      return static_cast<float>(1e6 * from + 1e4 * to + 100 * o + static_cast<double>(row % 100));
    };
    std::vector<std::vector<float>> out(in_flight), in(in_flight);
    std::vector<ranks::request> requests;
    for (int o = 0; o < in_flight; ++o) {
      auto const at = static_cast<std::size_t>(o);
      std::int64_t const width = 4 * (8 + o);
      out[at].resize(size * rows * stride);
      in[at].assign(size * rows * stride, -1);
      std::vector<mo::outgoing_rows> to;
      std::vector<mo::incoming_rows> from;
      for (int r = 0; r < w.size(); ++r) {
        auto const base = static_cast<std::size_t>(r) * rows * stride;
        for (std::int64_t row = 0; row < rows; ++row)
          std::fill_n(&out[at][base + static_cast<std::size_t>(row * stride)], 8 + o, value(w.rank(), r, o, row));
        to.push_back({reinterpret_cast<std::byte const*>(&out[at][base]), rows, width, 4 * stride, index.data()});
        from.push_back({reinterpret_cast<std::byte*>(&in[at][base]), rows, width, 4 * stride, nullptr});
      }
      requests.push_back(w.start({.name = "rows", .width = width}, to, from));
    }
    CHECK_THROWS_AS(w.barrier(), mo::state_error);
    CHECK_THROWS_AS(w.finish(std::move(requests[1])), mo::state_error);
    for (auto& request : requests) w.finish(std::move(request));
    CHECK_THROWS_AS(w.finish(std::move(requests[0])), mo::state_error);

    int wrong = 0;
    for (int o = 0; o < in_flight; ++o)
      for (int r = 0; r < w.size(); ++r)
        for (std::int64_t i = 0; i < rows * stride; ++i) {
          std::int64_t const row = i / stride;
          bool const inside = i % stride < 8 + o;
          float const wanted = inside ? value(r, w.rank(), o, index[static_cast<std::size_t>(row)]) : -1;
          wrong += in[static_cast<std::size_t>(o)][static_cast<std::size_t>(r * rows * stride + i)] != wanted;
        }
    CHECK(wrong == 0);
    w.barrier();
  }
}

TEST_CASE("parts of the ranks, in the order of their keys") {
  ranks w = world_of();
  ranks part = w.split(w.rank() % 2 == 0 ? -5 : 70000, -w.rank(), "parity");
  CHECK(part.name() == "parity");
  CHECK(part.size() == (w.size() + (w.rank() % 2 == 0 ? 1 : 0)) / 2);
  CHECK(part.rank() == part.size() - 1 - w.rank() / 2);
  int const me = w.rank();
  std::vector<int> wanted;
  for (int r = w.size() - 1; r >= 0; --r)
    if (r % 2 == me % 2) wanted.push_back(r);
  CHECK(part.all_gather_v<int>(std::span(&me, 1)) == wanted);

  ranks alone = part.split(part.rank(), 0, "alone");
  CHECK(alone.size() == 1);
  std::vector<float> values{1, 2, 3};
  alone.all_reduce<float>(values);
  CHECK(values == std::vector<float>{1, 2, 3});

  // Groups do not hear each other's messages, whatever the order in which they are used.
  ranks same = w.split(0, w.rank(), "same");
  std::vector<int> here(static_cast<std::size_t>(w.size())), there = here;
  auto gather = [&](ranks& of, int const& mine, std::vector<int>& all) {
    std::vector<mo::outgoing_rows> const to(all.size(), mo::detail::block_of<std::byte const>(&mine, 1));
    std::vector<mo::incoming_rows> from;
    for (int& place : all) from.push_back(mo::detail::block_of<std::byte>(&place, 1));
    return of.start({.name = "gather", .width = 4, .count = 1}, to, from);
  };
  int const first = 10 + me, second = 20 + me;
  auto one = gather(w, first, here);
  auto two = gather(same, second, there);
  CHECK_THROWS_AS(w.finish(std::move(two)), mo::state_error);
  same.finish(std::move(two));
  w.finish(std::move(one));
  for (int r = 0; r < w.size(); ++r) {
    CHECK(here[static_cast<std::size_t>(r)] == 10 + r);
    CHECK(there[static_cast<std::size_t>(r)] == 20 + r);
  }
}

TEST_CASE("messages between pairs keep their order in a channel") {
  for (auto const [piece, boards] : ways) {
    ranks w = world_of(60s, piece, boards);
    int const next = (w.rank() + 1) % w.size(), previous = (w.rank() + w.size() - 1) % w.size();
    constexpr std::int64_t sizes[] = {0, 1, 5000, 300000};
    std::vector<std::vector<char>> out, in;
    std::vector<mo::outgoing_message> sends;
    std::vector<mo::incoming_message> receives;
    for (unsigned m = 0; m < 12; ++m) {
      out.push_back(values_of<char>(w.rank(), sizes[m % 4], m));
      in.emplace_back(static_cast<std::size_t>(sizes[m % 4]));
    }
    auto const channel = [](unsigned m) { return m < 6 ? 3 : 10000; };
    for (unsigned m = 0; m < 12; ++m)
      sends.push_back({next, reinterpret_cast<std::byte const*>(out[m].data()), sizes[m % 4], channel(m)});
    // The later channel is received first.
    for (unsigned m : {6u, 7u, 8u, 9u, 10u, 11u, 0u, 1u, 2u, 3u, 4u, 5u})
      receives.push_back({previous, reinterpret_cast<std::byte*>(in[m].data()), sizes[m % 4], channel(m)});
    w.send_recv(sends, receives);
    for (unsigned m = 0; m < 12; ++m) CHECK(in[m] == values_of<char>(previous, sizes[m % 4], m));
    w.send_recv({}, {});

    std::byte one{42}, other{};
    w.send_recv(std::vector<mo::outgoing_message>{{w.rank(), &one, 1, 0}},
                std::vector<mo::incoming_message>{{w.rank(), &other, 1, 0}});
    CHECK(other == one);
    CHECK_THROWS_AS(w.send_recv(std::vector<mo::outgoing_message>{{w.size(), &one, 1, 0}}, {}), mo::data_error);
    CHECK_THROWS_AS(w.send_recv(std::vector<mo::outgoing_message>{{0, &one, 1, -1}}, {}), mo::data_error);
    w.barrier();
  }
}

TEST_CASE("sends that go on wait for nobody, and keep their order") {
  for (auto const [piece, boards] : ways) {
    ranks w = world_of(60s, piece, boards);
    int const next = (w.rank() + 1) % w.size(), previous = (w.rank() + w.size() - 1) % w.size();
    constexpr std::int64_t sizes[] = {0, 1, 5000, 300000};
    std::vector<std::vector<char>> out;
    std::vector<ranks::sending> under_way;
    for (unsigned m = 0; m < 8; ++m) {
      out.push_back(values_of<char>(w.rank(), sizes[m % 4], m));
      mo::outgoing_message const one{next, reinterpret_cast<std::byte const*>(out[m].data()), sizes[m % 4], 3};
      under_way.push_back(w.start_sends({&one, 1}));
    }
    w.barrier();  // nobody receives before all have sent
    for (unsigned m = 0; m < 8; ++m) {
      std::vector<char> in(static_cast<std::size_t>(sizes[m % 4]));
      mo::incoming_message const one{previous, reinterpret_cast<std::byte*>(in.data()), sizes[m % 4], 3};
      w.send_recv({}, {&one, 1});
      CHECK(in == values_of<char>(previous, sizes[m % 4], m));
    }
    for (auto& one : under_way)
      if (!w.sent(one)) w.finish(std::move(one));
    CHECK(w.sent(under_way.front()));
    CHECK_THROWS_AS(w.finish(std::move(under_way.front())), mo::state_error);
    w.barrier();
  }
}

TEST_CASE("a slow rank is waited for") {
  ranks w = world_of(20s);
  if (w.rank() == 0) std::this_thread::sleep_for(400ms);
  int sum = 1;
  w.all_reduce(std::span(&sum, 1));
  CHECK(sum == w.size());
}

TEST_CASE("a rank that throws ends the waiting of all others") {
  for (int const which : {0, 1, 2, 3}) {
    bool const in_flight = which % 2 != 0, boards = which / 2 != 0;
    int size = 0, me = 0;
    bool own = false;
    ending const end = ending_of([&] {
      try {
        ranks w = world_of(60s, ways[0].piece, boards);
        size = w.size(), me = w.rank();
        w.at_step(6);
        w.barrier();
        std::vector<double> large(300000);
        auto const block = mo::detail::block_of<std::byte const>(large.data(), 300000);
        std::vector<double> in(300000 * static_cast<std::size_t>(size));
        std::vector<mo::incoming_rows> from;
        for (int r = 0; r < size; ++r) from.push_back(mo::detail::block_of<std::byte>(in.data() + 300000 * r, 300000));
        if (me == size - 1 && !in_flight) throw std::runtime_error("my own");
        auto request = w.start({.name = "gather"}, std::vector(static_cast<std::size_t>(size), block), from);
        if (me == size - 1) throw std::runtime_error("my own");
        w.finish(std::move(request));
        w.barrier();
      } catch (std::runtime_error const& e) {
        own = std::string(e.what()) == "my own";
        if (!own) throw;
      }
    });
    CHECK(own == (me == size - 1));
    if (own || size == 1) continue;
    CHECK(end.error.fault == mo::comm_fault::remote);
    CHECK(end.error.rank == size - 1);
    CHECK(end.took < 10s);
  }
}

TEST_CASE("a rank that skips a collective is named at the deadline, on every rank") {
  for (bool const boards : {true, false}) {
    ranks w = world_of(1s, ways[0].piece, boards);
    int const last = w.size() - 1;
    w.at_step(4);
    w.barrier();
    ending const end = ending_of([&] {
      if (w.rank() == last) std::this_thread::sleep_for(2500ms);
      w.barrier();
      w.barrier();
    });
    if (w.size() == 1) return;
    CHECK(end.error.fault == mo::comm_fault::timeout);
    CHECK(end.error.operation == "barrier");
    CHECK(end.error.rank == last);
    CHECK(end.error.step == 4);
    CHECK(says(end.error, "rank " + std::to_string(last) + " did not come within 1000 ms"));
    if (w.size() == 2) CHECK(end.took >= 950ms);  // of more ranks one that began earlier may tell the others
    CHECK(end.took < 10s);
    CHECK_THROWS_AS(w.barrier(), mo::comm_error);
    CHECK_THROWS_AS(w.send_recv({}, {}), mo::comm_error);
    CHECK_THROWS_AS(w.split(0, 0, "late"), mo::comm_error);
  }
}

TEST_CASE("all ranks that did not come are listed, and a split has a deadline") {
  ranks w = world_of(1s);
  if (w.size() < 3) return;
  ending const end = ending_of([&] {
    if (w.rank() > 0) std::this_thread::sleep_for(2500ms);
    w.split(0, 0, "part");
  });
  CHECK(end.error.fault == mo::comm_fault::timeout);
  CHECK(end.error.rank == 1);
  CHECK(says(end.error, "ranks 1, 2"));
}

TEST_CASE("a message that is not sent, and one that is not taken, have the deadline of a collective") {
  enum class awaited { message, receiver, receiver_later };
  for (awaited const what : {awaited::message, awaited::receiver, awaited::receiver_later}) {
    CAPTURE(static_cast<int>(what));
    ranks w = world_of(1s);
    if (w.size() == 1) return;
    int const last = w.size() - 1;
    w.at_step(9);
    w.barrier();
    std::vector<std::byte> values(1 << 20);
    mo::outgoing_message const out{last, values.data(), std::ssize(values)};
    mo::incoming_message const in{last, values.data(), std::ssize(values)};
    ending const end = ending_of([&] {
      if (w.rank() == last) std::this_thread::sleep_for(2s);
      if (w.rank() == 0 && what == awaited::message) w.send_recv({}, {&in, 1});
      if (w.rank() == 0 && what == awaited::receiver) w.send_recv({&out, 1}, {});
      if (w.rank() == 0 && what == awaited::receiver_later) w.finish(w.start_sends({&out, 1}));
      w.barrier();
    });
    CHECK(end.error.fault == mo::comm_fault::timeout);
    // Of more ranks one that waits in the barrier may be the first to say so, of rank 0.
    CHECK((end.error.rank == last || (w.size() > 2 && end.error.rank == 0)));
    CHECK(end.error.step == 9);
    if (w.size() == 2) CHECK(end.error.operation == "send_recv");
    CHECK(end.took < 10s);
  }
}

TEST_CASE("ranks that disagree hear of it, all of them") {
  int const cases = 6;
  for (int each = 0; each < 2 * cases; ++each) {
    int const which = each % cases;
    CAPTURE(each);
    ranks w = world_of(20s, ways[1].piece, each < cases);
    if (w.size() == 1) return;
    int const last = w.size() - 1;
    bool const odd = w.rank() == last;
    std::vector<double> values(200000);
    std::span const few(values.data(), 10);
    auto blocks = [&](std::int64_t n, std::int64_t other) {  // n values between rank 0 and the last, none elsewhere
      std::vector<std::int64_t> counts(static_cast<std::size_t>(w.size()));
      if (w.rank() == 0) counts.back() = n;
      if (odd) counts.front() = other;
      return counts;
    };
    std::vector<double> in(200000);
    ending const end = ending_of([&] {
      switch (which) {
        case 0: odd ? w.barrier() : w.all_reduce(few); break;
        case 1: w.all_reduce(odd ? few.first(9) : few); break;
        case 2: w.broadcast(few, odd ? last : 0); break;
        case 3:
        case 4: {  // what is sent is longer than its place, by far; or shorter
          auto const sent = blocks(which == 3 ? 150000 : 10, 0), got = blocks(0, which == 3 ? 10 : 150000);
          auto all = [](auto const& counts) {
            return static_cast<std::size_t>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}));
          };
          w.all_to_all_v<double>(std::span(values).first(all(sent)), sent, std::span(in).first(all(got)), got);
          break;
        }
        default: {
          std::byte some[8] = {};
          if (w.rank() == 0) w.send_recv(std::vector<mo::outgoing_message>{{last, some, 8, 2}}, {});
          if (odd) w.send_recv({}, std::vector<mo::incoming_message>{{0, some, 7, 2}});
        }
      }
      w.barrier();
    });
    CHECK(end.error.fault == mo::comm_fault::mismatch);
    CHECK(end.took < 15s);
    if (which == 0) {
      CHECK(says(end.error, "barrier of elements of 1 bytes"));
      CHECK(says(end.error, "all_gather of elements of 8 bytes"));
    }
    if (which == 3) CHECK(says(end.error, "it sends 150000 rows of 8 bytes where rank"));
    if (which == 5) CHECK(says(end.error, "it sends 8 bytes on channel 2 where rank"));
    CHECK(std::all_of(in.begin() + 10, in.end(), [](double v) { return v == 0; }));
  }
}

TEST_CASE("a failure of one's own has a name") {
  ranks w = world_of();
  ending const end = ending_of([&] {
    if (w.rank() == 0) w.fail(mo::comm_fault::aborted, "step", "the loss is not finite");
    w.barrier();
  });
  CHECK(end.error.fault == (w.rank() == 0 ? mo::comm_fault::aborted : mo::comm_fault::remote));
  CHECK(end.error.rank == 0);
  CHECK(says(end.error, "the loss is not finite"));
}

TEST_CASE("runs after a failed one are whole") {
  ranks w = world_of();
  std::vector<std::int64_t> ones(5000, 1);
  w.all_reduce<std::int64_t>(ones);
  CHECK(ones == std::vector<std::int64_t>(5000, w.size()));
}
