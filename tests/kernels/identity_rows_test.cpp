// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/identity_rows.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

/// Three experts, the last two of which compute nothing; row 0 belongs to the first.
template <class T> struct example {
  using S = mo::sum_t<T>;
  mo::host_engine engine{mo::host{.threads = 2}};
  std::array<std::int64_t, 4> starts{0, 1, 1, 3};
  std::array<std::int32_t, 3> sources{1, 0, 1};
  std::vector<T> x{T(1.0f), T(2.0f), T(3.0f), T(-1.0f)}, out = std::vector<T>(6, T(9.0f));
  std::array<S, 3> weights{7, S(.5), -2};
  mo::permutation_view order{2, 3, 2, starts.data(), sources.data(), nullptr};
  mo::kernels::rows_of<T> rows{x.data(), 2, sources.data()};

  mo::matrix_view<T> to() { return {out.data(), 3, 2}; }
  std::vector<double> seen() const {
    std::vector<double> all;
    for (T const v : out) all.push_back(static_cast<double>(static_cast<S>(v)));
    return all;
  }
};

using doubles = std::vector<double>;

}  // namespace

TEST_CASE_TEMPLATE("rows of experts that compute nothing are those of their tokens, weighted if asked", T, float,
                   double, mo::bf16) {
  example<T> e;
  mo::kernels::pass_rows<T>(e.engine, e.order, 1, e.rows, nullptr, e.to());
  CHECK(e.seen() == doubles{9, 9, 1, 2, 3, -1});
  mo::kernels::pass_rows<T>(e.engine, e.order, 1, e.rows, e.weights.data(), e.to());
  CHECK(e.seen() == doubles{9, 9, .5, 1, -6, 2});
  mo::kernels::pass_rows<T>(e.engine, e.order, 3, e.rows, nullptr, e.to());  // no such expert
  CHECK(e.seen() == doubles{9, 9, .5, 1, -6, 2});
}

TEST_CASE_TEMPLATE("their gradients: weights reach x, and the product of x and dy the weights", T, float, double,
                   mo::bf16) {
  example<T> e;
  using S = mo::sum_t<T>;
  std::vector<T> const dy{T(1.0f), T(-1.0f), T(4.0f), T(.5f)};
  mo::kernels::rows_of<T> const dy_rows{dy.data(), 2, e.sources.data()};
  std::vector<S> parts(6, 9);
  mo::kernels::pass_rows_backward<T>(e.engine, e.order, 1, dy_rows, e.rows, e.weights.data(), parts.data(), 2, e.to());
  CHECK(e.seen() == doubles{9, 9, .5, -.5, -8, -1});
  CHECK(parts == std::vector<S>{9, 9, -1, 0, S(11.5), 0});
  S* const none = nullptr;
  mo::kernels::pass_rows_backward<T>(e.engine, e.order, 1, dy_rows, e.rows, nullptr, none, 2, e.to());
  CHECK(e.seen() == doubles{9, 9, 1, -1, 4, .5});
}
