// SPDX-License-Identifier: Apache-2.0
// expect: mo::square_error reads rows of mo::host: of mo::cuda it is given a copy, and a context of the host.
#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

namespace mo = moiety;

struct elsewhere {
#ifndef MOIETY_CORRECT
  using backend = mo::cuda;
#else
  using backend = mo::host;
#endif
};

mo::task_loss loss(elsewhere& ctx, mo::matrix_view<float> y, mo::matrix_view<float> dy) {
  return mo::square_error(ctx, y, dy);
}

int main() { static_cast<void>(loss); }
