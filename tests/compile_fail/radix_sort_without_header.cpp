// SPDX-License-Identifier: Apache-2.0
// expect: this deployment names a policy with a header of its own: include <moiety/experts/fp8.hpp> for mo::fp8_products, or, compiled by nvcc, <moiety/kernels/cuda/radix_sort.cuh> for mo::radix_sort, <moiety/experts/cublas.cuh> for mo::cublas_products, <moiety/experts/tf32.cuh> for mo::tf32_products, <moiety/router/bf16x3.cuh> for mo::bf16x3_products.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::deployment<> {
#ifdef MOIETY_CORRECT
  using index_builder = mo::counting_sort;
#else
  using index_builder = mo::radix_sort;
#endif
};

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

int main() {
  mo::context<mistaken> ctx;
  mo::moe_layer<small, mistaken> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
}
