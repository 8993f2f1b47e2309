// SPDX-License-Identifier: Apache-2.0
// Runs the benchmarks and prints one table: medians beside the least time that the ceilings of this run allow.
//
//   % limit   floor / median, floor being the larger of flops / loop on registers and bytes / bandwidth
//   bound by  the larger of the two: compute, or the bandwidth that the row is held against
//   % busy    processor time / (threads x wall time): less than all where threads wait, for each other or for neighbours
//
// The run is void, and the exit status 1, where its own ceilings cannot be trusted: a loop on registers does not reach
// 97 % of a whole number of instructions per cycle, or a row is faster than the best that its loop reached in this run.
#include "ceilings.hpp"
#include "measure.hpp"
#include "peers/loaded.hpp"
#include "peers/torch.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <vector>

namespace {

using namespace bench;

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown processor";
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  std::size_t const half = values.size() / 2;
  return values.size() % 2 != 0 ? values[half] : (values[half - 1] + values[half]) / 2;
}

/// A time in four significant digits.
std::string duration(double s) {
  char text[32];
  if (s < 1e-3)
    std::snprintf(text, sizeof text, "%.2f us", s * 1e6);
  else
    std::snprintf(text, sizeof text, "%.3f ms", s * 1e3);
  return text;
}

/// Collects the repetitions of every row; the table comes at the end.
class table : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(Context const&) override { return true; }

  void ReportRuns(std::vector<Run> const& runs) override {
    for (Run const& run : runs) {
      if (run.run_type != Run::RT_Iteration) continue;
      std::string const name = run.run_name.function_name;
      if (rows_.find(name) == rows_.end()) order_.push_back(name), std::fprintf(stderr, "\r\033[K%s", name.c_str());
      row& r = rows_[name];
      if (run.error_occurred) {
        r.error = run.error_message;
        continue;
      }
      auto const counter = [&](char const* key) { return run.counters.at(key).value; };
      r.times.push_back(run.real_accumulated_time / static_cast<double>(run.iterations));
      r.floors.push_back(counter("floor_s"));
      r.fma.push_back(counter("fma_rate"));
      r.busy.push_back(counter("busy"));
      r.threads = counter("threads"), r.flops = counter("flops"), r.bytes = counter("bytes"),
      r.items = counter("items");
      r.bound_by = run.report_label;
    }
  }

  void Finalize() override {
    std::fprintf(stderr, "\r\033[K");
    std::size_t width = 4;
    for (std::string const& name : order_) width = std::max(width, shown(name).size());
    auto const w = static_cast<int>(width);
    std::printf("%-*s %7s %12s %12s %7s %8s %14s %11s %6s\n", w, "name", "threads", "median", "floor", "% limit",
                "bound by", "rate", "ns/item", "% busy");
    for (std::string const& name : order_) print(shown(name), w, rows_[name]);
  }

  /// Rows that are faster than their loop on registers.
  std::vector<std::string> too_fast() const {
    std::vector<std::string> found;
    for (auto const& [name, r] : rows_)
      if (!r.times.empty() && r.flops / median(r.times) > 1.005 * median(r.fma)) found.push_back(name);
    return found;
  }
  /// Rows on several threads that did not keep them busy.
  std::size_t idle() const {
    return static_cast<std::size_t>(std::count_if(rows_.begin(), rows_.end(), [](auto const& entry) {
      return entry.second.threads > 1 && !entry.second.busy.empty() && median(entry.second.busy) < 0.9;
    }));
  }
  bool failed() const {
    return std::any_of(rows_.begin(), rows_.end(), [](auto const& entry) { return !entry.second.error.empty(); });
  }

 private:
  struct row {
    std::vector<double> times, floors, fma, busy;
    double threads = 0, flops = 0, bytes = 0, items = 0;
    std::string bound_by, error;
  };

  static std::string shown(std::string const& name) { return name.substr(0, name.find("/threads:")); }

  static void print(std::string const& name, int width, row const& r) {
    if (r.times.empty()) return void(std::printf("%-*s failed: %s\n", width, name.c_str(), r.error.c_str()));
    double const time = median(r.times), floor = median(r.floors);
    char rate[32];
    bool const counts_flops = r.bound_by == "compute";
    std::snprintf(rate, sizeof rate, counts_flops ? "%.1f GFLOP/s" : "%.1f GB/s",
                  (counts_flops ? r.flops : r.bytes) / time * 1e-9);
    std::printf("%-*s %7.0f %12s %12s %7.1f %8s %14s %11.1f %6.0f\n", width, name.c_str(), r.threads,
                duration(time).c_str(), duration(floor).c_str(), 100 * floor / time, r.bound_by.c_str(), rate,
                time / r.items * 1e9, 100 * median(r.busy));
  }

  std::vector<std::string> order_;
  std::map<std::string, row> rows_;
};

