// SPDX-License-Identifier: Apache-2.0
// What a policy may know of a token beside its logits.
//
//   index     the token's place in the call
//   logical   its place in the global batch, mo::batch{.first_row} + index: what random numbers are a function of
//   step      mo::batch{.step}
//   layer     mo::batch{.layer}
//   moment()  step and layer as one number, which streams of random numbers are told apart by
//   id        its token id of mo::batch{.ids}; −1 where none were given
//   experts   its expert ids of mo::batch{.experts}, one a slot; null where none were given
#pragma once

#include <moiety/core/config.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI {

namespace detail {
/// Layers are 2⁴⁰ steps apart.
MOIETY_HD constexpr std::int64_t moment_of(std::int64_t step, std::int64_t layer) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(step) + (static_cast<std::uint64_t>(layer) << 40));
}
}  // namespace detail

struct token_view {
  std::int64_t index = 0, logical = 0, step = 0;
  std::int32_t id = -1;
  std::int32_t const* experts = nullptr;
  std::int64_t layer = 0;

  MOIETY_HD std::int64_t moment() const { return detail::moment_of(step, layer); }
};

/// The tokens of a call, in memory of its back end.
struct token_table {
  std::int32_t const* ids = nullptr;      // [T], or null
  std::int32_t const* experts = nullptr;  // [T × slots], or null
  std::int64_t slots = 0, first_row = 0, step = 0, layer = 0;

  MOIETY_HD std::int64_t moment() const { return detail::moment_of(step, layer); }

  MOIETY_HD token_view operator[](std::int64_t t) const {
    return {t,    first_row + t, step, ids == nullptr ? -1 : ids[t], experts == nullptr ? nullptr : experts + t * slots,
            layer};
  }
};

}  // namespace moiety
