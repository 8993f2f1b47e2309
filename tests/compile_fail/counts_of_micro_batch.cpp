// SPDX-License-Identifier: Apache-2.0
// expect: mo::load_balance takes counts of other micro-batches over the global batch alone.
#include <moiety/moiety.hpp>

namespace mo = moiety;

int main() {
#ifdef MOIETY_CORRECT
  mo::load_balance<mo::over::global_batch, mo::counts::prefix> const loss{.coefficient = 1e-2f};
#else
  mo::load_balance<mo::over::micro_batch, mo::counts::prefix> const loss{.coefficient = 1e-2f};
#endif
  return loss.coefficient > 0 ? 0 : 1;
}
