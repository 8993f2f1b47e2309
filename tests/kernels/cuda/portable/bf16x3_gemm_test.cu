// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/bf16x3_gemm.cuh>

#include <moiety/backend/host.hpp>
#include <moiety/kernels/fill_normal.hpp>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace mo = moiety;

namespace {

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

template <class V> std::vector<V> random(std::int64_t count, std::uint64_t number, std::uint64_t stream) {
  mo::host_engine cpu{mo::host{.threads = 1}};
  std::vector<V> values(size(count));
  mo::kernels::fill_normal<V>(cpu, {values.data(), 1, count}, 1, mo::seed{number}, stream, 0);
  return values;
}

/// Σ a(i) b(i) and Σ |a(i) b(i)|.
struct exact {
  double sum = 0, size = 0;
  void add(double a, double b) { sum += a * b, size += std::fabs(a * b); }
  bool holds(float got, double error) const { return std::fabs(static_cast<double>(got) - sum) <= error * size; }
};

struct shape {
  std::int64_t tokens, experts, hidden, x_stride;
};

/// The operands of a router on the device, and what the products made of poisoned memory.
struct case_of_router {
  shape s;
  std::vector<mo::bf16> x;
  std::vector<float> w, dz, noise_w, noise_dz;
  std::vector<std::int32_t> list;
  mo::cuda_engine engine;

  case_of_router(shape const& of, std::uint64_t number, mo::cuda const& on = {})
      : s(of),
        x(random<mo::bf16>(of.tokens * of.x_stride, number, 1)),
        w(random<float>(of.experts * of.hidden, number, 2)),
        dz(random<float>(of.tokens * of.experts, number, 3)),
        noise_w(random<float>(of.experts * of.hidden, number, 4)),
        noise_dz(random<float>(of.tokens * of.experts, number, 5)),
        engine(on) {
    for (std::int64_t t = 0; t < s.tokens; t += 1 + t % 3) list.push_back(static_cast<std::int32_t>(t));
  }

  /// Σ_e dz(t, e) W(e, h), of one pair or of both.
  exact dx_at(std::int64_t t, std::int64_t h, bool both) const {
    exact sum;
    for (std::int64_t e = 0; e < s.experts; ++e) {
      auto const at_z = size(t * s.experts + e), at_w = size(e * s.hidden + h);
      sum.add(static_cast<double>(dz[at_z]), static_cast<double>(w[at_w]));
      if (both) sum.add(static_cast<double>(noise_dz[at_z]), static_cast<double>(noise_w[at_w]));
    }
    return sum;
  }
  double x_at(std::int64_t t, std::int64_t h) const {
    return static_cast<double>(static_cast<float>(x[size(t * s.x_stride + h)]));
  }
  double w_at(std::int64_t e, std::int64_t h) const { return static_cast<double>(w[size(e * s.hidden + h)]); }
  double dz_at(std::int64_t t, std::int64_t e) const { return static_cast<double>(dz[size(t * s.experts + e)]); }

  std::vector<float> logits(std::vector<float> const& bias = {}) {
    testing::device_values<std::byte> room(mo::kernels::bf16x3_room::logits(s.hidden, s.experts));
    testing::device_values<mo::bf16> const d_x(x);
    testing::device_values<float> const d_w(w), d_bias(bias);
    testing::device_values<float> z(s.tokens * s.experts);
    mo::kernels::router_logits<mo::bf16>(
        mo::kernels::bf16x3_engine{engine, room.data()}, {d_x.data(), s.tokens, s.hidden, s.x_stride},
        {d_w.data(), s.experts, s.hidden}, {z.data(), s.tokens, s.experts}, bias.empty() ? nullptr : d_bias.data());
    return z.host();
  }

  /// Of M pairs of dz and W.
  template <std::size_t M> std::vector<float> input_gradient() {
    testing::device_values<std::byte> room(
        mo::kernels::bf16x3_room::input_gradient(s.tokens, s.hidden, s.experts, std::int64_t{M}));
    std::array<testing::device_values<float>, 2> const d_w{testing::device_values<float>(w),
                                                           testing::device_values<float>(noise_w)},
        d_dz{testing::device_values<float>(dz), testing::device_values<float>(noise_dz)};
    testing::device_values<float> dx(s.tokens * s.hidden);
    std::array<mo::matrix_view<float const>, M> dlogits, weights;
    for (std::size_t m = 0; m < M; ++m)
      dlogits[m] = {d_dz[m].data(), s.tokens, s.experts}, weights[m] = {d_w[m].data(), s.experts, s.hidden};
    mo::kernels::router_input_gradient<float>(mo::kernels::bf16x3_engine{engine, room.data()}, dlogits, weights,
                                              dx.data());
    return dx.host();
  }

