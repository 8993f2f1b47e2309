// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/fp8.hpp>

#include <moiety/moiety.hpp>

#include "experts/layer_results.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace mo = moiety;

namespace {

constexpr std::int64_t hidden = 21, ffn = 270, experts = 3, rows = 14;  // more than one column block of the product
using silu_mlp = mo::gated_mlp<mo::silu>;
using mo::kernels::block_scaled;
using mo::kernels::row_scaled;

std::vector<float> normals(std::int64_t count, std::uint64_t number) {
  std::mt19937_64 words(number);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(words);
  return values;
}

/// What values [groups × n × columns] stand for once they are quantised, `outputs` rows and `shared` columns by one scale.
std::vector<float> through_e4m3(std::vector<float> values, std::int64_t n, std::int64_t columns, std::int64_t outputs,
                                std::int64_t shared) {
  for (auto group = values.begin(); group != values.end(); group += n * columns)
    for (std::int64_t first = 0; first < n; first += outputs)
      for (std::int64_t begin = 0; begin < columns; begin += shared) {
        auto const for_all = [&](auto const& f) {
          for (std::int64_t r = first; r < std::min(n, first + outputs); ++r)
            for (std::int64_t c = begin; c < std::min(columns, begin + shared); ++c) f(group[r * columns + c]);
        };
        float largest = 0;
        for_all([&](float& v) { largest = std::max(largest, std::abs(v)); });
        float const scale = mo::kernels::quantising_scale(mo::kernels::magnitude_bits(largest));
        for_all([&](float& v) { v = static_cast<float>(mo::e4m3(v / scale)) * scale; });
      }
  return values;
}
template <class Scaling> std::vector<float> rows_through(std::vector<float> const& values, std::int64_t columns) {
  return through_e4m3(values, rows, columns, 1, Scaling::columns == 0 ? columns : Scaling::columns);
}
template <class Scaling>
std::vector<float> matrices_through(std::vector<float> const& values, std::int64_t n, std::int64_t columns) {
  return through_e4m3(values, n, columns, Scaling::outputs, Scaling::columns == 0 ? columns : Scaling::columns);
}

/// [groups × n × k] as [groups × k × n].
std::vector<float> turned(std::vector<float> const& of, std::int64_t n, std::int64_t k) {
  std::vector<float> all(of.size());
  for (std::size_t i = 0; i < of.size(); ++i) {
    auto const at = static_cast<std::int64_t>(i), g = at / (n * k), r = at % (n * k) / k, c = at % k;
    all[static_cast<std::size_t>((g * k + c) * n + r)] = of[i];
  }
  return all;
}

struct problem {
  mo::host_engine engine{mo::host{.threads = 2}};
  std::uint64_t number = std::random_device{}();
  std::vector<std::int64_t> offsets{0, 9, 9, rows};  // the second expert has no row
  std::vector<float> gate = normals(experts * ffn * hidden, number), up = normals(experts * ffn * hidden, number + 1),
                     down = normals(experts * ffn * hidden, number + 2), x = normals(rows * hidden, number + 3),
                     dy = normals(rows * hidden, number + 4), row_weights = normals(rows, number + 5);
  std::vector<float> z, a, o, dz, scaled, parts, dx;

  std::vector<mo::bf16> room = std::vector<mo::bf16>(rows * 2 * ffn);  // of the widest rows, dz

  mo::expert_rows of() { return {experts, offsets.data(), hidden, ffn, rows, room.data()}; }
  mo::expert_matrices<silu_mlp, float> matrices() {
    return {{{{gate.data(), ffn * hidden, hidden}, {up.data(), ffn * hidden, hidden}}},
            {down.data(), ffn * hidden, ffn}};
  }

  template <class Scaling, bool Backward> void run() {
    constexpr float poison = std::numeric_limits<float>::quiet_NaN();
    z.assign(rows * 2 * ffn, poison), a.assign(rows * ffn, poison), o.assign(rows * hidden, poison);
    dz = z, scaled = a, dx = o, parts.assign(static_cast<std::size_t>(rows * mo::column_blocks<float>(ffn)), poison);
    using layout = mo::e4m3_copies<mo::host, Scaling, Backward>;
    mo::expert_copies<silu_mlp, float, layout> const copies({experts, hidden, ffn}, engine.memory());
    copies.pack(engine, matrices());
    mo::expert_operands<silu_mlp, float, layout> const weights{matrices(), &copies};
    using apply = mo::apply_by_e4m3<silu_mlp, mo::host, Scaling, Backward>;
    apply::forward(engine, of(), mo::kernels::rows_of<float>{x.data(), hidden}, weights, z.data(), a.data(), o.data());
    apply::backward_input(engine, of(), mo::kernels::rows_of<float>{dy.data(), hidden}, weights,
                          static_cast<float const*>(z.data()), static_cast<float const*>(row_weights.data()), dz.data(),
                          scaled.data(), parts.data(), dx.data());
  }

