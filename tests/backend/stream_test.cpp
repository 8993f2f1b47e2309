// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/stream.hpp>

#include <moiety/core/numbers.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace mo = moiety;
using mo::stores;

TEST_CASE_TEMPLATE("rows of any length at any address are copied, and nothing beside them", T, mo::bf16, float,
                   double) {
  alignas(64) std::byte from[512], to[512];
  for (std::size_t i = 0; i < sizeof from; ++i) from[i] = static_cast<std::byte>(i * 7 + 1);
  for (stores const how : {stores::cached, stores::streamed})
    for (std::size_t offset = 0; offset < 70; offset += sizeof(T))
      for (std::size_t count = 0; count * sizeof(T) < 300; ++count) {
        std::memset(to, 0xee, sizeof to);
        mo::write_row(reinterpret_cast<T*>(to + 64 + offset), reinterpret_cast<T const*>(from + sizeof(T)),
                      static_cast<std::int64_t>(count), how);
        mo::finish_stores(how);
        std::vector<std::byte> expected(sizeof to, std::byte{0xee});
        std::memcpy(expected.data() + 64 + offset, from + sizeof(T), count * sizeof(T));
        CHECK(std::memcmp(to, expected.data(), sizeof to) == 0);
      }
}

TEST_CASE("what does not fit the last cache is streamed") {
  CHECK(mo::stores_for(0) == stores::cached);
  CHECK(mo::stores_for(mo::last_level_bytes) == stores::cached);
  CHECK(mo::stores_for(mo::last_level_bytes + 1) == stores::streamed);
}
