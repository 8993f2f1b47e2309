// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/apply.hpp>

#include <moiety/backend/host.hpp>
#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;

namespace {

constexpr std::int64_t hidden = 21, ffn = 270, experts = 3;  // more than one column block of the product
using silu_mlp = mo::gated_mlp<mo::silu>;

struct problem {
  mo::context<> ctx{mo::host{.threads = 2}};
  std::vector<std::int64_t> offsets{0, 9, 9, 14};  // the second expert has no row
  std::vector<float> gate, up, down;
  mo::matrix<float> x{14, hidden}, dy{14, hidden};
  std::vector<float> row_weights;

  problem() {
    auto const normals = [](std::int64_t count, int seed) {
      std::vector<float> v(static_cast<std::size_t>(count));
      mo::normal_sequence n(mo::seed{seed}, 0, 0);
      for (float& value : v) value = static_cast<float>(n.next());
      return v;
    };
    gate = normals(experts * ffn * hidden, 1), up = normals(experts * ffn * hidden, 2);
    down = normals(experts * ffn * hidden, 3), row_weights = normals(14, 4);
    mo::fill_normal(ctx, x, mo::seed{5});
    mo::fill_normal(ctx, dy, mo::seed{6});
  }

  mo::expert_rows rows() const { return {experts, offsets.data(), hidden, ffn, offsets.back()}; }
  mo::expert_operands<silu_mlp, float> weights() {
    return {.matrices = {{{{gate.data(), ffn * hidden, hidden}, {up.data(), ffn * hidden, hidden}}},
                         {down.data(), ffn * hidden, ffn}}};
  }
  std::int64_t expert_of(std::int64_t row) const { return row < 9 ? 0 : 2; }
};

double dot(float const* a, float const* b, std::int64_t n, std::int64_t stride = 1) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i * stride];
  return sum;
}

constexpr float poison = std::numeric_limits<float>::quiet_NaN();

}  // namespace

TEST_CASE_FIXTURE(problem, "forward and both halves of backward agree with plain loops in double") {
  std::vector<float> z(14 * 2 * ffn, poison), a(14 * ffn, poison), o(14 * hidden, poison), dz(z.size(), poison),
      scaled(a.size(), poison), dx(o.size(), poison);
  std::int64_t const blocks = mo::column_blocks<float>(ffn);
  std::vector<float> parts(static_cast<std::size_t>(14 * blocks), poison);
  using apply = mo::apply_experts<silu_mlp>;
  mo::kernels::rows_of<float> const x_rows{x.data(), hidden, nullptr}, dy_rows{dy.data(), hidden, nullptr};
  apply::forward(ctx.engine(), rows(), x_rows, weights(), z.data(), a.data(), o.data());
  apply::backward_input(ctx.engine(), rows(), dy_rows, weights(), static_cast<float const*>(z.data()),
                        row_weights.data(), dz.data(), scaled.data(), parts.data(), dx.data());
  CHECK(blocks == 2);
  auto const close = [](double got, double wanted) { CHECK(std::abs(got - wanted) <= 2e-4 * (1 + std::abs(wanted))); };
  for (std::int64_t r = 0; r < 14; ++r) {
    std::int64_t const e = expert_of(r) * ffn * hidden;
    std::vector<double> wanted_a(ffn), da(ffn), wanted_dz(2 * ffn);
    double inner = 0, weight = row_weights[static_cast<std::size_t>(r)];
    for (std::int64_t i = 0; i < ffn; ++i) {
      auto const at = static_cast<std::size_t>(i);
      double const g = dot(x.row(r), &gate[static_cast<std::size_t>(e + i * hidden)], hidden),
                   u = dot(x.row(r), &up[static_cast<std::size_t>(e + i * hidden)], hidden);
      double const s = 1 / (1 + std::exp(-g));
      wanted_a[at] = g * s * u;
      da[at] = dot(dy.row(r), &down[static_cast<std::size_t>(e + i)], hidden, ffn);
      inner += da[at] * wanted_a[at];
      wanted_dz[at] = weight * da[at] * u * (s + g * s * (1 - s));
      wanted_dz[at + ffn] = weight * da[at] * g * s;
      close(a[static_cast<std::size_t>(r * ffn) + at], wanted_a[at]);
      close(scaled[static_cast<std::size_t>(r * ffn) + at], weight * wanted_a[at]);
      close(dz[static_cast<std::size_t>(r * 2 * ffn) + at], wanted_dz[at]);
      close(dz[static_cast<std::size_t>(r * 2 * ffn + ffn) + at], wanted_dz[at + ffn]);
    }
    CHECK(std::abs(parts[static_cast<std::size_t>(2 * r)] + parts[static_cast<std::size_t>(2 * r + 1)] - inner) <
          1e-3 * (100 + std::abs(inner)));
    for (std::int64_t h = 0; h < hidden; ++h) {
      double wanted = 0, wanted_dx = 0;
      for (std::int64_t i = 0; i < ffn; ++i) {
        auto const at = static_cast<std::size_t>(i);
        wanted += down[static_cast<std::size_t>(e + h * ffn + i)] * wanted_a[at];
        wanted_dx += gate[static_cast<std::size_t>(e + i * hidden + h)] * wanted_dz[at] +
                     up[static_cast<std::size_t>(e + i * hidden + h)] * wanted_dz[at + ffn];
      }
      CHECK(std::abs(o[static_cast<std::size_t>(r * hidden + h)] - wanted) < 1e-2);
      CHECK(std::abs(dx[static_cast<std::size_t>(r * hidden + h)] - wanted_dx) < 1e-1);
    }
  }

  std::vector<float> dgate(gate.size(), poison), dup(gate.size(), poison), ddown(gate.size(), poison);
  mo::expert_matrices<silu_mlp, float> const gradients{
      {{{dgate.data(), ffn * hidden, hidden}, {dup.data(), ffn * hidden, hidden}}}, {ddown.data(), ffn * hidden, ffn}};
  apply::backward_weights(ctx.engine(), rows(), x_rows, dy_rows, static_cast<float const*>(dz.data()),
                          static_cast<float const*>(scaled.data()), gradients, false);
  for (std::size_t i = ffn * hidden; i < 2 * ffn * hidden; ++i)
    REQUIRE((dgate[i] == 0 && dup[i] == 0 && ddown[i] == 0));
  double wanted = 0, wanted_down = 0;
  for (std::size_t r = 9; r < 14; ++r) {
    wanted += static_cast<double>(dz[r * 2 * ffn + ffn + 7]) * x(static_cast<std::int64_t>(r), 4);
    wanted_down += static_cast<double>(dy(static_cast<std::int64_t>(r), 4)) * scaled[r * ffn + 7];
  }
  CHECK(dup[2 * ffn * hidden + 7 * hidden + 4] == doctest::Approx(wanted).epsilon(1e-4));
  CHECK(ddown[2 * ffn * hidden + 4 * ffn + 7] == doctest::Approx(wanted_down).epsilon(1e-4));
}