  /// Overwritten, and then added to as often as asked for.
  std::vector<float> weight_gradient(int more) {
    testing::device_values<std::byte> room(mo::kernels::bf16x3_room::weight_gradient(s.tokens, s.hidden, s.experts));
    testing::device_values<mo::bf16> const d_x(x);
    testing::device_values<float> const d_dz(dz);
    testing::device_values<std::int32_t> const d_list(list);
    testing::device_values<std::int64_t> const offsets(
        std::vector<std::int64_t>{0, static_cast<std::int64_t>(list.size())});
    testing::device_values<float> dw(s.experts * s.hidden);
    for (int i = 0; i <= more; ++i)
      mo::kernels::router_weight_gradient<mo::bf16>(mo::kernels::bf16x3_engine{engine, room.data()},
                                                    {d_dz.data(), s.tokens, s.experts},
                                                    {d_x.data(), s.tokens, s.hidden, s.x_stride}, d_list.data(),
                                                    offsets.data(), {dw.data(), s.experts, s.hidden}, i > 0);
    return dw.host();
  }
};

constexpr shape shapes[]{{0, 4, 8, 8}, {1, 1, 1, 1}, {70, 8, 64, 64}, {130, 40, 33, 35}, {300, 128, 72, 72}};
constexpr double of_floats = 0x1p-20, of_16_bits = 0x1p-15;

}  // namespace

TEST_CASE("logits in bf16x3 have errors as sums of floats have") {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  for (shape const& s : shapes) {
    case_of_router router(s, number);
    auto const bias = random<float>(s.experts, number, 4);
    auto const z = router.logits(), biased = router.logits(bias);
    for (std::int64_t t = 0; t < s.tokens; ++t)
      for (std::int64_t e = 0; e < s.experts; ++e) {
        exact sum;
        for (std::int64_t h = 0; h < s.hidden; ++h) sum.add(router.x_at(t, h), router.w_at(e, h));
        auto const at = size(t * s.experts + e);
        REQUIRE(sum.holds(z[at], of_floats));
        REQUIRE(biased[at] == z[at] + bias[size(e)]);
      }
  }
}

TEST_CASE("three parts are a weight, to its last bit") {
  constexpr std::int64_t hidden = 24, experts = 5;
  case_of_router router({hidden, experts, hidden, hidden}, std::random_device{}());
  for (float& w : router.w) w = std::ldexp(w, static_cast<int>(16 * std::fabs(w)) - 20);
  for (std::int64_t t = 0; t < hidden; ++t)
    for (std::int64_t h = 0; h < hidden; ++h) router.x[size(t * hidden + h)] = mo::bf16(t == h ? 1.0f : 0.0f);
  auto const z = router.logits();
  for (std::int64_t t = 0; t < hidden; ++t)
    for (std::int64_t e = 0; e < experts; ++e)
      CHECK(static_cast<double>(z[size(t * experts + e)]) == router.w_at(e, t));
}

TEST_CASE("input gradients in bf16x3 keep 16 bits of every factor, of one product or of two in one sum") {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  for (shape const& s : shapes) {
    case_of_router router(s, number);
    auto const once = router.input_gradient<1>(), twice = router.input_gradient<2>();
    for (std::int64_t t = 0; t < s.tokens; ++t)
      for (std::int64_t h = 0; h < s.hidden; ++h) {
        REQUIRE(router.dx_at(t, h, false).holds(once[size(t * s.hidden + h)], of_16_bits));
        REQUIRE(router.dx_at(t, h, true).holds(twice[size(t * s.hidden + h)], of_16_bits));
      }
  }
}

TEST_CASE("weight gradients in bf16x3 are sums over the tokens of a list, written or added, others read nowhere") {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  std::vector<shape> all(std::begin(shapes), std::end(shapes));
  all.push_back({2 * mo::kernels::bf16x3_room::block_tokens + 300, 3, 9, 9});  // more than a block of the list
  for (shape const& s : all) {
    case_of_router router(s, number);
    for (std::int64_t t = 0; t < s.tokens; ++t)
      if (!std::binary_search(router.list.begin(), router.list.end(), static_cast<std::int32_t>(t)))
        router.x[size(t * s.x_stride)] = mo::bf16(std::numeric_limits<float>::quiet_NaN());
    auto const once = router.weight_gradient(0), thrice = router.weight_gradient(2);
    for (std::int64_t e = 0; e < s.experts; ++e)
      for (std::int64_t h = 0; h < s.hidden; ++h) {
        exact sum;
        for (std::int32_t const t : router.list) sum.add(router.dz_at(t, e), router.x_at(t, h));
        auto const at = size(e * s.hidden + h);
        REQUIRE(sum.holds(once[at], of_16_bits));
        REQUIRE(thrice[at] == once[at] + once[at] + once[at]);
      }
  }
}

TEST_CASE("logits and input gradients in bf16x3 depend on no other token, and on no kernel that is chosen") {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  shape const many{200, 24, 64, 64};
  case_of_router router(many, number), portable(many, number, mo::cuda{.portable = true}), few({9, 24, 64, 64}, number);
  std::copy_n(router.x.begin(), few.x.size(), few.x.begin());
  std::copy_n(router.dz.begin(), few.dz.size(), few.dz.begin());
  few.w = router.w;
  auto const begins_with = [](std::vector<float> const& of, std::vector<float> const& part) {
    return std::equal(part.begin(), part.end(), of.begin());
  };
  auto const z = router.logits(), dx = router.input_gradient<1>();
  CHECK(begins_with(z, few.logits()));
  CHECK(begins_with(dx, few.input_gradient<1>()));
  CHECK(z == portable.logits());
  CHECK(dx == portable.input_gradient<1>());
  CHECK(router.weight_gradient(1) == portable.weight_gradient(1));
}
