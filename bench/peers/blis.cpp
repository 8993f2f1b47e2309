// SPDX-License-Identifier: Apache-2.0
#include "in_place.hpp"

#include <blis.h>

#include <string>

namespace {

using namespace bench;

void run(void* plan, std::int64_t expert, void const* a, void const* b, float* out) {
  auto const& p = *static_cast<in_place const*>(plan);
  float one = 1, zero = 0;
  auto* const left = static_cast<float*>(const_cast<void*>(a));
  auto* const right = static_cast<float*>(const_cast<void*>(p.right(expert, b)));
  bli_sgemm(p.transposed_a ? BLIS_TRANSPOSE : BLIS_NO_TRANSPOSE, p.transposed_b ? BLIS_TRANSPOSE : BLIS_NO_TRANSPOSE,
            p.rows, p.cols, p.depth, &one, left, p.a_stride, 1, right, p.b_stride, 1, &zero, out, p.cols, 1);
}

}  // namespace

extern "C" peer const* moiety_bench_peers(int* count) {
  static std::string const about =
      std::string("BLIS ") + bli_info_get_version_str() + ", kernels " + bli_arch_string(bli_arch_query_id());
  static peer const found{"blis", about.c_str(), float_only, prepare_in_place, run, release_in_place};
  return *count = 1, &found;
}
