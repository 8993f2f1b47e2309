// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/host/scratch.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mo = moiety;

TEST_CASE("pieces are apart, aligned and zero; what does not fit is refused") {
  alignas(64) std::byte memory[256];
  std::fill(std::begin(memory), std::end(memory), std::byte{0xff});
  mo::kernels::scratch_memory scratch(memory);
  auto const first = scratch.take<float>(3);
  auto const second = scratch.row<double>(8);
  CHECK(reinterpret_cast<std::byte*>(first.data()) == memory);
  CHECK(reinterpret_cast<std::byte*>(second.data()) == memory + 64);
  for (float const v : first) CHECK(v == 0);
  for (int i = 0; i < 8; ++i) CHECK(second[i] == 0);
  CHECK_THROWS_AS(scratch.take<float>(33), mo::config_error);
  CHECK(scratch.take<float>(32).size() == 32);
  CHECK(scratch.take<float>(0).empty());
}
