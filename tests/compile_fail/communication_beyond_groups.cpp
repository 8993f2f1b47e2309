// SPDX-License-Identifier: Apache-2.0
// expect: mo::communication_balance<Groups, Reached> needs 1 <= Reached <= Groups.
#include <moiety/moiety.hpp>

namespace mo = moiety;

int main() {
#ifdef MOIETY_CORRECT
  mo::communication_balance<4, 4> const loss{.coefficient = 1e-2f};
#else
  mo::communication_balance<4, 5> const loss{.coefficient = 1e-2f};
#endif
  return loss.coefficient > 0 ? 0 : 1;
}
