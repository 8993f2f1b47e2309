// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most, measured: arithmetic on registers, memory bandwidth, and the clock that says
// whether the first is what the core is built for.
#pragma once

#include "memory_block.hpp"

#include <moiety/core/numbers.hpp>
#include <moiety/kernels/host/simd.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include <sched.h>
#include <time.h>

namespace bench {

namespace simd = moiety::simd;

/// Seconds: of this thread's processor time for work on one thread, which neighbours do not lengthen, else of the wall.
inline double seconds(int threads) {
  timespec now{};
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// Processor time of all threads of this process.
inline double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// Runs body(i) for every i in [0, threads) at once, each on a processor of its own where there are enough: short work
/// is over before the system has spread its threads.
template <class Body> void on_threads(int threads, Body const& body) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof allowed, &allowed);
  bool const enough = CPU_COUNT(&allowed) >= threads;
  std::vector<std::thread> running;
  int processor = 0;
  for (int i = 0; i < threads; ++i, ++processor) {
    while (enough && !CPU_ISSET(static_cast<std::size_t>(processor), &allowed)) ++processor;
    running.emplace_back([&, i, processor] {
      cpu_set_t own;
      CPU_ZERO(&own);
      CPU_SET(static_cast<std::size_t>(processor), &own);
      if (enough && threads > 1) sched_setaffinity(0, sizeof own, &own);
      body(static_cast<std::size_t>(i));
    });
  }
  for (std::thread& thread : running) thread.join();
}

/// A loop on registers alone, enough chains to fill the pipelines: operations/s of one thread, each lane of one step
/// being `per_lane` of them. step(sum) must bring chain i, from start(i), to expected(i), so that it cannot be skipped.
template <int PerLane, class Step, class Start, class Expected>
double register_loop(int threads, std::int64_t steps, Step const& step, Start const& begin, Expected const& expected) {
  constexpr int chains = simd::many_registers ? 24 : 12;
  using S = decltype(begin(0));
  simd::vec<S> sum[static_cast<std::size_t>(chains)];
  for (int i = 0; i < chains; ++i) sum[i] = simd::broadcast(begin(i));
  double const start = seconds(threads);
  for (std::int64_t k = 0; k < steps; ++k) {
#pragma GCC unroll 24
    for (int i = 0; i < chains; ++i) sum[i] = step(sum[i]);
  }
  double const elapsed = seconds(threads) - start;
  for (int i = 0; i < chains; ++i)
    for (int lane = 0; lane < simd::lanes<S>; ++lane)
      if (!(std::abs(sum[i][lane] - expected(i)) <= 1e-6 * std::abs(expected(i))))
        throw std::logic_error("a loop on registers has a wrong result");
  return PerLane * static_cast<double>(chains * simd::lanes<S>) * static_cast<double>(steps) / elapsed;
}

/// Multiply-adds in float or double: flop/s of one thread over `steps` steps.
template <class S> double fma_loop(int threads, std::int64_t steps) {
  auto factor = simd::broadcast(static_cast<S>(0.75)), term = simd::broadcast(static_cast<S>(0.3));
  asm volatile("" : "+m"(factor), "+m"(term));  // unknown to the compiler
  simd::vec<S> const a = factor, b = term;
  return register_loop<2>(
      threads, steps, [&](simd::vec<S> sum) { return simd::fma(sum, a, b); }, [](int i) { return static_cast<S>(i); },
      [](int i) {  // both reach the fixed point
        S x = static_cast<S>(i);
        for (int k = 0; k < 400; ++k) x = moiety::fma(x, static_cast<S>(0.75), static_cast<S>(0.3));
        return x;
      });
}

/// For bf16 dot products of pairs into float where there is an instruction for them, else multiply-adds in float.
#if defined(__AVX512BF16__)
inline constexpr bool has_bf16_dot = true;
template <> inline double fma_loop<moiety::bf16>(int threads, std::int64_t steps) {
  auto factor = _mm512_set1_epi32(0x3f803f80),
       term = _mm512_set1_epi32(static_cast<int>(0xbf803f80));  // pairs (1, 1), (1, -1)
  asm volatile("" : "+m"(factor), "+m"(term));
  auto const a = (__m512bh)factor, b = (__m512bh)term;
  auto const same = [](int i) { return static_cast<float>(i); };
  return register_loop<4>(
      threads, steps, [&](simd::vec<float> sum) { return _mm512_dpbf16_ps(sum, a, b); }, same, same);
}
#else
inline constexpr bool has_bf16_dot = false;
template <> inline double fma_loop<moiety::bf16>(int threads, std::int64_t steps) {
  return fma_loop<float>(threads, steps);
}
#endif

