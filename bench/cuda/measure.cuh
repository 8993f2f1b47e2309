// SPDX-License-Identifier: Apache-2.0
// How a row of the CUDA benchmarks is measured: calls are captured into graphs, one for each of `sets` inputs, and the
// graphs are replayed in turn; beside each replay runs one of cuBLAS's dense product of the same size, where there is one.
// A row's time is the median over replays, divided by the calls in a graph.
//
// Rows are lines of JSON that are appended to a file; a name that stands there already is not measured again. Clock and
// power are read before the first and after the last replay.
#pragma once

#include <moiety/cuda.cuh>
#include <moiety/experts/cublas_handle.cuh>
#include <moiety/experts/fp8.cuh>
#include <moiety/router/bf16x3.cuh>

#include <dlfcn.h>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace bench {

namespace mo = moiety;
using mo::detail::expect;

inline constexpr int sets = 3;

/// What calls put into a stream, to be put there again.
class graph {
 public:
  template <class Body> graph(cudaStream_t stream, Body const& body) {
    cudaGraph_t recorded = nullptr;
    expect(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "beginning a capture");
    try {
      body();
    } catch (...) {
      static_cast<void>(cudaStreamEndCapture(stream, &recorded));
      throw;
    }
    expect(cudaStreamEndCapture(stream, &recorded), "ending a capture");
    cudaError_t const result = cudaGraphInstantiate(&graph_, recorded, 0);
    static_cast<void>(cudaGraphDestroy(recorded));
    expect(result, "making a graph");
  }
  graph(graph&& other) noexcept : graph_(std::exchange(other.graph_, nullptr)) {}
  graph& operator=(graph&&) = delete;
  ~graph() {
    if (graph_ != nullptr) static_cast<void>(cudaGraphExecDestroy(graph_));
  }
  void launch(cudaStream_t stream) const { expect(cudaGraphLaunch(graph_, stream), "replaying a graph"); }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

class stopwatch {
 public:
  explicit stopwatch(cudaStream_t stream) : stream_(stream) {
    expect(cudaEventCreate(&begin_), "making an event");
    expect(cudaEventCreate(&end_), "making an event");
  }
  stopwatch(stopwatch const&) = delete;
  stopwatch& operator=(stopwatch const&) = delete;
  ~stopwatch() { static_cast<void>(cudaEventDestroy(begin_)), static_cast<void>(cudaEventDestroy(end_)); }

  /// Microseconds that the work of body() takes on the device.
  template <class Body> double time(Body const& body) const {
    float milliseconds = 0;
    expect(cudaEventRecord(begin_, stream_), "recording an event");
    body();
    expect(cudaEventRecord(end_, stream_), "recording an event");
    expect(cudaEventSynchronize(end_), "waiting for an event");
    expect(cudaEventElapsedTime(&milliseconds, begin_, end_), "reading events");
    return 1e3 * static_cast<double>(milliseconds);
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

inline double quantile(std::vector<double> values, double at) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(at * static_cast<double>(values.size() - 1) + 0.5)];
}

/// Clock and power of a device, from the library behind nvidia-smi: the program itself takes longer than most rows. Zeros
/// where there is none.
class meter {
 public:
  struct reading {
    unsigned mhz = 0, milliwatts = 0;
  };

  explicit meter(int device) {
    void* const library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    char bus[32] = {};
    if (library == nullptr || cudaDeviceGetPCIBusId(bus, sizeof bus, device) != cudaSuccess) return;
    auto const init = function<int()>(library, "nvmlInit_v2");
    auto const find = function<int(char const*, void**)>(library, "nvmlDeviceGetHandleByPciBusId_v2");
    if (init == nullptr || find == nullptr || init() != 0 || find(bus, &handle_) != 0) return;
    clock_ = function<int(void*, int, unsigned*)>(library, "nvmlDeviceGetClockInfo");
    power_ = function<int(void*, unsigned*)>(library, "nvmlDeviceGetPowerUsage");
  }
  reading read() const {
    constexpr int multiprocessors = 1;
    reading now;
    if (clock_ != nullptr) static_cast<void>(clock_(handle_, multiprocessors, &now.mhz));
    if (power_ != nullptr) static_cast<void>(power_(handle_, &now.milliwatts));
    return now;
  }

 private:
  template <class F> static F* function(void* library, char const* name) {
    return reinterpret_cast<F*>(dlsym(library, name));
  }

