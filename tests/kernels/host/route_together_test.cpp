// SPDX-License-Identifier: Apache-2.0
// The host body; what it computes is tested in kernels/route_together_test.cpp.
#include <moiety/kernels/host/route_together.hpp>

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("scores are followed by aligned memory") {
  CHECK(mo::kernels::detail::score_bytes<float>(0, 5) == 0);
  CHECK(mo::kernels::detail::score_bytes<float>(1, 1) == mo::memory_alignment);
  CHECK(mo::kernels::detail::score_bytes<float>(3, 37) % mo::memory_alignment == 0);
  CHECK(mo::kernels::detail::score_bytes<double>(3, 37) >= 3 * 37 * 8);
  CHECK(mo::kernels::detail::score_bytes<float>(std::int64_t{1} << 31, 512) == std::int64_t{1} << 42);
}
