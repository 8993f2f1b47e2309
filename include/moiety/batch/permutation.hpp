// SPDX-License-Identifier: Apache-2.0
// The rows that experts work on: one for every slot that has an expert, grouped by expert, in token order inside.
//
//   offsets()[e] … offsets()[e + 1]   the rows of expert e
//   source_token(row)                 the token that a row belongs to
//   row_of(token, slot)               the row of a slot; −1 for a slot without an expert, or of a token not dispatched
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>

#include <cstdint>
#include <limits>
#include <memory_resource>

namespace moiety::inline MOIETY_ABI {

namespace detail {
/// Throws data_error where the slots of a call are more than the rows of a permutation can be.
inline void check_rows(std::int64_t tokens, std::int64_t slots) {
  require<data_error>(tokens <= std::numeric_limits<std::int32_t>::max() / slots, tokens, " tokens of ", slots,
                      " slots each do not fit a row index of 32 bits.");
}
}  // namespace detail

/// Refers to the memory of a permutation.
struct permutation_view {
  std::int64_t tokens = 0;
  std::int64_t experts = 0;
  std::int64_t slots = 0;                 // k
  std::int64_t* starts = nullptr;         // [experts + 1]
  std::int32_t* source_tokens = nullptr;  // [tokens · k]
  std::int32_t* positions = nullptr;      // [tokens × k]

  MOIETY_HD std::int64_t const* offsets() const { return starts; }
  MOIETY_HD std::int64_t rows() const { return starts[experts]; }
  MOIETY_HD std::int32_t source_token(std::int64_t row) const { return source_tokens[row]; }
  MOIETY_HD std::int32_t row_of(std::int64_t token, std::int64_t slot) const { return positions[token * slots + slot]; }
};

/// A permutation with memory of its own.
class permutation : public permutation_view {
 public:
  permutation(std::int64_t token_count, std::int64_t expert_count, std::int64_t slot_count,
              std::pmr::memory_resource& memory)
      : permutation_view{token_count, expert_count, slot_count},
        starts_(1, expert_count + 1, memory),
        source_tokens_(token_count, slot_count, memory),
        positions_(token_count, slot_count, memory) {
    starts = starts_.data();
    source_tokens = source_tokens_.data();
    positions = positions_.data();
  }

  permutation_view view() const { return *this; }

 private:
  matrix<std::int64_t> starts_;
  matrix<std::int32_t> source_tokens_, positions_;
};

}  // namespace moiety
