// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/linear.cuh>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <concepts>
#include <cstdint>
#include <vector>

namespace mo = moiety;
using testing::device_values;

namespace {

/// The bits of the host in float, and its values within a rounding where tensor cores multiply.
template <class V> void compare(std::vector<V> const& wanted, std::vector<V> const& got, double tolerance) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    auto const a = static_cast<double>(static_cast<mo::sum_t<V>>(wanted[i])),
               b = static_cast<double>(static_cast<mo::sum_t<V>>(got[i]));
    error += (a - b) * (a - b), norm += a * a;
  }
  CHECK(std::sqrt(error) <= tolerance * std::sqrt(norm));
}

template <class V> std::vector<V> numbers(std::int64_t count, int seed) {
  std::vector<V> all;
  for (std::int64_t i = 0; i < count; ++i)
    all.push_back(static_cast<V>(static_cast<mo::sum_t<V>>((i * 37 + seed) % 101) / 50 - 1));
  return all;
}

}  // namespace

TEST_CASE_TEMPLATE("a linear map on a device is that of the host", T, float, mo::bf16) {
  using S = mo::sum_t<T>;
  constexpr std::int64_t tokens = 70, n = 33, k = 48;
  double const tolerance = std::same_as<T, float> ? 0 : 4e-3;
  mo::host_engine cpu(mo::host{.threads = 1});
  mo::cuda_engine gpu{mo::cuda{}};
  auto const x = numbers<T>(tokens * k, 1), w = numbers<T>(n * k, 2), dy = numbers<T>(tokens * n, 3);
  auto const base = numbers<S>(tokens * k, 4);
  std::vector<std::int32_t> const list{3, 4, 9, 60, 69};
  std::vector<std::int64_t> const offsets{0, 5};
  std::vector<T> y(tokens * n), dx(tokens * k);
  std::vector<S> dw(n * k, 5);
  device_values<T> const x_there(x), w_there(w), dy_there(dy);
  device_values<S> const base_there(base);
  device_values<std::int32_t> const list_there(list);
  device_values<std::int64_t> const offsets_there(offsets);
  device_values<T> y_there(y), dx_there(dx);
  device_values<S> dw_there(dw);
  for (bool const with_base : {false, true}) {
    mo::kernels::linear<T>(cpu, {x.data(), tokens, k}, {w.data(), n, k}, with_base ? base.data() : nullptr,
                           {y.data(), tokens, n});
    mo::kernels::linear<T>(gpu, {x_there.data(), tokens, k}, {w_there.data(), n, k},
                           with_base ? base_there.data() : nullptr, {y_there.data(), tokens, n});
    mo::kernels::linear_input_gradient<T>(cpu, {dy.data(), tokens, n}, {w.data(), n, k},
                                          with_base ? base.data() : nullptr, {dx.data(), tokens, k});
    mo::kernels::linear_input_gradient<T>(gpu, {dy_there.data(), tokens, n}, {w_there.data(), n, k},
                                          with_base ? base_there.data() : nullptr, {dx_there.data(), tokens, k});
    mo::kernels::linear_weight_gradient<T>(cpu, {dy.data(), tokens, n}, {x.data(), tokens, k}, list.data(),
                                           offsets.data(), {dw.data(), n, k}, with_base);
    mo::kernels::linear_weight_gradient<T>(gpu, {dy_there.data(), tokens, n}, {x_there.data(), tokens, k},
                                           list_there.data(), offsets_there.data(), {dw_there.data(), n, k}, with_base);
    compare(y, y_there.host(), tolerance);
    compare(dx, dx_there.host(), tolerance);
    compare(dw, dw_there.host(), tolerance);
  }
}
