// SPDX-License-Identifier: Apache-2.0
// What one rank keeps of a schedule: its operations, and where every stage works on every micro-batch.
//
//   mo::detail::rank_plan plan{schedule, rank, ranks, receives::in_order};     operations() as lower() orders them
//                                                   receives::late            each receive just before what needs it: a rank waits
//                                                                             for no more, if sends wait for nobody
//   plan.home(stage, microbatch), plan.here(stage, microbatch)
//   plan.chunk(stage)                                      which of this rank's stages it is, ascending, or −1
//   plan.slot(stage, microbatch), plan.slots()             where a rank keeps what it holds of a micro-batch at one of its stages,
//                                                          from its first row to its last: as many places as are held at once
//
//   auto plan = mo::detail::agreed_plan(ctx, schedule, stage, receives::late);      the same, once every rank of the run has that
//                                                             schedule and a model that fits it; a collective of the run
//
// Under a bidirectional schedule a stage works on two ranks: each has it as a chunk, and the micro-batch decides.
//
// Throws config_error for a schedule of other ranks, schedule_error for one that is not sound. agreed_plan throws on every rank:
// config_error where schedules, widths or models do not fit.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/mesh/agreement.hpp>
#include <moiety/pipeline/stack_layers.hpp>
#include <moiety/pipeline/stage.hpp>
#include <moiety/schedule/action.hpp>
#include <moiety/schedule/lower.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/schedule.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI::detail {

enum class receives : std::uint8_t { in_order, late };

/// How a schedule places its stages, in words.
inline std::string_view placement_of(schedule_view const& plan) {
  if (plan.bidirectional()) return words_of(placement::bidirectional);
  for (placement const where : {placement::loop, placement::v}) {
    bool found = true;
    for (int s = 0; s < plan.stages(); ++s)
      found = found && plan.rank_of(s, 0) == rank_of_stage(where, plan.shape(), s);
    if (found) return words_of(where);
  }
  return "a placement of its own";
}

class rank_plan {
 public:
  rank_plan(schedule_view const& plan, int rank, int ranks, receives when)
      : rank_(rank),
        stages_(plan.stages()),
        microbatches_(plan.microbatches()),
        hash_(hash_of(plan)),
        name_(plan.name()),
        placed_(placement_of(plan)),
        chunk_of_(static_cast<std::size_t>(plan.stages()), -1) {
    require<config_error>(plan.ranks() == ranks, "a schedule of ", plan.ranks(), " ranks was given to a pipeline of ",
                          ranks, '.');
    lowered_schedule const lowered = lower(plan);
    operations_.assign(lowered.rank(rank).begin(), lowered.rank(rank).end());
    if (when == receives::late) delay_receives(plan);
    for (int m = 0; m < microbatches_; ++m)
      for (int s = 0; s < stages_; ++s) homes_.push_back(plan.rank_of(s, m));
    for (int s = 0; s < stages_; ++s)
      if (here(s, 0) || here(s, microbatches_ - 1)) chunk_of_[static_cast<std::size_t>(s)] = chunks_++;
    number_slots();
  }

  std::span<operation const> operations() const { return operations_; }
  int stages() const { return stages_; }
  int microbatches() const { return microbatches_; }
  std::uint64_t hash() const { return hash_; }
  int chunks() const { return chunks_; }
  int chunk(int stage) const { return chunk_of_[static_cast<std::size_t>(stage)]; }
  int home(int stage, int microbatch) const { return homes_[index(stage, microbatch)]; }
  /// Also of what is no stage: false.
  bool here(int stage, int microbatch) const {
    return stage >= 0 && stage < stages_ && home(stage, microbatch) == rank_;
  }

  int slots() const { return slots_; }
  /// −1 of what is not here.
  int slot(int stage, int microbatch) const { return slot_of_[index(stage, microbatch)]; }

  /// Throws config_error unless the model has its stages where the schedule has them.
  template <class Stage> void check(Stage const& stage) const {
    bool fits = chunks_ == stage.chunks();
    for (int s = 0; s < stages_ && fits; ++s) fits = chunk(s) < 0 || stage.stage_of(chunk(s)) == s;
    if (fits) return;
    std::string words = sentence("the schedule ", name_, " puts ", stages_, " stages on the ranks by ", placed_);
    if constexpr (requires { stage.stages(), stage.placed(); })
      words += sentence(", but the model is cut into ", stage.stages(), ", placed by ", words_of(stage.placed()),
                        ": split it into ", stages_, ", and give the stack ", placed_, '.');
    else
      words += sentence(", ", chunks_, " of them on this one, but the model has ", stage.chunks(),
                        " chunks here, or other stages.");
    throw config_error(words);
  }

