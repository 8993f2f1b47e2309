// SPDX-License-Identifier: Apache-2.0
// verify() against a slow oracle that shares nothing with it, on random damage to sound schedules.
#include <moiety/pipeline.hpp>

#include <moiety/core/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace mo = moiety;
using mo::computation;

namespace {

using lists = std::vector<std::vector<mo::action>>;
using done_set = std::set<std::tuple<int, int, char>>;  // stage, micro-batch, F, I or W

struct base {
  mo::schedule_view plan;
  lists ranks;
  std::vector<int> home;

  explicit base(mo::schedule_view const& of) : plan(of) {
    for (int r = 0; r < of.ranks(); ++r) ranks.emplace_back(of.rank(r).begin(), of.rank(r).end());
    for (int s = 0; s < of.stages(); ++s) home.push_back(of.rank_of(s, 0));
  }
};

/// The definition, step by step: run what can run until nothing can, then look whether all is done once.
class oracle {
 public:
  oracle(base const& of, lists const& ranks) : of_(of), ranks_(ranks) {}

  bool sound() {
    std::vector<std::size_t> next(ranks_.size(), 0);
    for (bool progress = true; progress;) {
      progress = false;
      for (std::size_t r = 0; r < ranks_.size(); ++r)
        while (next[r] < ranks_[r].size()) {
          std::size_t const length = step_length(r, next[r]);
          if (length == 0 || !can_run(r, next[r], length)) break;
          for (std::size_t i = 0; i < length; ++i) finish(ranks_[r][next[r] + i]);
          next[r] += length;
          progress = true;
        }
    }
    for (std::size_t r = 0; r < ranks_.size(); ++r)
      if (next[r] != ranks_[r].size()) return false;
    return static_cast<int>(done_.size()) == 3 * of_.plan.stages() * of_.plan.microbatches();
  }

 private:
  /// 1, or 2 for a well-formed pair, or 0.
  std::size_t step_length(std::size_t r, std::size_t at) const {
    auto const& list = ranks_[r];
    if (list[at].joined) return 0;
    if (at + 1 == list.size() || !list[at + 1].joined) return 1;
    return list[at].type == computation::forward && list[at + 1].type == computation::backward ? 2 : 0;
  }

  bool can_run(std::size_t r, std::size_t at, std::size_t length) const {
    for (std::size_t i = 0; i < length; ++i)
      if (!inputs_there(static_cast<int>(r), ranks_[r][at + i])) return false;
    return true;
  }

  bool inputs_there(int r, mo::action const& a) const {
    int const last = of_.plan.stages() - 1;
    if (a.stage < 0 || a.stage > last || a.microbatch < 0 || a.microbatch >= of_.plan.microbatches()) return false;
    int const m = of_.plan.microbatches(), home = of_.home[static_cast<std::size_t>(a.stage)];
    bool const second = of_.plan.bidirectional() && a.microbatch >= m - m / 2;
    if (r != (second ? of_.plan.ranks() - 1 - home : home)) return false;
    auto const has = [&](int stage, char what) { return done_.count({stage, a.microbatch, what}) == 1; };
    switch (a.type) {
      case computation::forward: return !has(a.stage, 'F') && (a.stage == 0 || has(a.stage - 1, 'F'));
      case computation::weight_gradient: return has(a.stage, 'I') && !has(a.stage, 'W');
      case computation::backward:
      case computation::input_gradient:
        return has(a.stage, 'F') && !has(a.stage, 'I') && (a.stage == last || has(a.stage + 1, 'I'));
    }
    return false;
  }

  void finish(mo::action const& a) {
    if (a.type == computation::forward) done_.insert({a.stage, a.microbatch, 'F'});
    if (a.type == computation::backward || a.type == computation::input_gradient)
      done_.insert({a.stage, a.microbatch, 'I'});
    if (a.type == computation::backward || a.type == computation::weight_gradient)
      done_.insert({a.stage, a.microbatch, 'W'});
  }

  base const& of_;
  lists const& ranks_;
  done_set done_;
};

class dice {
 public:
  explicit dice(std::uint64_t stream) : stream_(stream) {}
  std::size_t operator()(std::size_t limit) { return mo::random_word(mo::seed{5}, stream_, next_++) % limit; }

