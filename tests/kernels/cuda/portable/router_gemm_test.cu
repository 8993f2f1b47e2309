// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/router_gemm.cuh>

#include <moiety/backend/host.hpp>
#include <moiety/kernels/fill_normal.hpp>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace mo = moiety;

namespace {

template <class V> bool same_bits(std::vector<V> const& a, std::vector<V> const& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(V)) == 0);
}

}  // namespace

TEST_CASE_TEMPLATE("products of a router have the bits of the host, for every element type", T, float, double, mo::bf16,
                   mo::fp16) {
  using S = mo::sum_t<T>;
  mo::cuda_engine gpu{mo::cuda{}};
  mo::host_engine cpu{mo::host{.threads = 1}};
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  struct shape {
    std::int64_t tokens, experts, hidden, x_stride;
  };
  for (shape const s : {shape{0, 4, 8, 8}, {1, 1, 1, 1}, {70, 8, 64, 64}, {130, 40, 33, 35}}) {
    auto const random = [&]<class V>(std::vector<V> values, std::uint64_t stream) {
      auto const count = static_cast<std::int64_t>(values.size());
      mo::kernels::fill_normal<V>(cpu, {values.data(), 1, count}, 1, mo::seed{number}, stream, 0);
      return values;
    };
    auto const size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    auto const x = random(std::vector<T>(size(s.tokens * s.x_stride)), 1);
    auto const w = random(std::vector<S>(size(s.experts * s.hidden)), 2);
    auto const dz = random(std::vector<S>(size(s.tokens * s.experts)), 3);
    std::vector<std::int32_t> list;
    for (std::int32_t t = 0; t < s.tokens; t += 1 + t % 3) list.push_back(t);
    std::vector<std::int64_t> const offsets{0, static_cast<std::int64_t>(list.size())};
    std::vector<S> z(dz.size(), testing::poison<S>()), dx(size(s.tokens * s.hidden), testing::poison<S>()),
        dw(w.size(), testing::poison<S>());
    testing::device_values<T> const d_x(x);
    testing::device_values<S> const d_w(w), d_dz(dz);
    testing::device_values<std::int32_t> const d_list(list);
    testing::device_values<std::int64_t> const d_offsets(offsets);
    testing::device_values<S> d_z(z), d_dx(dx), d_dw(dw);
    auto const all = [&](auto& engine, T const* x_, S const* w_, S const* dz_, std::int32_t const* list_,
                         std::int64_t const* offsets_, S* z_, S* dx_, S* dw_) {
      mo::matrix_view<S const> const weights{w_, s.experts, s.hidden}, dlogits{dz_, s.tokens, s.experts};
      mo::matrix_view<T const> const rows{x_, s.tokens, s.hidden, s.x_stride};
      mo::kernels::router_logits<T>(engine, rows, weights, {z_, s.tokens, s.experts});
      mo::kernels::router_input_gradient<S>(engine, dlogits, weights, dx_);
      if (s.tokens == 70)
        mo::kernels::router_input_gradient<S>(engine, std::array{dlogits, dlogits}, std::array{weights, weights}, dx_);
      for (bool const accumulate : {false, true})
        mo::kernels::router_weight_gradient<T>(engine, dlogits, rows, list_, offsets_, {dw_, s.experts, s.hidden},
                                               accumulate);
    };
    all(cpu, x.data(), w.data(), dz.data(), list.data(), offsets.data(), z.data(), dx.data(), dw.data());
    all(gpu, d_x.data(), d_w.data(), d_dz.data(), d_list.data(), d_offsets.data(), d_z.data(), d_dx.data(),
        d_dw.data());
    CHECK(same_bits(z, d_z.host()));
    CHECK(same_bits(dx, d_dx.host()));
    CHECK(same_bits(dw, d_dw.host()));
  }
}