/// The best of several rounds, between which neighbours may go away.
template <class Rate> double best(Rate const& rate) {
  double found = 0;
  for (int round = 0; round < 20; ++round) found = std::max(found, rate());
  return found;
}

#if defined(__clang__)
constexpr char const* compiler = "clang " __clang_version__;
#else
constexpr char const* compiler = "g++ " __VERSION__;
#endif

void context(std::string const& key, double giga) { benchmark::AddCustomContext(key, std::to_string(giga * 1e-9)); }

/// Whether a rate is within 3 % of a whole number of instructions per cycle, each `each` operations.
bool whole_per_cycle(char const* what, double rate, double clock, double each) {
  double const issued = rate / clock / each, whole = std::max(1.0, std::round(issued));
  std::printf("  %.2f %s per cycle\n", issued, what);
  return std::abs(issued / whole - 1) <= 0.03;
}

/// Prints the ceilings; false where a loop on registers is not what the core can do.
bool print_ceilings() {
  bool sound = true;
  double const clock = best(clock_rate), lanes = simd::lanes<float>;
  std::printf("%s, vectors of %d bytes, clock %.2f GHz\n", processor().c_str(), moiety::vector_bytes, clock * 1e-9);
  benchmark::AddCustomContext("processor", processor());
  for (int const threads : thread_counts()) {
    double const single = best([&] { return fma_ceiling<float>(threads); });
    double const twice = best([&] { return fma_ceiling<double>(threads); });
    double const half = best([&] { return fma_ceiling<moiety::bf16>(threads); });
    std::printf("  %d thread%s: on registers %.1f GFLOP/s float, %.1f double, %.1f bf16; GB/s", threads,
                threads == 1 ? " " : "s", single * 1e-9, twice * 1e-9, half * 1e-9);
    std::string const suffix = "_threads_" + std::to_string(threads);
    context("float_gflops" + suffix, single), context("double_gflops" + suffix, twice);
    context("bf16_gflops" + suffix, half);
    for (traffic const kind : all_traffic) {
      auto const* const name = traffic_names[static_cast<std::size_t>(kind)];
      std::printf(" %s %.1f", name, memory_ceiling(threads).best(kind) * 1e-9);
      context(std::string(name) + "_gbytes_per_s" + suffix, memory_ceiling(threads).best(kind));
    }
    std::printf("\n");
    if (threads != 1 || clock <= 0 || !MOIETY_HAS_FMA) continue;
    sound = whole_per_cycle("vector multiply-adds", single, clock, 2 * lanes) && sound;
    if (has_bf16_dot) sound = whole_per_cycle("vector dot products of bf16", half, clock, 4 * lanes) && sound;
  }
  return sound;
}

/// Prints who stands beside us, and who is left out.
void print_peers() {
  std::string all;
  for (peer const& p : peers()) {
    std::printf("  %-16s %s\n", p.name, p.about);
    all += (all.empty() ? "" : "; ") + std::string(p.name) + ": " + p.about;
  }
  std::string const absent = MOIETY_BENCH_ABSENT;
  if (!absent.empty()) std::printf("  left out: %s\n", absent.c_str());
  benchmark::AddCustomContext("compiler", compiler);
  benchmark::AddCustomContext("peers", all);
  benchmark::AddCustomContext("peers_left_out", absent);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  bool const sound = print_ceilings();
  print_peers();
  table rows;
  benchmark::RunSpecifiedBenchmarks(&rows);
  benchmark::Shutdown();
  if (rows.idle() > 0)
    std::printf(
        "%zu rows on several threads kept them busy for less than 90 %%: their work does not spread, or other "
        "processes ran beside them.\n",
        rows.idle());
  if (!sound)
    std::printf("VOID: a loop on registers is not within 3 %% of a whole number of instructions per cycle.\n");
  for (std::string const& name : rows.too_fast())
    std::printf("VOID: %s is faster than its loop on registers.\n", name.c_str());
  return sound && rows.too_fast().empty() && !rows.failed() ? 0 : 1;
}
