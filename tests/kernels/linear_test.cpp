// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/linear.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;

namespace {

template <class T> std::vector<T> of(std::vector<float> const& values) {
  std::vector<T> all;
  for (float const v : values) all.push_back(T(v));
  return all;
}
template <class T> std::vector<double> wide(std::vector<T> const& values) {
  std::vector<double> all;
  for (T const v : values) all.push_back(static_cast<double>(static_cast<mo::sum_t<T>>(v)));
  return all;
}

}  // namespace

TEST_CASE_TEMPLATE("a linear map and its gradients, worked by hand", T, float, double, mo::bf16) {
  using S = mo::sum_t<T>;
  using doubles = std::vector<double>;
  mo::host_engine engine(mo::host{.threads = 2});
  auto const w = of<T>({1, 2, 0, -1, 3, 1});  // 3 outputs of 2 inputs
  auto const x = of<T>({1, 1, 2, -1}), dy = of<T>({1, 0, 2, -1, 4, 0});
  std::vector<S> const base{S(.5), 0, 0, 0, 0, 1};
  std::vector<T> y(6), dx(4);
  mo::matrix_view<T const> const weights{w.data(), 3, 2}, tokens{x.data(), 2, 2}, gradients{dy.data(), 2, 3};
  mo::kernels::linear<T>(engine, tokens, weights, nullptr, {y.data(), 2, 3});
  CHECK(wide(y) == doubles{3, -1, 4, 0, 1, 5});
  mo::kernels::linear<T>(engine, tokens, weights, base.data(), {y.data(), 2, 3});
  CHECK(wide(y) == doubles{3.5, -1, 4, 0, 1, 6});
  mo::kernels::linear_input_gradient<T>(engine, gradients, weights, nullptr, {dx.data(), 2, 2});
  CHECK(wide(dx) == doubles{7, 4, -1, -6});
  mo::kernels::linear_input_gradient<T>(engine, gradients, weights, base.data(), {dx.data(), 2, 2});
  CHECK(wide(dx) == doubles{7.5, 4, -1, -6});
}

TEST_CASE("tokens that are not listed have no part in the gradient of weights") {
  mo::host_engine engine(mo::host{.threads = 1});
  float const nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> const x{1, 2, nan, nan, 3, 4}, dy{1, nan, -1};
  std::vector<float> dw{7, 7};
  std::array<std::int32_t, 2> const list{0, 2};
  std::array<std::int64_t, 2> const offsets{0, 2};
  for (bool const accumulate : {false, true}) {
    mo::kernels::linear_weight_gradient<float>(engine, {dy.data(), 3, 1}, {x.data(), 3, 2}, list.data(), offsets.data(),
                                               {dw.data(), 1, 2}, accumulate);
    CHECK(dw == (accumulate ? std::vector<float>{-4, -4} : std::vector<float>{-2, -2}));
  }
}
