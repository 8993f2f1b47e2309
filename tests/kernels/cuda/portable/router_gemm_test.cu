// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/router_gemm.cuh>

#include <moiety/kernels/fill_normal.hpp>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <vector>

namespace mo = moiety;
using testing::device_values;
using testing::poison;
using testing::same_bits;

namespace {

mo::host_engine& cpu() {
  static mo::host_engine only{mo::host{.threads = 1}};
  return only;
}

template <class V> std::vector<V> normals(std::int64_t count, std::uint64_t key, std::uint64_t stream) {
  std::vector<V> values(static_cast<std::size_t>(count));
  mo::kernels::fill_normal<V>(cpu(), {values.data(), 1, count}, 1, mo::seed{key}, stream, 0);
  return values;
}

/// The three products, on matrices with distances between rows; `every`: one token in that many is not in the list.
template <class T> void check(std::int64_t tokens, std::int64_t experts, std::int64_t hidden, std::int64_t every) {
  using S = mo::sum_t<T>;
  std::uint64_t const key = std::random_device{}();
  INFO("seed ", key, ", ", tokens, " tokens, ", experts, " experts, ", hidden, " columns, 1 of ", every, " left out");
  mo::cuda_engine gpu{mo::cuda{}};
  std::int64_t const x_stride = hidden + 3, w_stride = hidden + 4, z_stride = experts + 1;
  auto x = normals<T>(tokens * x_stride, key, 1);
  auto const w = normals<S>(experts * w_stride, key, 2);
  auto const blank = [](std::int64_t count) { return std::vector<S>(static_cast<std::size_t>(count), poison<S>()); };
  device_values<T> d_x(x);
  device_values<S> const d_w(w);

  auto z = blank(tokens * z_stride);
  device_values<S> d_z(z);
  mo::kernels::router_logits<T>(cpu(), {x.data(), tokens, hidden, x_stride}, {w.data(), experts, hidden, w_stride},
                                {z.data(), tokens, experts, z_stride});
  mo::kernels::router_logits<T>(gpu, {d_x.data(), tokens, hidden, x_stride}, {d_w.data(), experts, hidden, w_stride},
                                {d_z.data(), tokens, experts, z_stride});
  CHECK(same_bits(d_z.host(), z));

  auto dz = normals<S>(tokens * z_stride, key, 3);
  auto dx = blank(tokens * hidden);
  device_values<S> d_dz(dz), d_dx(dx);
  mo::kernels::router_input_gradient<S>(cpu(), {dz.data(), tokens, experts, z_stride},
                                        {w.data(), experts, hidden, w_stride}, dx.data());
  mo::kernels::router_input_gradient<S>(gpu, {d_dz.data(), tokens, experts, z_stride},
                                        {d_w.data(), experts, hidden, w_stride}, d_dx.data());
  CHECK(same_bits(d_dx.host(), dx));

  std::vector<std::int32_t> list;
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (t % every != 0) list.push_back(static_cast<std::int32_t>(t));
    for (std::int64_t c = 0; c < x_stride && t % every == 0; ++c)
      x[static_cast<std::size_t>(t * x_stride + c)] = poison<T>();
  }
  std::vector<std::int64_t> const offsets{0, static_cast<std::int64_t>(list.size())};
  d_x = device_values<T>(x);
  device_values<std::int32_t> const d_list(list);
  device_values<std::int64_t> const d_offsets(offsets);
  auto dw = blank(experts * w_stride);
  device_values<S> d_dw(dw);
  for (bool const accumulate : {false, true}) {
    mo::kernels::router_weight_gradient<T>(cpu(), {dz.data(), tokens, experts, z_stride},
                                           {x.data(), tokens, hidden, x_stride}, list.data(), offsets.data(),
                                           {dw.data(), experts, hidden, w_stride}, accumulate);
    mo::kernels::router_weight_gradient<T>(gpu, {d_dz.data(), tokens, experts, z_stride},
                                           {d_x.data(), tokens, hidden, x_stride}, d_list.data(), d_offsets.data(),
                                           {d_dw.data(), experts, hidden, w_stride}, accumulate);
    CHECK(same_bits(d_dw.host(), dw));
  }
}

}  // namespace

TEST_CASE_TEMPLATE("products of a router have the bits of the host", T, float, mo::bf16) {
  check<T>(75, 24, 70, 4);
  check<T>(200, 264, 40, 7);  // large tiles
  check<T>(9, 3, 5, 1);       // no token in the list
  check<T>(0, 8, 16, 2);
}
