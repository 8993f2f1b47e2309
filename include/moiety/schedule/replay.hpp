// SPDX-License-Identifier: Apache-2.0
// Runs a schedule on paper: each rank in its order, each step as soon as its rank is free and its inputs are there.
//
//   F of stage s needs F of stage s−1; B or I of stage s needs F of stage s and B or I of stage s+1; W needs I; each of
//   the same micro-batch, and one hop later where the other stage is on another rank. A joined step needs what both of
//   its parts need when it starts, and gives what both give when it ends.
//
// Since ranks take their actions in order, the times depend on nothing but these rules. A replay that stops early met
// an action that cannot run: a repeated one, one on a foreign rank, one ahead of its own forward, or a wait that no rank
// ends. verify() says which.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/action.hpp>
#include <moiety/schedule/costs.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/schedule.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI {

template <cost_model Costs> class replay {
 public:
  /// Runs at once. `starts`, if given, receives the start of every action, by schedule_view::index.
  constexpr replay(schedule_view const& of, Costs const& costs, std::int64_t* starts = nullptr)
      : plan_(of),
        costs_(costs),
        starts_(starts),
        stages_(of.stages()),
        microbatches_(of.microbatches()),
        times_(2 * stages_ * microbatches_),
        weights_(stages_ * microbatches_),
        ranks_(of.ranks()),
        queue_(of.ranks()),
        forward_(times_.data()),
        gradient_(forward_ + stages_ * microbatches_),
        weight_(weights_.data()),
        rank_(ranks_.data()),
        awake_(queue_.data()) {
    for (int r = 0; r < of.ranks(); ++r) rank_[r] = {of.begin(r), of.end(r)};
    for (int r = of.ranks(); r > 0; --r) wake(r - 1);
    while (awake_count_ > 0) {
      int const r = awake_[--awake_count_];
      while (step(r)) {
      }
      rank_[r].asleep = true;
    }
  }

  /// Every action ran, and together they are every forward, input gradient and weight gradient once.
  constexpr bool complete() const {
    for (int r = 0; r < plan_.ranks(); ++r)
      if (rank_[r].next != rank_[r].end) return false;
    return done_ == 4 * stages_ * microbatches_;
  }

  /// The first action of a rank that did not run, or its end.
  constexpr action const* next(int r) const { return rank_[r].next; }

  /// When a rank began and ended, and how long it worked between.
  constexpr std::int64_t begin(int r) const { return rank_[r].first; }
  constexpr std::int64_t end(int r) const { return rank_[r].clock; }
  constexpr std::int64_t work(int r) const { return rank_[r].work; }

  /// When the last rank ended.
  constexpr std::int64_t makespan() const {
    std::int64_t last = 0;
    for (int r = 0; r < plan_.ranks(); ++r) last = rank_[r].clock > last ? rank_[r].clock : last;
    return last;
  }

 private:
  // Compilers bound the number of statements of a constant evaluation, so what runs for every action is few statements.

  static constexpr std::int64_t missing = -1;

  struct rank_state {
    action const *next = nullptr, *end = nullptr;
    std::int64_t clock = 0, work = 0, first = 0;
    bool begun = false;
    bool asleep = true;  // neither running nor about to
  };

  constexpr void wake(int r) {
    rank_[r].asleep = false;
    awake_[awake_count_++] = r;
  }

  /// Runs the next step of a rank, if it can run.
  constexpr bool step(int r) {
    rank_state& rank = rank_[r];
    action const* const a = rank.next;
    if (a == rank.end || a->joined) return false;
    if (a + 1 != rank.end && a[1].joined) return joined_step(r);
    std::int64_t const cell = a->stage * microbatches_ + a->microbatch, ready = arrival(*a, cell, r);
    if (ready == missing) return false;
    std::int64_t const start = ready > rank.clock ? ready : rank.clock;
    pass(rank, a + 1, start, start + costs_.of_stage(a->stage).of(a->type));
    return finish(*a, cell, start, rank.clock);
  }

  constexpr bool joined_step(int r) {
    rank_state& rank = rank_[r];
    action const *const a = rank.next, *const b = a + 1;
    if (a->type != computation::forward || b->type != computation::backward) return false;
    std::int64_t const cell = a->stage * microbatches_ + a->microbatch, one = arrival(*a, cell, r);
    std::int64_t const other_cell = b->stage * microbatches_ + b->microbatch, other = arrival(*b, other_cell, r);
    if (one == missing || other == missing) return false;
    std::int64_t const later = one > other ? one : other, start = later > rank.clock ? later : rank.clock;
    pass(rank, a + 2, start, start + detail::joined_duration(costs_, *a, *b));
    return finish(*a, cell, start, rank.clock) && finish(*b, other_cell, start, rank.clock);
  }

  /// The rank has worked from start to end, and comes to `next`.
  constexpr void pass(rank_state& rank, action const* next, std::int64_t start, std::int64_t end) {
    rank.first = rank.begun ? rank.first : start;
    rank.begun = true;
    rank.work += end - start;
    rank.clock = end;
    rank.next = next;
  }

  /// When the inputs of an action are on its rank, or `missing`: not yet, or never.
  constexpr std::int64_t arrival(action const& a, std::int64_t cell, int r) const {
    if (a.stage < 0 || a.stage >= stages_ || a.microbatch < 0 || a.microbatch >= microbatches_ ||
        plan_.rank_of(a.stage, a.microbatch) != r)
      return missing;
    if (a.type == computation::forward)
      return forward_[cell] != 0
                 ? missing
                 : (a.stage == 0 ? 0 : sent(forward_[cell - microbatches_], a.stage - 1, a.microbatch, r));
    if (a.type == computation::weight_gradient) return gradient_[cell] == 0 || weight_[cell] ? missing : 0;
    if (forward_[cell] == 0 || gradient_[cell] != 0) return missing;
    return a.stage + 1 == stages_ ? 0 : sent(gradient_[cell + microbatches_], a.stage + 1, a.microbatch, r);
  }

  /// When what another stage made is on rank r; `made` is its end + 1, or 0.
  constexpr std::int64_t sent(std::int64_t made, int stage, int microbatch, int r) const {
    return made == 0 ? missing : made - 1 + (costs_.hop == 0 || plan_.rank_of(stage, microbatch) == r ? 0 : costs_.hop);
  }

  constexpr bool finish(action const& a, std::int64_t cell, std::int64_t start, std::int64_t end) {
    if (starts_ != nullptr) starts_[plan_.index(&a)] = start;
    if (a.type == computation::forward) return give(forward_[cell], 2, end, a.stage + 1, a.microbatch);
    if (a.type == computation::input_gradient) return give(gradient_[cell], 1, end, a.stage - 1, a.microbatch);
    weight_[cell] = true;
    if (a.type == computation::backward) return give(gradient_[cell], 2, end, a.stage - 1, a.microbatch);
    ++done_;
    return true;
  }

  /// Notes the end of what stage `to` waits for, and wakes its rank.
  constexpr bool give(std::int64_t& made, int worth, std::int64_t end, int to, int microbatch) {
    made = end + 1;
    done_ += worth;
    if (to >= 0 && to < stages_ && rank_[plan_.rank_of(to, microbatch)].asleep) wake(plan_.rank_of(to, microbatch));
    return true;
  }

  schedule_view plan_;
  Costs costs_;
  std::int64_t* starts_;
  std::int64_t stages_, microbatches_;
  detail::table<std::int64_t> times_;
  detail::table<bool> weights_;
  detail::table<rank_state> ranks_;
  detail::table<int> queue_;
  std::int64_t *forward_, *gradient_;  // by stage and micro-batch: end + 1, or 0
  bool* weight_;
  rank_state* rank_;
  int* awake_;  // ranks that may be able to run
  int awake_count_ = 0;
  std::int64_t done_ = 0;  // halves: 2 for a forward or a full backward, 1 for an input or a weight gradient
};

}  // namespace moiety
