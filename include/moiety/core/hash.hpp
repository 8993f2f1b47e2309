// SPDX-License-Identifier: Apache-2.0
// FNV-1a of 64 bits (Fowler, Noll and Vo): names and sizes as one number, the same on every machine. Not against an adversary.
#pragma once

#include <moiety/core/config.hpp>

#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

class fnv_1a {
 public:
  constexpr fnv_1a() = default;
  constexpr explicit fnv_1a(std::string_view text) { add(text); }

  constexpr void add(std::string_view text) {
    for (char const c : text) add_byte(static_cast<unsigned char>(c));
  }
  /// Eight bytes, the lowest first.
  constexpr void add(std::uint64_t number) {
    for (int byte = 0; byte < 8; ++byte) add_byte(static_cast<unsigned char>(number >> (8 * byte)));
  }
  constexpr std::uint64_t value() const { return value_; }

 private:
  constexpr void add_byte(unsigned char byte) { value_ = (value_ ^ byte) * 0x100000001b3u; }

  std::uint64_t value_ = 0xcbf29ce484222325u;
};

}  // namespace moiety