  /// Rows [rows × k] times matrices [n × k] as the library multiplies bf16, which these values are.
  std::vector<float> product(std::vector<float> const& left, std::vector<float> const& right, std::int64_t n,
                             std::int64_t k) {
    std::vector<mo::bf16> a16, b16;
    for (float const v : left) a16.emplace_back(v);
    for (float const v : right) b16.emplace_back(v);
    REQUIRE(std::equal(left.begin(), left.end(), a16.begin()));
    REQUIRE(std::equal(right.begin(), right.end(), b16.begin()));
    std::vector<float> all(static_cast<std::size_t>(rows * n));
    mo::kernels::grouped_gemm_nt<float>(
        engine, experts, offsets.data(), mo::kernels::rows_of<mo::bf16>{a16.data(), k},
        std::array{mo::kernels::grouped_matrix<mo::bf16 const>{b16.data(), n * k, k}}, n, k,
        [&](std::int64_t, std::int64_t row, std::int64_t col, std::int64_t cols,
            std::array<float const*, 1> const& sums) {
          std::memcpy(all.data() + row * n + col, sums[0], static_cast<std::size_t>(cols) * sizeof(float));
        });
    return all;
  }
};

}  // namespace

namespace {

template <class Scaling> struct problem_of : problem {
  void check_forward() {
    run<Scaling, true>();
    auto const x8 = rows_through<Scaling>(x, hidden);
    auto const g = product(x8, matrices_through<Scaling>(gate, ffn, hidden), ffn, hidden),
               u = product(x8, matrices_through<Scaling>(up, ffn, hidden), ffn, hidden);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t i = 0; i < ffn; ++i) {
        REQUIRE(z[static_cast<std::size_t>(r * 2 * ffn + i)] == g[static_cast<std::size_t>(r * ffn + i)]);
        REQUIRE(z[static_cast<std::size_t>((r * 2 + 1) * ffn + i)] == u[static_cast<std::size_t>(r * ffn + i)]);
      }
    CHECK(o == product(rows_through<Scaling>(a, ffn), matrices_through<Scaling>(down, hidden, ffn), hidden, ffn));
  }
  void check_backward() {
    run<Scaling, true>();
    // dw is the sum of dA′ a over a row, so dA′ shows in it; dz and A′ follow from z and dA′ as without quantising.
    auto const da = product(rows_through<Scaling>(dy, hidden),
                            matrices_through<Scaling>(turned(down, hidden, ffn), ffn, hidden), ffn, hidden);
    for (std::int64_t r = 0; r < rows; ++r) {
      double wanted = 0, got = 0, size = 0;
      for (std::int64_t i = 0; i < ffn; ++i) {
        double const term = static_cast<double>(da[static_cast<std::size_t>(r * ffn + i)]) *
                            static_cast<double>(a[static_cast<std::size_t>(r * ffn + i)]);
        wanted += term, size += std::abs(term);
        float const gate_value = z[static_cast<std::size_t>(r * 2 * ffn + i)];
        REQUIRE(dz[static_cast<std::size_t>((r * 2 + 1) * ffn + i)] == row_weights[static_cast<std::size_t>(r)] *
                                                                           da[static_cast<std::size_t>(r * ffn + i)] *
                                                                           mo::silu::value(gate_value));
      }
      for (std::int64_t b = 0; b < mo::column_blocks<float>(ffn); ++b)
        got += static_cast<double>(parts[static_cast<std::size_t>(r * mo::column_blocks<float>(ffn) + b)]);
      CHECK(std::abs(got - wanted) <= 1e-5 * size);
    }
    std::vector<float> beside;  // of gate and up, [H × 2 I] of each expert
    auto const gate_t = turned(gate, ffn, hidden), up_t = turned(up, ffn, hidden);
    for (std::int64_t row = 0; row < experts * hidden; ++row)
      for (auto const* from : {&gate_t, &up_t})
        beside.insert(beside.end(), from->begin() + row * ffn, from->begin() + (row + 1) * ffn);
    CHECK(dx == product(rows_through<Scaling>(dz, 2 * ffn), matrices_through<Scaling>(beside, hidden, 2 * ffn), hidden,
                        2 * ffn));
  }
};

}  // namespace

