// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <vector>

std::vector<float> baseline();
std::vector<float> avx2();

int main() {
  std::vector<float> const one = baseline();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    std::puts("this processor has no AVX2: only the baseline ran");
    return 0;
  }
  std::vector<float> const two = avx2();
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < one.size(); ++i) {
    difference += std::pow(one[i] - two[i], 2);
    norm += std::pow(one[i], 2);
  }
  std::printf("relative difference %g\n", std::sqrt(difference / norm));
  return norm > 0 && difference <= 1e-10 * norm ? 0 : 1;
}
