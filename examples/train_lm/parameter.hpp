// SPDX-License-Identifier: Apache-2.0
// A dense parameter with its gradient, and matrices that are kept from step to step.
#pragma once

#include <moiety/moiety.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

namespace lm {

namespace mo = moiety;

template <class Context> using view = mo::matrix_view<typename Context::element>;
template <class Context> using const_view = mo::matrix_view<typename Context::element const>;

/// Gradients are sums over tokens and micro-batches; clear() starts a step.
template <class Real> struct parameter {
  std::string name;
  mo::matrix<Real> value, gradient;

  std::span<Real> values() { return {value.data(), value.size()}; }
  std::span<Real> gradients() { return {gradient.data(), gradient.size()}; }
  void clear() { std::fill(gradient.begin(), gradient.end(), Real{0}); }
};

/// Normal values of the given standard deviation; element i is a function of (seed, name, i) alone.
template <class Context>
auto normal_parameter(Context& ctx, std::string name, std::int64_t rows, std::int64_t cols, double deviation,
                      mo::seed seed) {
  using real = typename Context::element;
  parameter<real> p{std::move(name), ctx.matrix(rows, cols), ctx.matrix(rows, cols)};
  std::uint64_t const stream = mo::stream_of(p.name);
  for (std::uint64_t i = 0; real & w : p.values()) w = static_cast<real>(deviation * mo::normal(seed, stream, i++));
  return p;
}

/// y += x
template <class Context> void add(Context& ctx, const_view<Context> x, view<Context> y) {
  ctx.engine().for_blocks(y.rows(), 64, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i)
      for (std::int64_t j = 0; j < y.cols(); ++j) y(i, j) += x(i, j);
  });
}

/// Gives m the shape [rows × cols]; a matrix that has it already keeps its memory and its values.
template <class Context>
void reshape(Context& ctx, mo::matrix<typename Context::element>& m, std::int64_t rows, std::int64_t cols) {
  if (m.rows() != rows || m.cols() != cols) m = ctx.matrix(rows, cols);
}

}  // namespace lm