/// flop/s of all threads together, from about two milliseconds.
template <class S> double fma_rate(int threads) {
  std::vector<double> rates(static_cast<std::size_t>(threads));
  on_threads(threads, [&](std::size_t i) { rates[i] = fma_loop<S>(threads, 500'000); });
  double sum = 0;
  for (double const rate : rates) sum += rate;
  return sum;
}

/// Cycles per second, from a chain of multiplications of three cycles each; 0 where that is not known.
inline double clock_rate() {
#if defined(__x86_64__)
  std::uint64_t value = 3;
  std::int64_t const steps = 500'000;
  double const start = seconds(1);
  for (std::int64_t k = 0; k < steps; ++k)
    asm volatile(
        "imul %0, %0\n\timul %0, %0\n\timul %0, %0\n\timul %0, %0\n\t"
        "imul %0, %0\n\timul %0, %0\n\timul %0, %0\n\timul %0, %0"
        : "+r"(value));
  return 3.0 * 8.0 * static_cast<double>(steps) / (seconds(1) - start);
#else
  return 0;
#endif
}

/// What moves bytes at most: reading, reading 16 rows of 8 KiB side by side, writing past the caches, copying as memcpy does
/// (bytes counted twice), and copying with stores past the caches (likewise).
enum class traffic { read, rows, write, copy, stream };
inline constexpr std::array all_traffic{traffic::read, traffic::rows, traffic::write, traffic::copy, traffic::stream};
inline constexpr std::array traffic_names{"read", "16 rows", "write", "memcpy", "nt copy"};

/// Stores a register past the caches where there is an instruction for it.
inline void store_past_caches(float* to, simd::vec<float> value) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, value);
#elif defined(__AVX__)
  _mm256_stream_ps(to, value);
#elif defined(__SSE__)
  _mm_stream_ps(to, value);
#else
  simd::store(to, value);
#endif
}

/// Memory for the bandwidth of some threads, 128 MiB twice for each.
class bandwidth {
 public:
  explicit bandwidth(int threads) : threads_(threads) {
    for (int i = 0; i < 2 * threads; ++i) blocks_.push_back(std::make_unique<memory_block>(bytes));
  }

  /// Best bytes/s that this run has seen so far, after measuring once more.
  double measure(traffic kind) {
    std::vector<double> rates(static_cast<std::size_t>(threads_));
    on_threads(threads_, [&](std::size_t i) {
      double const start = seconds(threads_);
      pass(kind, i);
      rates[i] = static_cast<double>(kind >= traffic::copy ? 2 * bytes : bytes) / (seconds(threads_) - start);
    });
    double& rate = best_[static_cast<std::size_t>(kind)];
    return rate = std::max(rate, std::accumulate(rates.begin(), rates.end(), 0.0));
  }
  double best(traffic kind) const { return best_[static_cast<std::size_t>(kind)]; }

 private:
  static constexpr std::size_t bytes = std::size_t{128} << 20, count = bytes / sizeof(float);
  static constexpr std::size_t lanes = simd::lanes<float>, step = 8 * lanes;

  void pass(traffic kind, std::size_t i) {
    auto* const from = blocks_[2 * i]->as<float>();
    auto* const to = blocks_[2 * i + 1]->as<float>();
    switch (kind) {
      case traffic::read: read(from); break;
      case traffic::rows: read_rows(from); break;
      case traffic::copy: std::memcpy(to, from, bytes); break;
      case traffic::write:
        for (std::size_t at = 0; at < count; at += lanes) store_past_caches(to + at, simd::broadcast(1.0f));
        break;
      case traffic::stream:
        for (std::size_t at = 0; at < count; at += lanes) store_past_caches(to + at, simd::load(from + at));
        break;
    }
    asm volatile("" : : "r"(to) : "memory");
  }
  static void read(float const* from) {
    simd::vec<float> sums[8] = {};
    for (std::size_t at = 0; at < count; at += step)
#pragma GCC unroll 8
      for (std::size_t j = 0; j < 8; ++j) sums[j] += simd::load(from + at + j * lanes);
    for (simd::vec<float>& sum : sums) asm volatile("" : : "m"(sum));
  }
  static void read_rows(float const* from) {
    constexpr std::size_t rows = 16, row = 8192 / sizeof(float);
    simd::vec<float> sums[8] = {};
    for (std::size_t first = 0; first < count; first += rows * row)
      for (std::size_t at = 0; at < row; at += lanes)
#pragma GCC unroll 16
        for (std::size_t r = 0; r < rows; ++r) sums[r % 8] += simd::load(from + first + r * row + at);
    for (simd::vec<float>& sum : sums) asm volatile("" : : "m"(sum));
  }

  int threads_;
  std::vector<std::unique_ptr<memory_block>> blocks_;
  std::array<double, all_traffic.size()> best_{};
};

}  // namespace bench