TEST_CASE_TEMPLATE("each product is that of the values that its operands stand for, bit by bit", Scaling, row_scaled,
                   block_scaled) {
  problem_of<Scaling> p;
  INFO("seed ", p.number);
  p.check_forward();
  p.check_backward();
}

TEST_CASE_FIXTURE(problem, "what is not finite in a row is NaN in its outputs, and felt in no other row") {
  INFO("seed ", number);
  run<row_scaled, true>();
  auto const finite = o;
  x[5 * hidden + 3] = std::numeric_limits<float>::infinity();
  run<row_scaled, true>();
  for (std::int64_t i = 0; i < rows * hidden; ++i) {
    auto const at = static_cast<std::size_t>(i);
    if (i / hidden == 5)
      CHECK(std::isnan(o[at]));
    else
      REQUIRE(o[at] == finite[at]);
  }
}

TEST_CASE_FIXTURE(problem, "with a forward of 8 bits alone gradients are the element type's at the same values") {
  INFO("seed ", number);
  run<row_scaled, true>();
  auto const o8 = o, z8 = z, dx8 = dx;
  run<row_scaled, false>();
  CHECK(o == o8);
  CHECK(z == z8);
  CHECK(dx != dx8);
  std::vector<float> plain_dz(dz.size()), plain_scaled(scaled.size()), plain_parts(parts.size()), plain_dx(dx.size());
  mo::apply_experts<silu_mlp>::backward_input(engine, of(), mo::kernels::rows_of<float>{dy.data(), hidden},
                                              mo::expert_operands<silu_mlp, float>{.matrices = matrices()},
                                              static_cast<float const*>(z.data()),
                                              static_cast<float const*>(row_weights.data()), plain_dz.data(),
                                              plain_scaled.data(), plain_parts.data(), plain_dx.data());
  CHECK((dz == plain_dz && scaled == plain_scaled && parts == plain_parts && dx == plain_dx));
}

namespace {

using layer_results::gated;
using layer_results::odd;
template <class T, class Products> using by = layer_results::by<mo::host, T, Products>;

struct in_by_out : gated {
  using experts = mo::gated_mlp<mo::gelu_tanh, mo::concatenated, mo::in_by_out>;
};
struct one_input : gated {
  using experts = mo::mlp<mo::relu, mo::down_in_by_out>;
};
struct with_shared : gated {
  using shared = mo::shared_experts<2, mo::sigmoid_gated>;
};

template <class Spec, class T, class Products, class ForwardProducts> void compare() {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  mo::host const alone{.threads = 1};
  auto const wanted = layer_results::run<Spec, by<T, mo::grouped_products>>(number, alone),
             got = layer_results::run<Spec, by<T, Products>>(number, {.threads = 3}),
             forward = layer_results::run<Spec, by<T, ForwardProducts>>(number, alone);
  layer_results::check(wanted, got, 0.25, 0.01);
  layer_results::check(wanted, forward, 0.25, 0.01);
  CHECK(got[1] == forward[1]);
  CHECK(got[2] != forward[2]);
  CHECK(layer_results::run<Spec, by<T, Products>>(number, alone) == got);
}

}  // namespace

TEST_CASE_TEMPLATE("a layer in 8 bits is that without within the rounding of operands, and a token's bits are its own",
                   Spec, gated, odd, in_by_out, one_input, with_shared) {
  compare<Spec, float, mo::fp8_products, mo::fp8_forward_products>();
  compare<Spec, mo::bf16, mo::fp8_block_products, mo::fp8_block_forward_products>();
}

TEST_CASE("copies in 8 bits that are older than the weights are refused") {
  using deployment = by<mo::bf16, mo::fp8_products>;
  mo::context<deployment> ctx{mo::host{.threads = 1}};
  mo::moe_layer<gated, deployment> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  mo::matrix<mo::bf16> x(3, 72), y(3, 72);
  mo::fill_normal(ctx, x, mo::seed{2});
  CHECK_NOTHROW(layer.infer(weights, x, y));
  weights.for_each([](mo::parameter const&, auto) {});
  CHECK_THROWS_AS(layer.infer(weights, x, y), mo::state_error);
  layer.pack(weights);
  CHECK_NOTHROW(layer.infer(weights, x, y));
}
