// SPDX-License-Identifier: Apache-2.0
// A training step of the same layer in PyTorch, in a process of its own that this run waits for.
#pragma once

#include <moiety/layer/spec.hpp>

#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace bench {

/// Whether the build found a Python with PyTorch.
inline constexpr bool has_torch = std::string_view(MOIETY_BENCH_PYTHON).size() > 0;

/// As PyTorch comes, or with an allocator that keeps the memory of a step for the next one.
enum class torch_memory { given_back, kept };

/// Seconds of processor time of several steps on one thread, measured once; empty where PyTorch does not run.
inline std::vector<double> const& torch_layer(moiety::dims const& size, int slots, std::int64_t tokens,
                                              std::string_view type, torch_memory memory) {
  std::string command;
  if (memory == torch_memory::kept)
    command = "MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_MMAP_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=67108864 ";
  command += "'" MOIETY_BENCH_PYTHON "' '" MOIETY_BENCH_TORCH_LAYER "'";
  for (std::int64_t const argument : {size.hidden, size.ffn, size.experts, std::int64_t{slots}, tokens})
    command += ' ' + std::to_string(argument);
  command += ' ' + std::string(type);
  static std::map<std::string, std::vector<double>> known;
  auto const [found, missing] = known.try_emplace(command);
  if (!missing) return found->second;
  if (std::FILE* const output = popen(command.c_str(), "r")) {
    for (double time = 0; std::fscanf(output, "%lf", &time) == 1;) found->second.push_back(time);
    pclose(output);
  }
  return found->second;
}

}  // namespace bench
