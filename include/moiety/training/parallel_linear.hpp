// SPDX-License-Identifier: Apache-2.0
// Linear maps y = x Wᵀ, W [N × K], whose weights are spread over the ranks of a tensor group, on the host. Rank r of R holds
//
//   column_parallel_linear   rows slice_of(N, r, R) of W: its outputs     y [T × N_r] of this rank
//   row_parallel_linear      columns slice_of(K, r, R) of W: its inputs   x [T × K_r] of this rank
//
// The other side is whole in width. token_rows says which of its T rows a rank has:
//
//   everywhere   all of them, the same on every rank    column: dx is summed over ranks    row: y is summed
//   split        slice_of(T, r, R) (sequence parallel)  column: x is gathered, dx summed   row: y is summed, dy gathered
//                                                       and spread                         and spread
//
// A column-parallel map before a row-parallel one needs nothing in between. backward is the exact adjoint of forward: dx of
// the rows of x that a rank has, dW (+)= dyᵀ x of its part of W, over all T rows; with rows everywhere dy is the same on
// every rank. Rows that were gathered are not kept, but gathered again.
//
// Products have one order of every sum, see kernels/grouped_gemm.hpp. Sums over ranks are of the sum type, ((r₀ + r₁) + …),
// and rounded once, whatever the numerics; what is not summed over ranks has the bits of the whole map.
//
// config_error for sizes of fewer outputs or inputs than ranks; data_error for shapes that do not fit.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/backend/transport/communicator.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/linear.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moiety::inline MOIETY_ABI {

enum class token_rows { everywhere, split };

