// SPDX-License-Identifier: Apache-2.0
// moiety_bench_cuda --model qwen3|olmoe|mixtral|sonic --out FILE [--tokens N,N,...] [--replays N] [--seconds N]
//
// Appends rows to FILE, see measure.cuh. Ends with 0 when all are there, 75 when time ran out (run it again), 77 without
// a device.
#include "measure.cuh"
#include "models.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

namespace {

bool parse(int argc, char** argv, bench::options& asked) {
  for (int i = 1; i + 1 < argc; i += 2) {
    std::string const name = argv[i], value = argv[i + 1];
    if (name == "--model")
      asked.model = value;
    else if (name == "--out")
      asked.out = value;
    else if (name == "--replays")
      asked.replays = std::atoi(value.c_str());
    else if (name == "--seconds")
      asked.seconds = std::atof(value.c_str());
    else if (name == "--tokens") {
      asked.tokens.clear();
      for (char const* at = value.c_str(); *at != '\0'; at += std::strcspn(at, ","), at += *at == ',')
        asked.tokens.push_back(std::atoll(at));
    } else
      return false;
  }
  return argc % 2 == 1 && !asked.out.empty() && asked.replays > 0;
}

bool known(std::string const& model) {
  return model == "qwen3" || model == "olmoe" || model == "mixtral" || model == "sonic";
}

bool measure(bench::options const& asked) {
  if (asked.model == "qwen3") return bench::measure_qwen3(asked);
  if (asked.model == "olmoe") return bench::measure_olmoe(asked);
  if (asked.model == "sonic") return bench::measure_sonic(asked);
  return bench::measure_mixtral(asked);
}

}  // namespace

int main(int argc, char** argv) try {
  bench::options asked;
  if (!parse(argc, argv, asked) || !known(asked.model)) {
    std::fprintf(stderr,
                 "usage: moiety_bench_cuda --model qwen3|olmoe|mixtral|sonic --out FILE [--tokens N,N,...] "
                 "[--replays N] [--seconds N]\n");
    return 2;
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "no CUDA device\n");
    return 77;
  }
  return measure(asked) ? 0 : 75;
} catch (std::exception const& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
