// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/matrices.hpp>

#include <moiety/backend/host.hpp>
#include <moiety/experts/mlp.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory_resource>
#include <string_view>
#include <vector>

namespace mo = moiety;
using swiglu = mo::gated_mlp<mo::silu>;
using int64 = std::int64_t;

namespace {

/// A layout of ours: only what the input gradient reads.
struct packed_backward {
  static constexpr std::string_view name = "packed_backward";
  static constexpr bool packs_forward = false, packs_backward = true;
};

constexpr mo::expert_sizes sizes{.experts = 2, .hidden = 35, .ffn = 19};

struct memory {
  std::vector<float> gate = numbers(1), up = numbers(2), down = numbers(3);

  static std::vector<float> numbers(int seed) {
    std::vector<float> values(static_cast<std::size_t>(sizes.experts * sizes.hidden * sizes.ffn));
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>((i * 7 + 1) % 97) + static_cast<float>(seed);
    return values;
  }
  mo::expert_matrices<swiglu, float> matrices() {
    int64 const size = sizes.hidden * sizes.ffn;
    return {{{{gate.data(), size, sizes.hidden}, {up.data(), size, sizes.hidden}}}, {down.data(), size, sizes.ffn}};
  }
};

/// Row 1 of each group times its matrix: which operand a product reads shows in its result.
std::vector<float> forward(mo::host_engine& on, auto const& w, int64 n, int64 k) {
  std::vector<float> x(static_cast<std::size_t>(sizes.experts * k)), y(static_cast<std::size_t>(sizes.experts * n));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 5);
  std::array<int64, 3> const offsets{0, 1, 2};
  mo::kernels::grouped_gemm_nt<float>(on, 2, offsets.data(), mo::kernels::rows_of<float>{x.data(), k}, std::array{w}, n,
                                      k, [&](int64, int64 row, int64 col, int64 cols, auto const& sums) {
                                        std::copy_n(sums[0], cols, y.data() + row * n + col);
                                      });
  return y;
}
std::vector<float> backward(mo::host_engine& on, auto const& w, int64 n, int64 k) {
  std::vector<float> x(static_cast<std::size_t>(sizes.experts * k)), y(static_cast<std::size_t>(sizes.experts * n));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 5);
  std::array<int64, 3> const offsets{0, 1, 2};
  mo::kernels::grouped_gemm_nn<float>(on, 2, offsets.data(), std::array{mo::kernels::rows_of<float>{x.data(), k}},
                                      std::array{w}, n, k,
                                      [&](int64, int64 row, int64 col, int64 cols, float const* sums) {
                                        std::copy_n(sums, cols, y.data() + row * n + col);
                                      });
  return y;
}

}  // namespace

TEST_CASE("copies of every matrix stand for it in both directions") {
  mo::host_engine on(mo::host{.threads = 1});
  memory of;
  mo::expert_copies<swiglu, float, mo::packed> copies(sizes, on.memory());
  copies.pack(on, of.matrices());
  mo::expert_operands<swiglu, float> const lying{of.matrices()};
  mo::expert_operands<swiglu, float, mo::packed> const packed{of.matrices(), &copies};
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(forward(on, packed.forward_inputs()[i], sizes.ffn, sizes.hidden) ==
          forward(on, lying.forward_inputs()[i], sizes.ffn, sizes.hidden));
    CHECK(backward(on, packed.backward_inputs()[i], sizes.hidden, sizes.ffn) ==
          backward(on, lying.backward_inputs()[i], sizes.hidden, sizes.ffn));
  }
  CHECK(forward(on, packed.forward_inputs()[0], sizes.ffn, sizes.hidden) !=
        forward(on, packed.forward_inputs()[1], sizes.ffn, sizes.hidden));
  CHECK(forward(on, packed.forward_down()[0], sizes.hidden, sizes.ffn) ==
        forward(on, lying.forward_down()[0], sizes.hidden, sizes.ffn));
  CHECK(backward(on, packed.backward_down()[0], sizes.ffn, sizes.hidden) ==
        backward(on, lying.backward_down()[0], sizes.ffn, sizes.hidden));
}

