// SPDX-License-Identifier: Apache-2.0
// The same in PyTorch, a training step of a layer or a routing, in a process of its own that this run waits for.
#pragma once

#include <moiety/layer/spec.hpp>

#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace bench {

/// Whether the build found a Python with PyTorch.
inline constexpr bool has_torch = std::string_view(MOIETY_BENCH_PYTHON).size() > 0;

/// As PyTorch comes, or with an allocator that keeps the memory of a step for the next one.
enum class torch_memory { given_back, kept };

namespace detail {
/// The times that a script prints, which is run once; empty where it does not run.
inline std::vector<double> const& times_of(std::string const& environment, std::string_view script,
                                           std::string const& arguments) {
  std::string const command =
      environment + "'" MOIETY_BENCH_PYTHON "' '" MOIETY_BENCH_PEERS "/" + std::string(script) + '\'' + arguments;
  static std::map<std::string, std::vector<double>> known;
  auto const [found, missing] = known.try_emplace(command);
  if (!missing) return found->second;
  if (std::FILE* const output = popen(command.c_str(), "r")) {
    for (double time = 0; std::fscanf(output, "%lf", &time) == 1;) found->second.push_back(time);
    pclose(output);
  }
  return found->second;
}

inline std::string arguments(std::initializer_list<std::int64_t> values) {
  std::string text;
  for (std::int64_t const value : values) text += ' ' + std::to_string(value);
  return text;
}
}  // namespace detail

/// Seconds of processor time of several steps on one thread.
inline std::vector<double> const& torch_layer(moiety::dims const& size, int slots, std::int64_t tokens,
                                              std::string_view type, torch_memory memory) {
  std::string environment;
  if (memory == torch_memory::kept)
    environment = "MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_MMAP_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=67108864 ";
  return detail::times_of(
      environment, "torch_layer.py",
      detail::arguments({size.hidden, size.ffn, size.experts, slots, tokens}) + ' ' + std::string(type));
}

/// Seconds of several routings: of processor time on one thread, else of the clock.
inline std::vector<double> const& torch_route(std::int64_t experts, int slots, std::int64_t tokens, int threads) {
  return detail::times_of({}, "torch_route.py", detail::arguments({experts, slots, tokens, threads}));
}

}  // namespace bench