 private:
  std::uint64_t stream_, next_ = 0;
};

/// One or a few random changes.
void damage(lists& ranks, dice& roll) {
  for (std::size_t changes = 1 + roll(10) / 8; changes > 0; --changes) {
    std::size_t const r = roll(ranks.size()), other = roll(ranks.size());
    if (ranks[r].empty()) continue;
    std::size_t const at = roll(ranks[r].size());
    mo::action& a = ranks[r][at];
    switch (roll(9)) {
      case 0: std::swap(a, ranks[r][roll(ranks[r].size())]); break;
      case 1: ranks[r].erase(ranks[r].begin() + static_cast<std::ptrdiff_t>(at)); break;
      case 2:
        ranks[r].insert(ranks[r].begin() + static_cast<std::ptrdiff_t>(roll(ranks[r].size() + 1)), mo::action(a));
        break;
      case 3: {
        mo::action const moved = a;
        ranks[r].erase(ranks[r].begin() + static_cast<std::ptrdiff_t>(at));
        auto const to = static_cast<std::ptrdiff_t>(roll(ranks[other].size() + 1));
        ranks[other].insert(ranks[other].begin() + to, moved);
        break;
      }
      case 4: a.type = static_cast<computation>(roll(4)); break;
      case 5: a.stage += static_cast<int>(roll(3)) - 1; break;
      case 6: a.microbatch += static_cast<int>(roll(3)) - 1; break;
      case 7: a.joined = !a.joined; break;
      case 8:
        if (at + 1 < ranks[r].size()) std::swap(a, ranks[r][at + 1]);
        break;
      default: break;
    }
  }
}

struct tally {
  int sound = 0, unsound = 0, deadlocks = 0;
};

tally compare(int rounds) {
  static constexpr auto a = mo::schedule_for<mo::one_f_one_b, mo::pipeline_shape{.ranks = 3, .microbatches = 4}>;
  static constexpr auto b =
      mo::schedule_for<mo::interleaved_1f1b, mo::pipeline_shape{.ranks = 2, .chunks = 2, .microbatches = 4}>;
  static constexpr auto c = mo::schedule_for<mo::zb_v, mo::pipeline_shape{.ranks = 2, .chunks = 2, .microbatches = 3}>;
  static constexpr auto d =
      mo::schedule_for<mo::dual_pipe, mo::pipeline_shape{.ranks = 2, .chunks = 2, .microbatches = 4}>;
  static constexpr auto e =
      mo::schedule_for<mo::interleaved_1f1b_overlapped, mo::pipeline_shape{.ranks = 2, .chunks = 2, .microbatches = 2}>;
  static constexpr auto f = mo::schedule_for<mo::zb_h1, mo::pipeline_shape{.ranks = 3, .microbatches = 3}>;
  std::vector<base> const bases{base(a), base(b), base(c), base(d), base(e), base(f)};
  dice roll(1);
  tally seen;
  for (int round = 0; round < rounds; ++round) {
    base const& of = bases[roll(bases.size())];
    lists ranks = of.ranks;
    damage(ranks, roll);
    mo::schedule const mutant("mutant", of.plan.shape(), of.home, of.plan.bidirectional(), ranks);
    mo::verdict const v = mo::verify(mutant);
    bool const sound = oracle(of, ranks).sound();
    if (sound != static_cast<bool>(v)) {
      std::ostringstream out;
      out << v;
      FAIL_CHECK("round " << round << ": " << out.str());
    }
    ++(sound ? seen.sound : seen.unsound);
    if (sound) continue;
    seen.deadlocks += v.what == mo::flaw::deadlock ? 1 : 0;
    auto const length = static_cast<std::int64_t>(mo::schedule_view(mutant).rank(v.rank).size());
    bool const named = v.what != mo::flaw::none && v.position >= 0 &&
                       (v.what == mo::flaw::missing ? v.position == length : v.position < length);
    if (!named) FAIL_CHECK("round " << round << " names no place");
    if (v.what == mo::flaw::deadlock && mo::wait_cycle(mutant).empty())
      FAIL_CHECK("round " << round << " shows no cycle");
    if (round % 64 == 0) {
      std::ostringstream out;
      out << v;
      if (out.str().find("mutant: ") != 0) FAIL_CHECK("round " << round << " prints nothing");
    }
  }
  return seen;
}

}  // namespace

TEST_CASE("twenty thousand damaged schedules: each unsound one is named, with a place") {
  tally const seen = compare(20'000);
  CHECK(seen.sound > 1000);
  CHECK(seen.unsound > 10'000);
  CHECK(seen.deadlocks > 300);
}

TEST_SUITE("long") {
  TEST_CASE("a million damaged schedules") {
    tally const seen = compare(1'000'000);
    CHECK(seen.sound + seen.unsound == 1'000'000);
  }
}
