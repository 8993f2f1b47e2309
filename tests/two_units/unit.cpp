// SPDX-License-Identifier: Apache-2.0
// One source for both instruction sets; MOIETY_UNIT names the function.
#include "everything.hpp"

std::vector<float> MOIETY_UNIT() { return step(); }