TEST_CASE_FIXTURE(problem, "an expert has the same bits alone and among others, with and without saving z") {
  std::vector<float> z(14 * 2 * ffn), a(14 * ffn), all(14 * hidden), alone(9 * hidden), unsaved(14 * hidden);
  using apply = mo::apply_experts<silu_mlp>;
  mo::kernels::rows_of<float> const x_rows{x.data(), hidden, nullptr};
  apply::forward(ctx.engine(), rows(), x_rows, weights(), z.data(), a.data(), all.data());
  apply::forward(ctx.engine(), rows(), x_rows, weights(), static_cast<float*>(nullptr), a.data(), unsaved.data());
  mo::expert_rows const first{1, offsets.data(), hidden, ffn, offsets.back()};
  apply::forward(ctx.engine(), first, x_rows, weights(), z.data(), a.data(), alone.data());
  CHECK(all == unsaved);
  CHECK(std::equal(alone.begin(), alone.end(), all.begin()));
}

namespace {

/// H = 2, I = 3, two experts of which the first has no row, and two rows; every number is worked by hand.
template <class T> struct biased_example {
  using mlp = mo::mlp<mo::relu, mo::biased>;
  using S = mo::sum_t<T>;
  mo::host_engine engine{mo::host{.threads = 1}};
  std::vector<std::int64_t> offsets{0, 0, 2};
  std::vector<T> x{T(1.0f), T(2.0f), T(-1.0f), T(1.0f)}, dy{T(1.0f), T(-1.0f), T(2.0f), T(.5f)};
  std::vector<T> up, down, up_bias, down_bias;
  std::vector<S> row_weights{S(.5), S(2)};
  S one = 1;

  biased_example() {
    auto const after_others = [](std::vector<float> const& values) {  // the first expert's are never read
      std::vector<T> all(values.size(), T(poison));
      for (float const v : values) all.push_back(T(v));
      return all;
    };
    up = after_others({1, 0, 0, 1, 1, 1}), down = after_others({1, 0, 2, 0, 1, 1});
    up_bias = after_others({.5f, -1, -4}), down_bias = after_others({.25f, -2});
  }
  mo::expert_rows rows() const { return {2, offsets.data(), 2, 3, 2}; }
  mo::expert_operands<mlp, T> operands() {
    mo::expert_matrices<mlp, T> m;
    m.inputs[0] = {up.data(), 6, 2}, m.down = {down.data(), 6, 3};
    m.input_biases[0] = {up_bias.data(), 3, 1}, m.down_bias = {down_bias.data(), 2, 1};
    return {m};
  }
};

template <class T> std::vector<double> wide(std::vector<T> const& values) {
  std::vector<double> all;
  for (T const v : values) all.push_back(static_cast<double>(static_cast<mo::sum_t<T>>(v)));
  return all;
}

using doubles = std::vector<double>;

}  // namespace

