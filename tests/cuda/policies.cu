// SPDX-License-Identifier: Apache-2.0
// The kernels of the policies behind headers of their own: what resources.py reads the compiler's report of.
#include <moiety/cuda.cuh>
#include <moiety/experts/cublas.cuh>
#include <moiety/kernels/cuda/radix_sort.cuh>

namespace mo = moiety;

template <class Mlp, class T> void multiply(mo::cuda_engine& engine, mo::sum_t<T>* sums, T* rows) {
  using S = mo::sum_t<T>;
  using apply = mo::cublas_products::apply<Mlp, mo::cuda>;
  mo::expert_operands<Mlp, T> const weights{};
  apply::template forward<T>(engine, {}, {}, weights, rows, rows, rows);
  apply::template backward_input<T>(engine, {}, {}, weights, rows, sums, rows, rows, sums, rows);
  apply::template backward_weights<T>(engine, {}, {}, {}, rows, rows, mo::expert_matrices<Mlp, S>{}, false);
}

void use_all(mo::cuda_engine& engine) {
  mo::radix_sort::build<float>(engine, {}, {});
  mo::radix_sort::build<double>(engine, {}, {});
  multiply<mo::gated_mlp<mo::silu>, mo::bf16>(engine, nullptr, nullptr);
  multiply<mo::gated_mlp<mo::silu>, mo::fp16>(engine, nullptr, nullptr);
  multiply<mo::gated_mlp<mo::silu>, float>(engine, nullptr, nullptr);
  multiply<mo::mlp<mo::gelu>, double>(engine, nullptr, nullptr);
}