namespace detail {

template <class Byte, class T> rows_block<Byte> rows_of_matrix(matrix_view<T> m) {
  constexpr auto width = static_cast<std::int64_t>(sizeof(T));
  return {reinterpret_cast<Byte*>(m.data()), m.rows(), m.cols() * width, m.stride() * width, nullptr};
}

template <class T> matrix_view<T> slice_of_rows(matrix_view<T> m, int rank, int size) {
  range_of const r = slice_of(m.rows(), rank, size);
  return m.rows(r.first, r.count);
}

/// A host product spread over a tensor group, and what its ranks exchange.
template <scalar T, communicator C> class parallel_product {
  using S = sum_t<T>;

 public:
  parallel_product(host_engine& engine, C& group, std::int64_t outputs, std::int64_t inputs, token_rows rows)
      : engine_(engine), group_(group), outputs_(outputs), inputs_(inputs), rows_(rows) {}

  std::int64_t outputs() const { return outputs_; }
  std::int64_t inputs() const { return inputs_; }
  range_of slice(std::int64_t n) const { return slice_of(n, group_.rank(), group_.size()); }
  std::int64_t rows_here(std::int64_t all) const { return rows_ == token_rows::split ? slice(all).count : all; }

  void expect_split(std::int64_t n, char const* what) const {
    require<config_error>(n >= group_.size(), "a parallel linear map of ", n, ' ', what, " cannot be spread over ",
                          group_.size(), " ranks.");
  }
  template <class V>
  static void expect(char const* what, matrix_view<V> const& m, std::int64_t rows, std::int64_t cols) {
    require<data_error>(m.rows() == rows && m.cols() == cols, "a parallel linear map was given ", what, ' ',
                        shape(m.rows(), m.cols()), " in place of ", shape(rows, cols), '.');
  }

  /// f(all rows), of which this rank has m.
  template <class F> void with_all_rows(matrix_view<T const> m, std::int64_t all_rows, F const& f) {
    if (rows_ == token_rows::everywhere || group_.size() == 1) return f(m);
    matrix<T> all(all_rows, m.cols(), engine_.memory());
    std::vector<outgoing_rows> const to(ranks(), rows_of_matrix<std::byte const>(m));
    std::vector<incoming_rows> from;
    for (int r = 0; r < group_.size(); ++r)
      from.push_back(rows_of_matrix<std::byte>(slice_of_rows(all.view(), r, group_.size())));
    exchange("gather_rows", all.view(), to, from);
    f(all.view());
  }

  /// The ranks' sum of parts that each has whole, into the rows that this rank is to have.
  void sum_over_ranks(matrix<S>& parts, matrix_view<T> to) {
    if (rows_ == token_rows::everywhere) {
      group_.all_reduce(std::span<S>(parts.data(), parts.size()));
      return round_to(parts, to);
    }
    matrix<S> received(to.rows() * group_.size(), to.cols(), engine_.memory());
    std::vector<outgoing_rows> out;
    std::vector<incoming_rows> in;
    for (int r = 0; r < group_.size(); ++r) {
      out.push_back(rows_of_matrix<std::byte const>(slice_of_rows(parts.view(), r, group_.size())));
      in.push_back(rows_of_matrix<std::byte>(received.rows(r * to.rows(), to.rows())));
    }
    exchange("sum_rows", parts.view(), out, in);
    S* const sum = received.data();
    std::int64_t const count = to.rows() * to.cols();
    for (std::int64_t r = 1; r < group_.size(); ++r)
      for (std::int64_t i = 0; i < count; ++i) sum[i] += sum[r * count + i];
    round_to(received, to);
  }

  void forward(matrix_view<T const> x, matrix_view<T const> w, matrix_view<T> y) {
    kernels::linear<T>(engine_, x, w, nullptr, y);
  }
  void input_gradient(matrix_view<T const> dy, matrix_view<T const> w, matrix_view<T> dx) {
    kernels::linear_input_gradient<T>(engine_, dy, w, nullptr, dx);
  }
  void weight_gradient(matrix_view<T const> dy, matrix_view<T const> x, matrix_view<S> dw, bool accumulate) {
    std::array<std::int64_t, 2> const all{0, dy.rows()};
    kernels::linear_weight_gradient<T>(engine_, dy, x, nullptr, all.data(), dw, accumulate);
  }

  /// x Wᵀ, not rounded.
  matrix<S> part_of_forward(matrix_view<T const> x, matrix_view<T const> w) {
    matrix<S> part(x.rows(), w.rows(), engine_.memory());
    std::array<std::int64_t, 2> const all{0, x.rows()};
    kernels::grouped_gemm_nt<S>(
        engine_, 1, all.data(), kernels::rows_of<T>{x.data(), x.stride()}, kernels::detail::one_matrix(w), w.rows(),
        w.cols(),
        [&](std::int64_t, std::int64_t t, std::int64_t col, std::int64_t cols, std::array<S const*, 1> const& sums) {
          std::copy_n(sums[0], cols, &part(t, col));
        });
    return part;
  }
  /// dy W, not rounded.
  matrix<S> part_of_input_gradient(matrix_view<T const> dy, matrix_view<T const> w) {
    matrix<S> part(dy.rows(), w.cols(), engine_.memory());
    std::array<std::int64_t, 2> const all{0, dy.rows()};
    kernels::grouped_gemm_nn<S>(engine_, 1, all.data(), std::array{kernels::rows_of<T>{dy.data(), dy.stride()}},
                                kernels::detail::one_matrix(w), w.cols(), w.rows(),
                                [&](std::int64_t, std::int64_t t, std::int64_t col, std::int64_t cols, S const* sums) {
                                  std::copy_n(sums, cols, &part(t, col));
                                });
    return part;
  }

 private:
  std::size_t ranks() const { return static_cast<std::size_t>(group_.size()); }

  template <class V>
  void exchange(char const* name, matrix_view<V> whole, std::span<outgoing_rows const> to,
                std::span<incoming_rows const> from) {
    auto const width = whole.cols() * static_cast<std::int64_t>(sizeof(V));
    group_.finish(group_.start({.name = name, .width = width, .count = whole.rows()}, to, from));
  }

  static void round_to(matrix<S> const& from, matrix_view<T> to) {
    for (std::int64_t i = 0; i < to.rows(); ++i)
      for (std::int64_t j = 0; j < to.cols(); ++j) to(i, j) = static_cast<T>(from(i, j));
  }

  host_engine& engine_;
  C& group_;
  std::int64_t outputs_, inputs_;
  token_rows rows_;
};

}  // namespace detail

