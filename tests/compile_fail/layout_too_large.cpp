// SPDX-License-Identifier: Apache-2.0
// expect: a layout must have fewer than 2^31 - 1 ranks.
#include <moiety/mesh/layout.hpp>

namespace mo = moiety;

#ifdef MOIETY_CORRECT
inline constexpr mo::layout ranks{.data = 1 << 15, .pipeline = 1 << 15};
#else
inline constexpr mo::layout ranks{.data = 1 << 16, .pipeline = 1 << 16};
#endif

static_assert(mo::check_layout<ranks>());

int main() {}
