// SPDX-License-Identifier: Apache-2.0
// Built for no instruction set of its own, so that a processor without the unit's can say so and end.
#include "unit.hpp"

#include <cstdio>
#include <cstring>

int main(int count, char** arguments) {
  struct {
    char const* name;
    bool needed, there;
  } const features[] = {
      {"AVX2 and FMA", built.avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
      {"AVX-512", built.avx512,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl")},
      {"AVX-512 BF16", built.avx512_bf16, __builtin_cpu_supports("avx512bf16") != 0},
  };
  for (auto const& feature : features)
    if (feature.needed && !feature.there) {
      std::printf("skipped: this processor has no %s\n", feature.name);
      return 77;
    }
  std::printf("%s, a multiply-add rounds %s\n", built.name, built.fused ? "once" : "twice");
  if (count > 1 && std::strcmp(arguments[1], "--hashes") == 0) {
    print_hashes();
    return 0;
  }
  return promises_hold() ? 0 : 1;
}
