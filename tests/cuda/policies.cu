// SPDX-License-Identifier: Apache-2.0
// The kernels of the policies behind headers of their own: what resources.py reads the compiler's report of.
#include <moiety/cuda.cuh>
#include <moiety/experts/cublas.cuh>
#include <moiety/experts/fp8.cuh>
#include <moiety/experts/tf32.cuh>
#include <moiety/kernels/cuda/portable/e4m3_gemm.cuh>
#include <moiety/kernels/cuda/radix_sort.cuh>
#include <moiety/router/bf16x3.cuh>

#include <array>
#include <cstddef>
#include <cstdint>

namespace mo = moiety;

template <class Products, class Mlp, class T> void multiply(mo::cuda_engine& engine, mo::sum_t<T>* sums, T* rows) {
  using S = mo::sum_t<T>;
  using apply = typename Products::template apply<Mlp, mo::cuda>;
  mo::expert_operands<Mlp, T> const weights{};
  mo::expert_rows const of{};
  mo::kernels::rows_of<T> const x{};
  apply::forward(engine, of, x, weights, rows, rows, rows);
  apply::backward_input(engine, of, x, weights, rows, sums, rows, rows, sums, rows);
  apply::backward_weights(engine, of, x, x, rows, rows, mo::expert_matrices<Mlp, S>{}, false);
}

/// Sums as they are, of matrices side by side in a row.
struct store_sums {
  float* to;
  std::int64_t n;

  template <std::size_t M, std::size_t N>
  __device__ void operator()(std::int64_t, std::int64_t row, std::int64_t col, int count,
                             float const (&sums)[M][N]) const {
    MOIETY_REGISTERS
    for (std::size_t m = 0; m < M; ++m)
      mo::kernels::gpu::store_columns(
          to + (row * static_cast<std::int64_t>(M) + static_cast<std::int64_t>(m)) * n + col, count, sums[m]);
  }
};

template <std::size_t M> void multiply_e4m3(mo::cuda_engine& engine) {
  using matrix = mo::kernels::grouped_matrix<mo::e4m3 const>;
  mo::kernels::rows_of<mo::e4m3> const rows;
  std::array<matrix, M> const matrices{};
  mo::kernels::gpu::block_scales<static_cast<int>(M)> const scales;
  mo::kernels::grouped_gemm_nt<float>(engine, 1, nullptr, 1, rows, matrices, 1, 1, store_sums{});
  mo::kernels::grouped_gemm_nt<float>(engine, 1, nullptr, 1, rows, matrices, scales, 1, 1, store_sums{});
}

/// A call of experts in 8 bits, forward and its input gradient.
template <class Products> void multiply_fp8(mo::cuda_engine& engine, mo::bf16* rows, float* sums) {
  using mlp = mo::gated_mlp<mo::silu>;
  using layout = typename Products::template weight_layout<mo::cuda>;
  using apply = typename Products::template apply<mlp, mo::cuda>;
  mo::expert_copies<mlp, mo::bf16, layout> const copies({1, 1, 1}, engine.memory());
  copies.pack(engine, {});
  mo::expert_operands<mlp, mo::bf16, layout> const weights{{}, &copies};
  mo::expert_rows const of{1, nullptr, 1, 1, 1};
  mo::kernels::rows_of<mo::bf16> const x{rows, 1};
  apply::forward(engine, of, x, weights, rows, rows, rows);
  apply::backward_input(engine, of, x, weights, static_cast<mo::bf16 const*>(rows), static_cast<float const*>(sums),
                        rows, rows, sums, rows);
}

/// A router's products in bf16x3, of one pair of matrices and of two.
void multiply_router(mo::cuda_engine& engine, mo::bf16* rows, float* sums) {
  mo::kernels::bf16x3_engine const by(engine, sums);
  mo::matrix_view<mo::bf16 const> const x{rows, 1, 1};
  mo::matrix_view<float const> const floats{sums, 1, 1};
  mo::matrix_view<float> const out{sums, 1, 1};
  mo::kernels::router_logits<mo::bf16>(by, x, floats, out);
  mo::kernels::router_logits<mo::bf16>(by, x, floats, out, sums);
  mo::kernels::router_input_gradient<float>(by, floats, floats, sums);
  mo::kernels::router_input_gradient<float>(by, std::array{floats, floats}, std::array{floats, floats}, sums);
  mo::kernels::router_weight_gradient<mo::bf16>(by, floats, x, nullptr, nullptr, out, false);
}

void use_all(mo::cuda_engine& engine) {
  multiply_router(engine, nullptr, nullptr);
  mo::radix_sort::build<float>(engine, {}, {});
  mo::radix_sort::build<double>(engine, {}, {});
  multiply<mo::cublas_products, mo::gated_mlp<mo::silu>, mo::bf16>(engine, nullptr, nullptr);
  multiply<mo::cublas_products, mo::gated_mlp<mo::silu>, mo::fp16>(engine, nullptr, nullptr);
  multiply<mo::cublas_products, mo::gated_mlp<mo::silu>, float>(engine, nullptr, nullptr);
  multiply<mo::cublas_products, mo::mlp<mo::gelu>, double>(engine, nullptr, nullptr);
  multiply<mo::tf32_products, mo::gated_mlp<mo::silu>, float>(engine, nullptr, nullptr);
  multiply_e4m3<1>(engine), multiply_e4m3<2>(engine);
  multiply_fp8<mo::fp8_products>(engine, nullptr, nullptr);
  multiply_fp8<mo::fp8_block_products>(engine, nullptr, nullptr);
}