 private:
  std::size_t index(int stage, int microbatch) const {
    return static_cast<std::size_t>(microbatch) * static_cast<std::size_t>(stages_) + static_cast<std::size_t>(stage);
  }

  /// f(index) of each stage and micro-batch of this rank whose rows an operation reads or writes.
  template <class F> void for_touched(operation const& o, F const& f) const {
    int const s = o.what.stage, m = o.what.microbatch;
    f(index(s, m));
    if (o.kind != message::none) return;
    if (o.what.type == computation::forward && here(s + 1, m)) f(index(s + 1, m));
    if (sends_gradient(o.what.type) && here(s - 1, m)) f(index(s - 1, m));
  }

  /// Gives each the first free slot when its first operation comes, and frees it after its last.
  void number_slots() {
    std::vector<std::size_t> last(homes_.size());
    for (std::size_t i = 0; i < operations_.size(); ++i)
      for_touched(operations_[i], [&](std::size_t at) { last[at] = i; });
    slot_of_.assign(homes_.size(), -1);
    std::vector<int> free;
    for (std::size_t i = 0; i < operations_.size(); ++i) {
      for_touched(operations_[i], [&](std::size_t at) {
        if (slot_of_[at] >= 0) return;
        if (free.empty()) free.push_back(slots_++);
        slot_of_[at] = free.back();
        free.pop_back();
      });
      for_touched(operations_[i], [&](std::size_t at) {
        if (last[at] == i) free.push_back(slot_of_[at]);
      });
    }
  }

  void delay_receives(schedule_view const& plan) {
    std::vector<operation> all, waiting;
    for (std::size_t i = 0; i < operations_.size(); ++i) {
      operation const& o = operations_[i];
      if (o.kind == message::receive) {
        waiting.push_back(o);
        continue;
      }
      if (o.kind == message::none) {
        bool const joined = i + 1 < operations_.size() && operations_[i + 1].what.joined;
        take(plan, o.what, waiting, all);
        if (joined) take(plan, operations_[i + 1].what, waiting, all);
      }
      all.push_back(o);
    }
    operations_ = std::move(all);
  }

  /// Moves what an action waits for, and what comes before it on its channel.
  static void take(schedule_view const& plan, action const& a, std::vector<operation>& from,
                   std::vector<operation>& to) {
    if (sender_to(plan, a) < 0) return;
    auto const needed = std::find_if(from.begin(), from.end(), [&](operation const& r) {
      bool const same_way = (r.what.type == computation::forward) == (a.type == computation::forward);
      return r.what.stage == a.stage && r.what.microbatch == a.microbatch && same_way;
    });
    if (needed == from.end()) return;  // an action that overtook it has taken it
    auto const end = needed + 1;
    auto const first =
        std::stable_partition(from.begin(), end, [on = needed->channel](auto const& r) { return r.channel != on; });
    to.insert(to.end(), first, end);
    from.erase(first, end);
  }

  int rank_, stages_, microbatches_, chunks_ = 0, slots_ = 0;
  std::uint64_t hash_;
  std::string name_;
  std::string_view placed_;
  std::vector<operation> operations_;
  std::vector<int> homes_, chunk_of_, slot_of_;
};

template <class Context, class Stage>
rank_plan agreed_plan(Context& ctx, schedule_view const& plan, Stage const& stage, receives when) {
  configuration common;
  common.add("the order of the schedule", plan.name());
  common.add("the micro-batches of the schedule", plan.microbatches());
  common.add("the actions of the schedule", hash_of(plan));
  common.add("the width of rows between stages", stage.width());
  common.check(ctx.world(), "a pipeline");
  std::optional<rank_plan> made;
  agree(ctx.world(), [&] {
    made.emplace(plan, ctx.pipeline().rank(), ctx.pipeline().size(), when);
    made->check(stage);
    require<config_error>(!plan.bidirectional() || unites_gradients<Stage>,
                          "a bidirectional schedule keeps two copies of each stage: it needs a model that has "
                          "unite(gradients).");
  });
  return *std::move(made);
}

}  // namespace moiety::inline MOIETY_ABI::detail
