// SPDX-License-Identifier: Apache-2.0
#include "in_place.hpp"

#include <cblas.h>

#include <string>

namespace {

using namespace bench;

void run(void* plan, std::int64_t expert, void const* a, void const* b, float* out) {
  auto const& p = *static_cast<in_place const*>(plan);
  auto const size = [](std::int64_t n) { return static_cast<blasint>(n); };
  cblas_sgemm(CblasRowMajor, p.transposed_a ? CblasTrans : CblasNoTrans, p.transposed_b ? CblasTrans : CblasNoTrans,
              size(p.rows), size(p.cols), size(p.depth), 1, static_cast<float const*>(a), size(p.a_stride),
              static_cast<float const*>(p.right(expert, b)), size(p.b_stride), 0, out, size(p.cols));
}

}  // namespace

extern "C" peer const* moiety_bench_peers(int* count) {
  static std::string const about = std::string(openblas_get_config()) + ", core type " + openblas_get_corename();
  static peer const found{"openblas", about.c_str(), float_only, prepare_in_place, run, release_in_place};
  openblas_set_num_threads(1);
  return *count = 1, &found;
}
