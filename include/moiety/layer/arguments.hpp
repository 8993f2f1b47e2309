// SPDX-License-Identifier: Apache-2.0
// What every call of a layer asks of its matrices: the right shape, aligned memory behind it that the back end can reach,
// and an output apart from its input. Each fault is a data_error that names the call and both shapes; memory out of reach
// is what the back end makes of it.
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::detail {

/// Whether they share memory; of different strides, whether one begins before the other ends.
template <class T> bool overlap(matrix_view<T const> a, matrix_view<T const> b) {
  auto const end = [](matrix_view<T const> m) { return m.row(m.rows() - 1) + m.cols(); };
  if (a.rows() == 0 || b.rows() == 0 || a.data() >= end(b) || b.data() >= end(a)) return false;
  if (a.stride() != b.stride()) return true;
  std::int64_t const stride = a.stride(), first = ((b.data() - a.data()) % stride + stride) % stride;
  return first < a.cols() || first + b.cols() > stride;  // rows of b begin at column `first` of those of a
}

template <class T, class Engine>
void check_shape(Engine const& engine, char const* call, char const* name, matrix_view<T const> m, std::int64_t rows,
                 std::int64_t cols) {
  require<data_error>(m.rows() == rows && m.cols() == cols, call, " needs ", name, " of the shape ", shape(rows, cols),
                      ", but was given ", shape(m.rows(), m.cols()), '.');
  require<data_error>(m.data() != nullptr || rows == 0, call, " was given a null ", name, '.');
  require<data_error>(is_aligned<T>(m.data()), call, " was given ", name, " at an address that is no multiple of ",
                      alignof(T), " bytes.");
  require<data_error>(m.stride() >= cols, call, " was given ", name, " with a stride of ", m.stride(), " for ", cols,
                      " columns.");
  engine.check_memory(call, name, m.data());
}

/// Checks the input and output of a call, each of `cols` columns.
template <class T, class Engine>
void check_call(Engine const& engine, char const* call, std::int64_t cols, char const* in_name, matrix_view<T const> in,
                char const* out_name, matrix_view<T> out) {
  check_shape<T>(engine, call, in_name, in, in.rows(), cols);
  check_shape<T>(engine, call, out_name, out, in.rows(), cols);
  require<data_error>(!overlap<T>(in, out), call, " was given ", out_name, " that overlaps ", in_name, '.');
}

/// Checks a call of `count` tokens: whether their slots can be rows, and what it says of them, for itself and for the router.
template <class Engine, class Router>
void check_batch(Engine const& engine, Router const& router, batch const& about, std::int64_t count,
                 std::int64_t experts) {
  check_rows(count, Router::slots_of(experts));
  about.check(count);
  engine.check_memory("a layer", "a mask", about.mask.data());
  engine.check_memory("a layer", "token ids", about.ids.data());
  engine.check_memory("a layer", "expert ids", about.experts.data());
  router.check(about, count, experts);
}

}  // namespace moiety::inline MOIETY_ABI::detail
