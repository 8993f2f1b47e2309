// SPDX-License-Identifier: Apache-2.0
// When a rank did what in the steps of a pipeline.
//
//   mo::timeline times;                          by the steady clock; mo::timeline{clock} by any other
//   engine.record(times);                        every operation of the steps that follow: computations, sends and receives
//   auto const all = mo::timelines(ctx.pipeline(), times);             of all ranks, on every rank
//   out << mo::to_csv(all);                      rank,kind,stage,microbatch,begin,end
//   mo::planned_timeline(plan, costs)            the same of a schedule: its computations, in the units of the costs
//
// Times are in nanoseconds since the clock's epoch; ranks on one machine share the steady clock. Kinds are F, B, I and W, as in
// schedules, and SEND_F, RECV_F, SEND_B and RECV_B. The two halves of a joined step are two operations, one after the other; in
// a planned timeline they are side by side.
//
// A type of one's own that is a step_observer is told the same as things happen: for traces, progress or tests.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/schedule/action.hpp>
#include <moiety/schedule/analysis.hpp>
#include <moiety/schedule/costs.hpp>
#include <moiety/schedule/lower.hpp>
#include <moiety/schedule/schedule.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

/// Is told of the operations of a rank, each before the next one begins.
class step_observer {
 public:
  virtual void begins(operation const& what) = 0;
  virtual void ends(operation const& what) = 0;

 protected:
  ~step_observer() = default;
};

struct timed_operation {
  int rank = 0;
  operation what;
  std::int64_t begin = 0, end = 0;
};

class timeline final : public step_observer {
 public:
  using clock = std::function<std::chrono::steady_clock::time_point()>;

  explicit timeline(clock now = &std::chrono::steady_clock::now) : now_(std::move(now)) {}

  void begins(operation const& what) override { all_.push_back({0, what, time(), 0}); }
  void ends(operation const&) override { all_.back().end = time(); }

  std::vector<timed_operation> const& operations() const { return all_; }
  void clear() { all_.clear(); }

 private:
  std::int64_t time() const {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(now_().time_since_epoch()).count();
  }

  clock now_;
  std::vector<timed_operation> all_;
};

/// Those of all ranks, rank by rank. A collective.
template <class Communicator> std::vector<timed_operation> timelines(Communicator& pipeline, timeline const& mine) {
  std::vector<timed_operation> part = mine.operations();
  for (timed_operation& o : part) o.rank = pipeline.rank();
  return pipeline.template all_gather_v<timed_operation>(std::span<timed_operation const>(part));
}

template <cost_model Costs = step_costs>
std::vector<timed_operation> planned_timeline(schedule_view const& plan, Costs const& costs = {}) {
  std::vector<std::int64_t> const starts = start_times(plan, costs);
  std::vector<timed_operation> all;
  for (int r = 0; r < plan.ranks(); ++r)
    for (action const* a = plan.begin(r); a != plan.end(r); ++a) {
      std::int64_t const start = starts[static_cast<std::size_t>(plan.index(a))];
      bool const ahead = a + 1 != plan.end(r) && a[1].joined;
      std::int64_t const time = ahead       ? detail::joined_duration(costs, a[0], a[1])
                                : a->joined ? detail::joined_duration(costs, a[-1], a[0])
                                            : costs.of_stage(a->stage).of(a->type);
      all.push_back({r, {*a}, start, start + time});
    }
  return all;
}

inline std::string to_csv(std::span<timed_operation const> all) {
  detail::plain_text out;
  out << "rank,kind,stage,microbatch,begin,end\n";
  for (timed_operation const& o : all) {
    std::string_view const prefix = o.what.kind == message::none   ? ""
                                    : o.what.kind == message::send ? "SEND_"
                                                                   : "RECV_";
    out << o.rank << ',' << prefix << letter(o.what.what.type) << ',' << o.what.what.stage << ','
        << o.what.what.microbatch << ',' << o.begin << ',' << o.end << '\n';
  }
  return std::move(out).str();
}

}  // namespace moiety
