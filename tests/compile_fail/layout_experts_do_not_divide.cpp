// SPDX-License-Identifier: Apache-2.0
// expect: the expert axes of a layout need expert * expert_tensor to divide data * context * tensor.
#include <moiety/mesh/layout.hpp>

namespace mo = moiety;

#ifdef MOIETY_CORRECT
inline constexpr mo::layout ranks{.data = 2, .tensor = 3, .expert = 2, .expert_tensor = 3};
#else
inline constexpr mo::layout ranks{.data = 2, .tensor = 3, .expert = 4};
#endif

static_assert(mo::check_layout<ranks>());

int main() {}
