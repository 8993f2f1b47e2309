// SPDX-License-Identifier: Apache-2.0
#include <moiety/core/config.hpp>

#include <doctest/doctest.h>

#include <string>

#define MOIETY_TEXT_(x) #x
#define MOIETY_TEXT(x) MOIETY_TEXT_(x)

TEST_CASE("the inline namespace names version and instruction set") {
  std::string const abi = MOIETY_TEXT(MOIETY_ABI);
  CHECK(abi.starts_with("v0_1_0_"));
#if defined(__AVX512F__)
  CHECK(abi.find("avx512") != std::string::npos);
  CHECK(moiety::vector_bytes == 64);
#elif !defined(__AVX__)
  CHECK(abi == "v0_1_0_baseline");
  CHECK(moiety::vector_bytes == 16);
#endif
}