template <scalar T, communicator C> class column_parallel_linear {
 public:
  column_parallel_linear(host_engine& engine, C& group, std::int64_t outputs, std::int64_t inputs,
                         token_rows rows = token_rows::everywhere)
      : product_(engine, group, outputs, inputs, rows) {
    product_.expect_split(outputs, "outputs");
  }

  /// This rank's outputs.
  range_of outputs() const { return product_.slice(product_.outputs()); }

  /// x: whole inputs of the rows that this rank has; w [N_r × K]; y [T × N_r].
  void forward(matrix_view<T const> x, matrix_view<T const> w, matrix_view<T> y) {
    check(x, w, y);
    product_.with_all_rows(x, y.rows(), [&](matrix_view<T const> all) { product_.forward(all, w, y); });
  }

  void backward(matrix_view<T const> x, matrix_view<T const> w, matrix_view<T const> dy, matrix_view<T> dx,
                matrix_view<sum_t<T>> dw, bool accumulate) {
    check(x, w, dy);
    product_.expect("dx", dx, x.rows(), x.cols());
    product_.expect("dW", dw, w.rows(), w.cols());
    product_.with_all_rows(x, dy.rows(),
                           [&](matrix_view<T const> all) { product_.weight_gradient(dy, all, dw, accumulate); });
    auto part = product_.part_of_input_gradient(dy, w);
    product_.sum_over_ranks(part, dx);
  }

 private:
  void check(matrix_view<T const> x, matrix_view<T const> w, matrix_view<T const> y) const {
    product_.expect("x", x, product_.rows_here(y.rows()), product_.inputs());
    product_.expect("W", w, outputs().count, product_.inputs());
    product_.expect("y or dy", y, y.rows(), outputs().count);
  }

  detail::parallel_product<T, C> product_;
};

template <scalar T, communicator C> class row_parallel_linear {
 public:
  row_parallel_linear(host_engine& engine, C& group, std::int64_t outputs, std::int64_t inputs,
                      token_rows rows = token_rows::everywhere)
      : product_(engine, group, outputs, inputs, rows) {
    product_.expect_split(inputs, "inputs");
  }

  /// This rank's inputs.
  range_of inputs() const { return product_.slice(product_.inputs()); }

  /// x [T × K_r]; w [N × K_r]; y: whole outputs of the rows that this rank has.
  void forward(matrix_view<T const> x, matrix_view<T const> w, matrix_view<T> y) {
    check(x, w, y);
    auto part = product_.part_of_forward(x, w);
    product_.sum_over_ranks(part, y);
  }

  void backward(matrix_view<T const> x, matrix_view<T const> w, matrix_view<T const> dy, matrix_view<T> dx,
                matrix_view<sum_t<T>> dw, bool accumulate) {
    check(x, w, dy);
    product_.expect("dx", dx, x.rows(), x.cols());
    product_.expect("dW", dw, w.rows(), w.cols());
    product_.with_all_rows(dy, x.rows(), [&](matrix_view<T const> all) {
      product_.input_gradient(all, w, dx);
      product_.weight_gradient(all, x, dw, accumulate);
    });
  }

 private:
  void check(matrix_view<T const> x, matrix_view<T const> w, matrix_view<T const> y) const {
    product_.expect("x", x, x.rows(), inputs().count);
    product_.expect("W", w, product_.outputs(), inputs().count);
    product_.expect("y or dy", y, product_.rows_here(x.rows()), product_.outputs());
  }

  detail::parallel_product<T, C> product_;
};

}  // namespace moiety
