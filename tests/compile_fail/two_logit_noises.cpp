// SPDX-License-Identifier: Apache-2.0
// expect: mo::router takes at most one logit noise.
#include <moiety/moiety.hpp>

namespace mo = moiety;

int main() {
  mo::router<mo::softmax, mo::top_k<2>, mo::logit_noise,
#ifndef MOIETY_CORRECT
             mo::constant_logit_noise<>,
#endif
             mo::renormalised>
      router;
  static_cast<void>(router);
}
