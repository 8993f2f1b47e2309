// SPDX-License-Identifier: Apache-2.0
// What a policy may know of a token beside its logits.
//
//   index     the token's place in the call
//   logical   its place in the global batch, mo::batch{.first_row} + index: what random numbers are a function of
//   step      mo::batch{.step}
//   id        its token id of mo::batch{.ids}; −1 where none were given
//   experts   its expert ids of mo::batch{.experts}, one a slot; null where none were given
#pragma once

#include <moiety/core/config.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI {

struct token_view {
  std::int64_t index = 0, logical = 0, step = 0;
  std::int32_t id = -1;
  std::int32_t const* experts = nullptr;
};

/// The tokens of a call, in memory of its back end.
struct token_table {
  std::int32_t const* ids = nullptr;      // [T], or null
  std::int32_t const* experts = nullptr;  // [T × slots], or null
  std::int64_t slots = 0, first_row = 0, step = 0;

  MOIETY_HD token_view operator[](std::int64_t t) const {
    return {t, first_row + t, step, ids == nullptr ? -1 : ids[t], experts == nullptr ? nullptr : experts + t * slots};
  }
};

}  // namespace moiety