TEST_CASE_TEMPLATE("biases, worked by hand: z, o, dw, and their gradients over the rows of an expert", T, float, double,
                   mo::bf16) {
  biased_example<T> e;
  using S = mo::sum_t<T>;
  using apply = mo::apply_experts<typename biased_example<T>::mlp>;
  auto const blank = [](std::size_t n) { return std::vector<T>(n, T(poison)); };
  auto z = blank(6), a = blank(6), o = blank(4), dz = blank(6), scaled = blank(6), dx = blank(4);
  mo::kernels::rows_of<T> const x_rows{e.x.data(), 2}, dy_rows{e.dy.data(), 2};
  apply::forward(e.engine, e.rows(), x_rows, e.operands(), z.data(), a.data(), o.data());
  CHECK(wide(z) == doubles{1.5, 1, -1, -.5, 0, -4});  // (1, 2, 3) and (-1, 1, 0), each with (.5, -1, -4)
  CHECK(wide(a) == doubles{1.5, 1, 0, 0, 0, 0});
  CHECK(wide(o) == doubles{1.75, -1, .25, -2});  // (1.5, 1) and (0, 0), each with (.25, -2)

  REQUIRE(mo::weight_parts<typename biased_example<T>::mlp, S>(3) == 2);
  std::vector<S> parts(4, S(poison));
  apply::backward_input(e.engine, e.rows(), dy_rows, e.operands(), static_cast<T const*>(z.data()),
                        e.row_weights.data(), dz.data(), scaled.data(), parts.data(), dx.data());
  // dA' = (1, -1, 1) and (2, .5, 4.5); dw = <dA', a> + <dy, b_down>
  CHECK(wide(parts) == doubles{.5, 2.25, 0, -.5});
  CHECK(wide(dz) == doubles{.5, -.5, 0, 0, 0, 0});
  CHECK(wide(dx) == doubles{.5, -.5, 0, 0});

  std::vector<S> gradients(2 * (6 + 6 + 3 + 2), S(poison));
  mo::expert_matrices<typename biased_example<T>::mlp, S> g;
  g.inputs[0] = {gradients.data(), 6, 2}, g.down = {gradients.data() + 12, 6, 3};
  g.input_biases[0] = {gradients.data() + 24, 3, 1}, g.down_bias = {gradients.data() + 30, 2, 1};
  for (bool const accumulate : {false, true}) {
    apply::backward_weights(e.engine, e.rows(), x_rows, dy_rows, static_cast<T const*>(dz.data()),
                            static_cast<T const*>(scaled.data()), g, accumulate, {e.row_weights.data(), &e.one});
    double const times = accumulate ? 2 : 1;
    doubles const biases(gradients.begin() + 24, gradients.end());
    CHECK(biases == doubles{0, 0, 0, .5 * times, -.5 * times, 0, 0, 0, 4.5 * times, .5 * times});
  }
}

TEST_CASE_TEMPLATE(
    "router weights on the activation: a and the bias of down are multiplied; backward has none of its own", T, float,
    double, mo::bf16) {
  biased_example<T> e;
  using S = mo::sum_t<T>;
  using apply = mo::apply_experts<typename biased_example<T>::mlp>;
  auto const blank = [](std::size_t n) { return std::vector<T>(n, T(poison)); };
  auto z = blank(6), a = blank(6), o = blank(4), dz = blank(6), scaled = blank(6), dx = blank(4);
  mo::kernels::rows_of<T> const x_rows{e.x.data(), 2}, dy_rows{e.dy.data(), 2};
  apply::forward(e.engine, e.rows(), x_rows, e.operands(), z.data(), a.data(), o.data(), e.row_weights.data());
  CHECK(wide(z) == doubles{1.5, 1, -1, -.5, 0, -4});
  CHECK(wide(a) == doubles{.75, .5, 0, 0, 0, 0});
  CHECK(wide(o) == doubles{.875, -.5, .5, -4});  // half of (1.75, -1), and twice (.25, -2)

  S const* const no_weights = nullptr;
  S* const no_parts = nullptr;
  apply::backward_input(e.engine, e.rows(), dy_rows, e.operands(), static_cast<T const*>(z.data()), no_weights,
                        dz.data(), scaled.data(), no_parts, dx.data());
  CHECK(wide(scaled) == doubles{1.5, 1, 0, 0, 0, 0});
  CHECK(wide(dz) == doubles{1, -1, 0, 0, 0, 0});
  CHECK(wide(dx) == doubles{1, -1, 0, 0});
  std::vector<S> down(4, S(poison)), rest(2 * (6 + 6 + 3), S(poison));
  mo::expert_matrices<typename biased_example<T>::mlp, S> g;
  g.inputs[0] = {rest.data(), 6, 2}, g.down = {rest.data() + 12, 6, 3}, g.input_biases[0] = {rest.data() + 24, 3, 1};
  g.down_bias = {down.data(), 2, 1};
  apply::backward_weights(e.engine, e.rows(), x_rows, dy_rows, static_cast<T const*>(dz.data()),
                          static_cast<T const*>(scaled.data()), g, false, {nullptr, &e.one});
  CHECK(wide(down) == doubles{0, 0, 3, -.5});
}