TEST_CASE("copies for one direction alone lie inside their memory") {
  using kept = mo::expert_copies<swiglu, float, packed_backward>;
  static_assert(kept::bytes(sizes) + mo::expert_copies<swiglu, float, mo::packed_forward>::bytes(sizes) ==
                mo::expert_copies<swiglu, float, mo::packed>::bytes(sizes));
  mo::host_engine on(mo::host{.threads = 1});
  memory of;
  kept copies(sizes, *std::pmr::new_delete_resource());  // the sanitizer sees writes beyond
  copies.pack(on, of.matrices());
  mo::expert_operands<swiglu, float> const lying{of.matrices()};
  mo::expert_operands<swiglu, float, packed_backward> const packed{of.matrices(), &copies};
  for (std::size_t i = 0; i < 2; ++i)
    CHECK(backward(on, packed.backward_inputs()[i], sizes.hidden, sizes.ffn) ==
          backward(on, lying.backward_inputs()[i], sizes.hidden, sizes.ffn));
  CHECK(backward(on, packed.backward_down()[0], sizes.ffn, sizes.hidden) ==
        backward(on, lying.backward_down()[0], sizes.ffn, sizes.hidden));
}

TEST_CASE_TEMPLATE("copies of matrices that lie otherwise stand for them too", Mlp,
                   mo::gated_mlp<mo::silu, mo::in_by_out>, mo::gated_mlp<mo::silu, mo::interleaved>,
                   mo::gated_mlp<mo::silu, mo::interleaved, mo::in_by_out>) {
  using products = mo::input_products<Mlp>;
  constexpr int64 width = products::width(sizes.ffn);
  static_assert(mo::expert_copies<Mlp, float, mo::packed>::bytes(sizes) > 0);
  mo::host_engine on(mo::host{.threads = 1});
  std::vector<float> const values = memory::numbers(4), more = memory::numbers(5);
  std::vector<float> both(values);
  both.insert(both.end(), more.begin(), more.end());
  std::vector<float> down(values);
  mo::expert_matrices<Mlp, float> matrices;
  for (auto& input : matrices.inputs)
    input = {both.data(), width * sizes.hidden, products::transposed ? width : sizes.hidden};
  matrices.down = {down.data(), sizes.ffn * sizes.hidden, products::transposed ? sizes.hidden : sizes.ffn};
  mo::expert_copies<Mlp, float, mo::packed> copies(sizes, on.memory());
  copies.pack(on, matrices);
  mo::expert_operands<Mlp, float> const lying{matrices};
  mo::expert_operands<Mlp, float, mo::packed> const packed{matrices, &copies};
  CHECK(forward(on, packed.forward_inputs()[0], width, sizes.hidden) ==
        forward(on, lying.forward_inputs()[0], width, sizes.hidden));
  CHECK(backward(on, packed.backward_inputs()[0], sizes.hidden, width) ==
        backward(on, lying.backward_inputs()[0], sizes.hidden, width));
  CHECK(forward(on, packed.forward_down()[0], sizes.hidden, sizes.ffn) ==
        forward(on, lying.forward_down()[0], sizes.hidden, sizes.ffn));
  CHECK(backward(on, packed.backward_down()[0], sizes.ffn, sizes.hidden) ==
        backward(on, lying.backward_down()[0], sizes.ffn, sizes.hidden));
}

TEST_CASE("copies take the memory that they say, and none in the layout row_major") {
  using none = mo::expert_copies<swiglu, float, mo::row_major>;
  using forth = mo::expert_copies<swiglu, float, mo::packed_forward>;
  using both = mo::expert_copies<swiglu, float, mo::packed>;
  static_assert(none::bytes(sizes) == 0);
  static_assert(both::bytes(sizes) > forth::bytes(sizes));
  constexpr mo::expert_sizes even{.experts = 4, .hidden = 256, .ffn = 512};
  static_assert(forth::bytes(even) == 4 * 3 * 256 * 512 * 4);
  static_assert(mo::expert_copies<swiglu, mo::bf16, mo::packed>::bytes(even) == 2 * 4 * 3 * 256 * 512 * 2);
}
