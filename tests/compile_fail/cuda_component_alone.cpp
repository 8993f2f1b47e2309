// SPDX-License-Identifier: Apache-2.0
// expect: a component by itself runs on mo::host; on mo::cuda it runs inside a layer.
#include <moiety/cuda.cuh>

namespace mo = moiety;

struct on_cuda : mo::deployment<> {
#ifndef MOIETY_CORRECT
  using backend = mo::cuda;
#endif
};

int main() {
  mo::context<on_cuda> ctx;
  auto const logits = ctx.matrix(3, 16);
  mo::router<mo::softmax, mo::top_k<2>> const router;
  auto const routes = router.forward(ctx, logits);
}
