// SPDX-License-Identifier: Apache-2.0
#define EIGEN_DONT_PARALLELIZE
#include "in_place.hpp"

#include <Eigen/Core>

#include <string>

namespace {

using namespace bench;
using rows_first = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

void run(void* plan, std::int64_t expert, void const* a, void const* b, float* out) {
  auto const& p = *static_cast<in_place const*>(plan);
  Eigen::Map<rows_first> to(out, p.rows, p.cols);
  Eigen::Map<rows_first const> const left(static_cast<float const*>(a), p.transposed_a ? p.depth : p.rows, p.a_stride);
  Eigen::Map<rows_first const> const right(static_cast<float const*>(p.right(expert, b)),
                                           p.transposed_b ? p.cols : p.depth, p.b_stride);
  if (p.transposed_a)
    to.noalias() = left.transpose() * right;
  else if (p.transposed_b)
    to.noalias() = left * right.transpose();
  else
    to.noalias() = left * right;
}

}  // namespace

extern "C" peer const* moiety_bench_peers(int* count) {
  static std::string const about = "Eigen " + std::to_string(EIGEN_WORLD_VERSION) + '.' +
                                   std::to_string(EIGEN_MAJOR_VERSION) + '.' + std::to_string(EIGEN_MINOR_VERSION) +
                                   ", " + Eigen::SimdInstructionSetsInUse();
  static peer const found{"eigen", about.c_str(), float_only, prepare_in_place, run, release_in_place};
  return *count = 1, &found;
}
