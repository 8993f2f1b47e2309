// SPDX-License-Identifier: Apache-2.0
// The kernels of the policies behind headers of their own: what resources.py reads the compiler's report of.
#include <moiety/cuda.cuh>
#include <moiety/experts/cublas.cuh>
#include <moiety/experts/tf32.cuh>
#include <moiety/kernels/cuda/radix_sort.cuh>

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

void use_all(mo::cuda_engine& engine) {
  mo::radix_sort::build<float>(engine, {}, {});
  mo::radix_sort::build<double>(engine, {}, {});
  multiply<mo::cublas_products, mo::gated_mlp<mo::silu>, mo::bf16>(engine, nullptr, nullptr);
  multiply<mo::cublas_products, mo::gated_mlp<mo::silu>, mo::fp16>(engine, nullptr, nullptr);
  multiply<mo::cublas_products, mo::gated_mlp<mo::silu>, float>(engine, nullptr, nullptr);
  multiply<mo::cublas_products, mo::mlp<mo::gelu>, double>(engine, nullptr, nullptr);
  multiply<mo::tf32_products, mo::gated_mlp<mo::silu>, float>(engine, nullptr, nullptr);
}
