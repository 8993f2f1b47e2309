// SPDX-License-Identifier: Apache-2.0
#include <moiety/mesh/agreement.hpp>

#include "backend/transport/thread_ranks.hpp"

#include <moiety/backend/transport/self.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace {

bool contains(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("ranks go on together where none refuses, as often as they like") {
  on_ranks(4, [](mo::thread_communicator& ranks) {
    for (int turn = 0; turn < 50; ++turn) {
      int calls = 0;
      mo::agree(ranks, [&] { ++calls; });
      expect(calls == 1);
    }
  });
  mo::self_communicator one;
  CHECK_NOTHROW(mo::agree(one, [] {}));
  CHECK_THROWS_AS(mo::agree(one, [] { throw std::bad_alloc(); }), std::bad_alloc);
}

TEST_CASE(
    "what one rank throws ends the call of all: its own error there, its words elsewhere, and the ranks can go on") {
  for (int const refuser : {0, 1, 3})
    on_ranks(4, [&](mo::thread_communicator& ranks) {
      auto const refuse = [&] {
        mo::detail::require<mo::config_error>(ranks.rank() != refuser, "seven is no power of two.");
      };
      if (ranks.rank() == refuser) {
        auto const own = expect_throws<mo::config_error>([&] { mo::agree(ranks, refuse); });
        expect(std::string(own.what()) == "seven is no power of two.", own.what());
      } else {
        auto const told = expect_throws<mo::config_error>([&] { mo::agree(ranks, refuse); });
        expect(std::string(told.what()) == "rank " + std::to_string(refuser) +
                                               " of the 4 that call together refused: seven is no power of two.",
               told.what());
      }
      mo::agree(ranks, [] {});
    });
}

TEST_CASE("where several ranks refuse, each throws its own and the others hear the first") {
  on_ranks(4, [](mo::thread_communicator& ranks) {
    auto const refuse = [&] {
      if (ranks.rank() == 1) throw mo::state_error("of rank 1.");
      if (ranks.rank() == 2) throw std::bad_alloc();
    };
    if (ranks.rank() == 1) return void(expect_throws<mo::state_error>([&] { mo::agree(ranks, refuse); }));
    if (ranks.rank() == 2) return void(expect_throws<std::bad_alloc>([&] { mo::agree(ranks, refuse); }));
    auto const told = expect_throws<mo::state_error>([&] { mo::agree(ranks, refuse); });
    expect(contains(told.what(), "rank 1") && contains(told.what(), "of rank 1."), told.what());
  });
}

TEST_CASE("others throw an error of the same kind, of an unknown one data_error") {
  on_ranks(3, [](mo::thread_communicator& ranks) {
    auto const told = [&]<class Told>(std::type_identity<Told>, auto thrown) {
      auto const refuse = [&] {
        if (ranks.rank() == 2) throw thrown;
      };
      if (ranks.rank() == 2)
        expect_throws<decltype(thrown)>([&] { mo::agree(ranks, refuse); });
      else
        expect(contains(expect_throws<Told>([&] { mo::agree(ranks, refuse); }).what(), thrown.what()), "other words");
    };
    told(std::type_identity<mo::config_error>(), mo::config_error("wrong."));
    told(std::type_identity<mo::state_error>(), mo::state_error("too late."));
    told(std::type_identity<mo::resource_error>(), mo::resource_error("full."));
    told(std::type_identity<mo::resource_error>(), std::bad_alloc());
    told(std::type_identity<mo::data_error>(), mo::data_error("not finite."));
    told(std::type_identity<mo::data_error>(), std::runtime_error("other."));
  });
}

TEST_CASE("words of any length are told") {
  for (std::size_t const length : {0u, 1u, 240u, 100000u})
    on_ranks(2, [&](mo::thread_communicator& ranks) {
      std::string const words(length, 'w');
      auto const refuse = [&] {
        if (ranks.rank() == 1) throw std::runtime_error(words);
      };
      if (ranks.rank() == 1) {
        expect(expect_throws<std::runtime_error>([&] { mo::agree(ranks, refuse); }).what() == words);
      } else {
        std::string const told = expect_throws<mo::data_error>([&] { mo::agree(ranks, refuse); }).what();
        expect(told == "rank 1 of the 2 that call together refused: " + words, told);
      }
    });
}

TEST_CASE("a failure of the transport is no refusal, and ends the run") {
  auto const all = thread_ranks(3).run([](mo::thread_communicator& ranks) {
    mo::agree(ranks, [&] {
      if (ranks.rank() == 2) throw mo::comm_error(mo::comm_fault::timeout, "dispatch", 2, 0, "too late.");
    });
  });
  for (auto const& outcome : all) CHECK(thrown<mo::comm_error>(outcome));
}

TEST_CASE("ranks that do not call the same, or not in the same step, are told on every rank, after refusals") {
  on_ranks(3, [](mo::thread_communicator& ranks) {
    mo::agree(ranks, [] {}, {"forward", 7});
    bool const other = ranks.rank() == 1;
    auto const told = [&](mo::common_call const& call) -> std::string {
      return expect_throws<mo::data_error>([&] {
               mo::agree(
                   ranks, [] {}, call);
             })
          .what();
    };
    std::string const of_step = told({"forward", other ? 8 : 7}), of_name = told({other ? "infer" : "forward", 7});
    expect(
        of_step == "ranks must call together, but rank 0 calls forward in step 7 and rank 1 calls forward in step 8.",
        of_step);
    expect(of_name == "ranks must call together, but rank 0 calls forward in step 7 and rank 1 calls infer in step 7.",
           of_name);
    expect(contains(told({"backward_weights, cut here", other}), "rank 0 calls backward_weight in step 0"));
    auto const refused = expect_throws<mo::data_error>([&] {
      mo::agree(ranks, [&] { mo::detail::require<mo::data_error>(ranks.rank() != 2, "no."); }, {"forward", other});
    });
    expect(contains(refused.what(), "no."), refused.what());
  });
}

TEST_CASE("a configuration that all have is accepted, whatever its values") {
  on_ranks(3, [](mo::thread_communicator& ranks) {
    mo::configuration none, some;
    none.check(ranks, "nothing");
    some.add("hidden", 64), some.add("router", "softmax"), some.add("rate", 0.1f),
        some.add("big", std::int64_t{1} << 40);
    some.check(ranks, "a layer");
  });
}

TEST_CASE("the first value that differs is named on every rank, with the ranks that have another, in the same words") {
  on_ranks(4, [](mo::thread_communicator& ranks) {
    bool const other = ranks.rank() == 1 || ranks.rank() == 3;
    mo::configuration all;
    all.add("hidden", 64), all.add("ffn", other ? 8 : 16), all.add("experts", ranks.rank());
    auto const told = expect_throws<mo::config_error>([&] { all.check(ranks, "a layer"); });
    expect(std::string(told.what()) ==
               "the ranks of a layer disagree on ffn: that of rank 1, 3 is not that of rank 0 "
               "(rank 0: ffn=16; rank 1: ffn=8).",
           told.what());
    mo::configuration{}.check(ranks, "what follows");
  });
}

TEST_CASE("numbers are compared by their bits, and values only under the same name") {
  on_ranks(2, [](mo::thread_communicator& ranks) {
    bool const other = ranks.rank() == 1;
    mo::configuration near, named, zero;
    near.add("rate", other ? 0.1f : std::nextafter(0.1f, 1.0f));
    expect(contains(expect_throws<mo::config_error>([&] { near.check(ranks, "x"); }).what(), "disagree on rate"));
    zero.add("rate", other ? -0.0f : 0.0f);
    expect_throws<mo::config_error>([&] { zero.check(ranks, "x"); });
    named.add(other ? "ffn" : "hidden", 3);
    expect(contains(expect_throws<mo::config_error>([&] { named.check(ranks, "x"); }).what(), "disagree on"));
  });
}

TEST_CASE("lists of different lengths name the first value that is not on all, or their length") {
  on_ranks(3, [](mo::thread_communicator& ranks) {
    mo::configuration early, late;
    early.add("losses", ranks.rank() == 2 ? "two" : "one");
    if (ranks.rank() == 2) early.add("second", 1);
    std::string const of_early = expect_throws<mo::config_error>([&] { early.check(ranks, "x"); }).what();
    expect(contains(of_early, "disagree on losses: that of rank 2"), of_early);
    late.add("losses", "one");
    if (ranks.rank() == 2) late.add("second", 1);
    std::string const of_late = expect_throws<mo::config_error>([&] { late.check(ranks, "x"); }).what();
    expect(contains(of_late, "(rank 0: the number of values=1; rank 2: second=1)"), of_late);
  });
}
