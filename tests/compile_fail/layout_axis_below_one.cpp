// SPDX-License-Identifier: Apache-2.0
// expect: every axis of a layout needs at least one rank.
#include <moiety/mesh/layout.hpp>

namespace mo = moiety;

#ifdef MOIETY_CORRECT
inline constexpr mo::layout ranks{.data = 2, .tensor = 1};
#else
inline constexpr mo::layout ranks{.data = 2, .tensor = 0};
#endif

static_assert(mo::check_layout<ranks>());

int main() {}