  void* handle_ = nullptr;
  int (*clock_)(void*, int, unsigned*) = nullptr;
  int (*power_)(void*, unsigned*) = nullptr;
};

/// tokens: those of the model where there are none.
struct options {
  std::string out, model;
  std::vector<std::int64_t> tokens;
  int replays = 30;
  double seconds = 540;
  std::chrono::steady_clock::time_point begin = std::chrono::steady_clock::now();
};

/// One thing to measure. dense: what cuBLAS does beside it, or nothing.
struct row {
  std::string name;
  double flops = 0, bytes = 0;
  bool tensor_cores = true;
  int most_repeats = 64;
  std::function<void(int set)> call, dense;
};

class run {
 public:
  run(options asked, mo::cuda_engine& engine)
      : asked_(std::move(asked)), engine_(engine), watch_(engine.stream()), meter_(engine.device()) {
    std::ifstream known(asked_.out);
    for (std::string line; std::getline(known, line);) {
      auto const from = line.find("\"name\": \"");
      if (from != std::string::npos) done_.insert(line.substr(from + 9, line.find('"', from + 9) - from - 9));
    }
  }

  options const& asked() const { return asked_; }
  bool has(std::string const& name) const { return done_.count(name) != 0; }
  bool out_of_time() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - asked_.begin).count() > asked_.seconds;
  }

  /// A line of any keys; values are JSON already.
  void write(std::string const& name, std::vector<std::pair<std::string, std::string>> const& values) {
    std::ofstream file(asked_.out, std::ios::app);
    file << "{\"name\": \"" << name << '"';
    for (auto const& [key, value] : values) file << ", \"" << key << "\": " << value;
    file << "}\n";
    done_.insert(name);
  }

  void measure(row const& what) {
    for (int set = 0; set < sets; ++set) what.call(set);  // fills what later rows read, too
    if (has(what.name) || out_of_time()) return;
    if (what.dense)
      for (int set = 0; set < sets; ++set) what.dense(set);
    engine_.synchronize();
    meter::reading const before = meter_.read();
    auto const ours = capture(what.call, what.most_repeats);
    captured beside;
    if (what.dense) beside = capture(what.dense, what.most_repeats);
    std::vector<double> times, dense_times, ratios;
    for (int i = 0; i < asked_.replays + sets; ++i) {
      double const time = replay(ours, i), dense = what.dense ? replay(beside, i) : 0;
      if (i < sets) continue;  // the first of each graph warms
      times.push_back(time);
      if (what.dense) dense_times.push_back(dense), ratios.push_back(dense / time);
    }
    meter::reading const after = meter_.read();
    std::vector<std::pair<std::string, std::string>> values{{"us", std::to_string(quantile(times, 0.5))},
                                                            {"p10", std::to_string(quantile(times, 0.1))},
                                                            {"p90", std::to_string(quantile(times, 0.9))},
                                                            {"replays", std::to_string(times.size())},
                                                            {"calls", std::to_string(ours.calls)},
                                                            {"flops", std::to_string(what.flops)},
                                                            {"bytes", std::to_string(what.bytes)},
                                                            {"tensor_cores", what.tensor_cores ? "true" : "false"},
                                                            {"clock_before", std::to_string(before.mhz)},
                                                            {"clock_after", std::to_string(after.mhz)},
                                                            {"watts_before", watts(before)},
                                                            {"watts_after", watts(after)}};
    if (what.dense) {
      values.emplace_back("dense_us", std::to_string(quantile(dense_times, 0.5)));
      values.emplace_back("dense_ratio", std::to_string(quantile(ratios, 0.5)));
    }
    write(what.name, values);
    std::printf("%-44s %12.1f us\n", what.name.c_str(), quantile(times, 0.5));
    std::fflush(stdout);
  }

 private:
  struct captured {
    std::vector<graph> graphs;
    int calls = 1;
  };

  /// Graphs of at least half a millisecond, each beginning with another set of inputs.
  captured capture(std::function<void(int)> const& call, int most) const {
    constexpr double wanted = 500;
    double const once = watch_.time([&] { call(0); });
    captured made;
    made.calls = std::clamp(static_cast<int>(wanted / std::max(once, 1.0)), 1, most);
    for (int set = 0; set < sets; ++set)
      made.graphs.emplace_back(engine_.stream(), [&] {
        for (int i = 0; i < made.calls; ++i) call((set + i) % sets);
      });
    return made;
  }
  static std::string watts(meter::reading const& at) { return std::to_string(at.milliwatts / 1000); }
  double replay(captured const& of, int i) const {
    return watch_.time([&] { of.graphs[static_cast<std::size_t>(i % sets)].launch(engine_.stream()); }) / of.calls;
  }

  options asked_;
  mo::cuda_engine& engine_;
  stopwatch watch_;
  meter meter_;
  std::set<std::string> done_;
};

}  // namespace bench
