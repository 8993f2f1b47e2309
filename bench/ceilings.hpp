// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most, measured: multiply-adds on registers, memory bandwidth, and the clock that says
// whether the first is what the core is built for.
#pragma once

#include <moiety/kernels/host/simd.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include <sched.h>
#include <sys/mman.h>
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

/// Multiply-adds in registers alone, enough chains to fill the pipelines: flop/s of one thread over `steps` steps.
/// Checks its own result against the scalar chain, so that it cannot be optimised away.
template <class S> double fma_loop(int threads, std::int64_t steps) {
  constexpr int chains = simd::many_registers ? 24 : 12;
  constexpr std::size_t extent = chains;
  simd::vec<S> sum[extent];
  for (int i = 0; i < chains; ++i) sum[i] = simd::broadcast(static_cast<S>(i));
  auto factor = simd::broadcast(static_cast<S>(0.75)), term = simd::broadcast(static_cast<S>(0.3));
  asm volatile("" : "+m"(factor), "+m"(term));  // unknown to the compiler
  simd::vec<S> const a = factor, b = term;
  double const start = seconds(threads);
  for (std::int64_t k = 0; k < steps; ++k) {
#pragma GCC unroll 24
    for (int i = 0; i < chains; ++i) sum[i] = simd::fma(sum[i], a, b);
  }
  double const elapsed = seconds(threads) - start;
  for (int i = 0; i < chains; ++i) {
    S expected = static_cast<S>(i);
    for (int k = 0; k < 400; ++k) expected = moiety::fma(expected, static_cast<S>(0.75), static_cast<S>(0.3));
    for (int lane = 0; lane < simd::lanes<S>; ++lane)  // both have reached the fixed point
      if (!(std::abs(sum[i][lane] - expected) <= 1e-6 * std::abs(expected)))
        throw std::logic_error("the loop of multiply-adds has a wrong result");
  }
  return 2.0 * chains * simd::lanes<S> * static_cast<double>(steps) / elapsed;
}

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

/// Memory of huge pages where the system has them.
class memory_block {
 public:
  explicit memory_block(std::size_t bytes) : data_(std::aligned_alloc(std::size_t{2} << 20, bytes)) {
    if (data_ == nullptr) throw std::bad_alloc();
    madvise(data_, bytes, MADV_HUGEPAGE);
    std::memset(data_, 1, bytes);
  }
  memory_block(memory_block const&) = delete;
  memory_block& operator=(memory_block const&) = delete;
  ~memory_block() { std::free(data_); }
  template <class T> T* as() const { return static_cast<T*>(data_); }

 private:
  void* data_;
};

/// Best bytes/s of reading, and of copying (bytes counted twice), 128 MiB a thread.
struct bandwidth {
  double read = 0, copy = 0;
};
inline bandwidth measure_bandwidth(int threads) {
  constexpr std::size_t bytes = std::size_t{128} << 20;
  std::vector<std::unique_ptr<memory_block>> blocks;
  for (int i = 0; i < 2 * threads; ++i) blocks.push_back(std::make_unique<memory_block>(bytes));
  auto const best = [&](auto const& pass) {
    double rate = 0;
    for (int round = 0; round < 5; ++round) {
      double const start = seconds(0);
      on_threads(threads, pass);
      rate = std::max(rate, static_cast<double>(threads) * static_cast<double>(bytes) / (seconds(0) - start));
    }
    return rate;
  };
  bandwidth found;
  found.read = best([&](std::size_t i) {
    auto const* const from = blocks[2 * i]->as<float>();
    constexpr std::size_t count = bytes / sizeof(float), step = 8 * static_cast<std::size_t>(simd::lanes<float>);
    simd::vec<float> sums[8] = {};
    for (std::size_t at = 0; at < count; at += step)
#pragma GCC unroll 8
      for (std::size_t j = 0; j < 8; ++j) sums[j] += simd::load(from + at + j * simd::lanes<float>);
    for (simd::vec<float>& sum : sums) asm volatile("" : : "m"(sum));
  });
  found.copy = 2 * best([&](std::size_t i) {
                 std::memcpy(blocks[2 * i + 1]->as<char>(), blocks[2 * i]->as<char>(), bytes);
                 asm volatile("" : : "r"(blocks[2 * i + 1]->as<char>()) : "memory");
               });
  return found;
}

}  // namespace bench
