// SPDX-License-Identifier: Apache-2.0
// expect: the order of a layout must name tensor, context and data, each once.
#include <moiety/mesh/layout.hpp>

namespace mo = moiety;

#ifdef MOIETY_CORRECT
inline constexpr mo::layout ranks{.data = 2, .order = {mo::axis::data, mo::axis::tensor, mo::axis::context}};
#else
inline constexpr mo::layout ranks{.data = 2, .order = {mo::axis::data, mo::axis::tensor}};
#endif

static_assert(mo::check_layout<ranks>());

int main() {}
