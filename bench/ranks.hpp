// SPDX-License-Identifier: Apache-2.0
// How ranks measure what they do together: rank 0 has the clock and decides how often.
#pragma once

#include "measure.hpp"

#include <moiety/backend/host.hpp>
#include <moiety/mesh/layout.hpp>
#include <moiety/mesh/run.hpp>

#include <algorithm>
#include <span>

namespace bench {

/// Body on ranks of one thread each, over which the experts are spread.
template <class Deployment, class Body> void on_ranks(int ranks, Body const& body) {
  moiety::run<Deployment>(body, {}, moiety::layout{.data = ranks, .expert = ranks}, moiety::host{.threads = 1});
}

/// Seconds of one call by the clock of each rank: all begin together.
template <class Communicator, class Call> double seconds_of(Communicator& ranks, int calls, Call const& call) {
  ranks.barrier();
  double const start = seconds(2);
  for (int i = 0; i < calls; ++i) call();
  return (seconds(2) - start) / calls;
}

/// Times call(), which ends when all ranks are done, `calls` of them at a time. Returns what share of the time the
/// processors worked, on rank 0.
template <class Communicator, class Call>
double measure_on_ranks(benchmark::State& state, Communicator& ranks, int calls, Call const& call) {
  double busy = 0, elapsed = 0;
  for (int go_on = 1;;) {
    if (ranks.rank() == 0) go_on = state.KeepRunning() ? 1 : 0;
    ranks.broadcast(std::span(&go_on, 1), 0);
    if (go_on == 0) break;
    double const busy_before = processor_seconds();
    double const time = seconds_of(ranks, calls, call);
    busy += processor_seconds() - busy_before, elapsed += time * calls;
    if (ranks.rank() == 0) state.SetIterationTime(time);
  }
  return busy / (elapsed * std::min(ranks.size(), moiety::available_processors()));
}

}  // namespace bench
