// SPDX-License-Identifier: Apache-2.0
// Gradients against directional finite differences, in double.
#pragma once

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

namespace differences {

namespace mo = moiety;

struct in_double : mo::deployment<> {
  using element = double;
};
using context = mo::context<in_double>;
using matrix = mo::matrix<double>;

inline matrix normal(context& ctx, std::int64_t rows, std::int64_t cols, int seed) {
  matrix m = ctx.matrix(rows, cols);
  mo::fill_normal(ctx, m, mo::seed{seed});
  return m;
}

inline double product(std::span<double const> a, std::span<double const> b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}
inline std::span<double const> all(matrix const& m) { return {m.data(), m.size()}; }

/// (f(w + εv) − f(w − εv)) / 2ε along a random direction v, which is returned by `along`.
template <class Function>
double difference(Function const& f, std::span<double> w, std::vector<double>& along, std::uint64_t stream) {
  constexpr double epsilon = 1e-5;
  along.resize(w.size());
  for (std::size_t i = 0; i < w.size(); ++i) along[i] = mo::normal(mo::seed{99}, stream, i);
  std::vector<double> const start(w.begin(), w.end());
  auto const at = [&](double sign) {
    for (std::size_t i = 0; i < w.size(); ++i) w[i] = start[i] + sign * epsilon * along[i];
    return f();
  };
  double const slope = (at(1) - at(-1)) / (2 * epsilon);
  std::copy(start.begin(), start.end(), w.begin());
  return slope;
}

template <class Function>
void check_gradient(Function const& f, std::span<double> w, std::span<double const> gradient) {
  double const norm = std::sqrt(product(gradient, gradient));
  REQUIRE(norm > 0);
  for (std::uint64_t stream = 0; stream < 3; ++stream) {
    std::vector<double> along;
    double const slope = difference(f, w, along, stream);
    CHECK(std::abs(slope - product(gradient, along)) <= 1e-7 * norm * std::sqrt(static_cast<double>(w.size())));
  }
}

}  // namespace differences
