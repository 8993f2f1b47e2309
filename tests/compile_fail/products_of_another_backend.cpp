// SPDX-License-Identifier: Apache-2.0
// expect: mo::radix_sort, mo::cublas_products, mo::tf32_products and mo::bf16x3_products need 'using backend = mo::cuda' in the deployment; mo::fp8_products on mo::cuda need <moiety/experts/fp8.cuh>.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mine : mo::grouped_products {
  template <class Backend> static constexpr bool runs_on = false;
};

struct mistaken : mo::deployment<> {
#ifdef MOIETY_CORRECT
  using expert_products = mo::grouped_products;
#else
  using expert_products = mine;
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
