// SPDX-License-Identifier: Apache-2.0
// expect: a context of ranks that are threads or processes is made by mo::run.
#include <moiety/moiety.hpp>

namespace mo = moiety;

#ifdef MOIETY_CORRECT
inline constexpr mo::layout ranks{};
#else
inline constexpr mo::layout ranks{.data = 2};
#endif

int main() { mo::context<mo::deployment<ranks>> ctx; }
