// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/e4m3_copies.hpp>

#include <moiety/backend/host.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace mo = moiety;

namespace {

constexpr std::int64_t experts = 3, hidden = 20, ffn = 9;
constexpr mo::expert_sizes sizes{experts, hidden, ffn};

using mo::kernels::block_scaled;
using mo::kernels::row_scaled;

/// Element (c, i) of a quantised matrix of n outputs.
template <class Operand>
float value(Operand const& of, std::int64_t e, std::int64_t n, std::int64_t columns, std::int64_t c, std::int64_t i) {
  return static_cast<float>(of.values[(e * n + c) * columns + i]);
}

/// Small whole numbers, which e4m3 holds exactly: copies must be the matrices themselves.
template <class Scaling, class Mlp, bool Transposed, bool DownTransposed, std::size_t Matrices> void check() {
  mo::host_engine engine{mo::host{.threads = 2}};
  std::mt19937 words(std::random_device{}());
  auto const wholes = [&](std::int64_t count) {
    std::vector<float> all(static_cast<std::size_t>(count));
    for (float& v : all) v = static_cast<float>(static_cast<int>(words() % 17) - 8);
    return all;
  };
  constexpr std::int64_t width = mo::input_products<Mlp>::width(ffn), size = width * hidden;
  std::vector<std::vector<float>> inputs;
  mo::expert_matrices<Mlp, float> from;
  for (std::size_t m = 0; m < Matrices; ++m) {
    inputs.push_back(wholes(experts * size));
    from.inputs[m] = {inputs[m].data(), size, Transposed ? width : hidden};
  }
  auto down = wholes(experts * hidden * ffn);
  from.down = {down.data(), hidden * ffn, DownTransposed ? hidden : ffn};
  mo::expert_copies<Mlp, float, mo::e4m3_copies<mo::host, Scaling, true>> const copies(sizes, engine.memory());
  copies.pack(engine, from);
  std::int64_t const k = width, all = static_cast<std::int64_t>(Matrices) * k;
  for (std::int64_t e = 0; e < experts; ++e)
    for (std::int64_t h = 0; h < hidden; ++h) {
      for (std::size_t m = 0; m < Matrices; ++m)
        for (std::int64_t u = 0; u < width; ++u) {
          float const w = inputs[m][static_cast<std::size_t>(e * size + (Transposed ? h * width + u : u * hidden + h))];
          REQUIRE(value(copies.forward_inputs()[m], e, width, hidden, u, h) == w);
          REQUIRE(value(copies.backward_inputs()[0], e, hidden, all, h, static_cast<std::int64_t>(m) * k + u) == w);
        }
      for (std::int64_t i = 0; i < ffn; ++i) {
        float const w =
            down[static_cast<std::size_t>(e * hidden * ffn + (DownTransposed ? i * hidden + h : h * ffn + i))];
        REQUIRE(value(copies.forward_down()[0], e, hidden, ffn, h, i) == w);
        REQUIRE(value(copies.backward_down()[0], e, ffn, hidden, i, h) == w);
      }
    }
}

}  // namespace

TEST_CASE_TEMPLATE("copies in e4m3 hold each matrix for both directions, however it is stored", Scaling, row_scaled,
                   block_scaled) {
  check<Scaling, mo::gated_mlp<mo::silu>, false, false, 2>();
  check<Scaling, mo::gated_mlp<mo::silu, mo::interleaved>, false, false, 1>();
  check<Scaling, mo::gated_mlp<mo::silu, mo::in_by_out>, true, true, 2>();
  check<Scaling, mo::mlp<mo::relu, mo::down_in_by_out>, false, true, 1>();
}

TEST_CASE("copies take what an engine holds of each matrix") {
  using mlp = mo::gated_mlp<mo::silu>;
  constexpr mo::expert_sizes large{128, 2048, 768};
  constexpr std::int64_t matrix = 128 * 2048 * 768;
  CHECK(mo::expert_copies<mlp, float, mo::e4m3_copies<mo::host, row_scaled, false>>::bytes(large) == 2 * 3 * matrix);
  CHECK(mo::expert_copies<mlp, float, mo::e4m3_copies<mo::host, row_scaled, true>>::bytes(large) == 2 * 6 * matrix);
  CHECK(mo::expert_copies<mlp, float, mo::e4m3_copies<mo::host, row_scaled, true>>::bytes({0, 2048, 768}) == 0);
}
