// SPDX-License-Identifier: Apache-2.0
// One way to measure: each row times calls of its own, beside the loop of multiply-adds on the same threads, and says
// what it had to do, from which the least time follows.
#pragma once

#include "ceilings.hpp"

#include <moiety/backend/host.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>

namespace bench {

/// Thread counts to measure: one, and all.
inline std::array<int, 2> thread_counts() { return {1, std::max(2, moiety::available_processors())}; }

/// Bandwidth for each thread count.
inline bandwidth& memory_ceiling(int threads) {
  static std::map<int, std::unique_ptr<bandwidth>> known;
  auto& found = known[threads];
  if (!found) {
    found = std::make_unique<bandwidth>(threads);
    for (int round = 0; round < 5; ++round)
      for (traffic const kind : all_traffic) found->measure(kind);
  }
  return *found;
}

/// The best rate of multiply-adds that this run has seen so far, after measuring once more.
template <class S> double fma_ceiling(int threads) {
  static std::map<int, double> known;
  double& best = known[threads];
  return best = std::max(best, fma_rate<S>(threads));
}

/// Engines live as long as the process, one for each thread count.
inline moiety::host_engine& engine(int threads) {
  static std::map<int, std::unique_ptr<moiety::host_engine>> known;
  auto& found = known[threads];
  if (!found) found = std::make_unique<moiety::host_engine>(moiety::host{.threads = threads});
  return *found;
}

/// What one call has to do at least. `items` are what its time is also stated per: rows, tokens. `moves` names the
/// bandwidth that its bytes are held against.
struct work {
  double flops = 0, bytes = 0, items = 0;
  traffic moves = traffic::read;
};

/// Values in (-1, 1), no two rows alike and none of them zero.
template <class T> void fill(T* values, std::int64_t count, std::uint64_t seed) {
  std::uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  for (std::int64_t i = 0; i < count; ++i) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    values[i] = static_cast<T>(static_cast<float>(state >> 40) * 0x1p-23f - 0.99999997f);
  }
}

/// Says what a row had to do, and what its ceilings allow. S names the loop on registers to compare with; `busy` is the
/// share of the threads' time that the processors worked.
template <class S> void report(benchmark::State& state, int threads, work const& todo, double busy) {
  double const fma = fma_ceiling<S>(threads), compute = todo.flops / fma;
  bandwidth& memory = memory_ceiling(threads);
  double transfer = todo.bytes / memory.best(todo.moves);
  if (transfer > compute) transfer = todo.bytes / memory.measure(todo.moves);
  state.counters["threads"] = threads;
  state.counters["flops"] = todo.flops;
  state.counters["bytes"] = todo.bytes;
  state.counters["items"] = todo.items;
  state.counters["fma_rate"] = fma;
  state.counters["floor_s"] = std::max(compute, transfer);
  state.counters["busy"] = busy;
  state.SetLabel(compute >= transfer ? "compute" : traffic_names[static_cast<std::size_t>(todo.moves)]);
}

/// Times call(), each after prepare() outside the clock.
template <class S, class Prepare, class Call>
void measure(benchmark::State& state, int threads, work const& todo, Prepare const& prepare, Call const& call) {
  double const fma = fma_ceiling<S>(threads);
  if (todo.flops < 0.05 * fma) prepare(), call();  // warms; a long call does so in its slowest repetition
  double busy = 0, elapsed = 0;
  for (auto _ : state) {
    prepare();
    double const start = seconds(threads), busy_before = processor_seconds();
    call();
    double const time = seconds(threads) - start;
    busy += processor_seconds() - busy_before, elapsed += time;
    state.SetIterationTime(time);
  }
  report<S>(state, threads, todo, busy / (elapsed * threads));
}
template <class S, class Call> void measure(benchmark::State& state, int threads, work const& todo, Call const& call) {
  measure<S>(
      state, threads, todo, [] {}, call);
}

/// Registers one row: body(state).
template <class Body> benchmark::internal::Benchmark* add(std::string const& name, int threads, Body const& body) {
  return benchmark::RegisterBenchmark((name + "/threads:" + std::to_string(threads)).c_str(), body)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}
/// Registers a row for each thread count: body(state, threads).
template <class Body> void add(std::string const& name, Body const& body) {
  for (int const threads : thread_counts()) add(name, threads, [=](benchmark::State& state) { body(state, threads); });
}

}  // namespace bench
