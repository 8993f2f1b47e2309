// SPDX-License-Identifier: Apache-2.0
// The K largest of n values, in descending order, without sorting and without K passes.
//
//   find_largest<K>(values, n, f)   f(rank, index) for the K largest; of equal values the lower index comes first, NaN is
//                                   left out. False, and no call, where it gives up.
//
// The values stand in 16 columns. The K-th largest column maximum is a bound that at least K values reach, and few others
// do: about 10 for K = 8. Each of these candidates is placed by the number of candidates that are larger. It gives up if
// K is above 16, if fewer than K values are left, if two candidates are equal, or if very many reach the bound.
#pragma once

#include <moiety/batch/lanes.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>

#include <concepts>
#include <cstdint>
#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace moiety::inline MOIETY_ABI::detail {

/// Values of at least some bound, in ascending order of their indices.
template <std::floating_point S, int Columns> class candidates {
 public:
  static constexpr int columns = Columns, room = 64;

  MOIETY_HD candidates(S const* values, int size, int k) {
    S const least = size > Columns ? bound(values, size, k) : -infinity<S>;
    int first = 0, count = 0;
    for (; first + block <= size && count <= room; first += block) count = append_block(values, first, least, count);
    for (; first < size && count <= room; ++first)
      if (values[first] >= least) count = append(values, first, count);
    MOIETY_LANES
    for (int l = 0; l < Columns; ++l) values_[count + l] = -infinity<S>;  // behind all others: blocks are full
    MOIETY_LANES
    for (int l = 0; l < Columns; ++l) indices_[count + l] = 0;
    count_ = count;
  }

  MOIETY_HD int count() const { return count_; }

  /// index[r] becomes the index of the value that r others exceed; false if two are equal.
  MOIETY_HD bool place(array_of<int, room + Columns>& index) const {
    int total = 0;
    for (int first = 0; first < count_; first += Columns) {
      array_of<integer, Columns> larger = {};
      for (int j = 0; j < count_; j += Columns) count_larger(values_ + j, values_ + first, larger);
      MOIETY_LANES
      for (int l = 0; l < Columns; ++l) index[larger[l]] = indices_[first + l];
      total += static_cast<int>(halved(larger, [](integer a, integer b) { return a + b; }));
    }
    int const filled = (count_ + Columns - 1) / Columns * Columns;
    return total == count_ * (count_ - 1) / 2 + (filled - count_) * count_;  // 0 … count − 1, and count for the rest
  }

 private:
  using integer = std::conditional_t<sizeof(S) == 4, std::int32_t, std::int64_t>;  // as wide as S: one vector each
  static constexpr int block = 32;

  /// larger[l] grows by the number of `others` above value[l].
  MOIETY_HD static void count_larger(S const* others, S const* value, array_of<integer, Columns>& larger) {
    MOIETY_UNROLL(16)
    for (int j = 0; j < Columns; ++j) {
      MOIETY_LANES
      for (int l = 0; l < Columns; ++l) larger[l] += others[j] > value[l] ? 1 : 0;
    }
  }

  /// The k-th largest maximum of a column.
  MOIETY_HD static S bound(S const* values, int size, int k) {
    array_of<S, Columns> top;
    MOIETY_LANES
    for (int l = 0; l < Columns; ++l) top[l] = -infinity<S>;
    int const whole = size / Columns * Columns;
    for (int i = 0; i < whole; i += Columns) {
      MOIETY_LANES
      for (int l = 0; l < Columns; ++l) top[l] = values[i + l] > top[l] ? values[i + l] : top[l];
    }
    for (int l = 0; l < size - whole; ++l) top[l] = values[whole + l] > top[l] ? values[whole + l] : top[l];
    array_of<integer, Columns> larger = {};
    count_larger(top, top, larger);
    array_of<S, Columns> kept;
    MOIETY_LANES
    for (int l = 0; l < Columns; ++l) kept[l] = larger[l] < k ? top[l] : infinity<S>;
    return halved(kept, [](S a, S b) { return b < a ? b : a; });
  }

  MOIETY_HD int append_block(S const* values, int first, S least, int count) {
#if defined(__AVX512F__) && !defined(__CUDA_ARCH__)
    if constexpr (sizeof(S) == 4) return append_compressed(values, first, least, count);
#endif
    std::uint32_t bit[block];
    MOIETY_LANES
    for (int l = 0; l < block; ++l) bit[l] = values[first + l] >= least ? std::uint32_t{1} << l : 0;
    std::uint32_t bits = halved(bit, [](std::uint32_t a, std::uint32_t b) { return a | b; });
    for (; bits != 0; bits &= bits - 1) count = append(values, first + lowest(bits), count);
    return count;
  }

#if defined(__AVX512F__) && !defined(__CUDA_ARCH__)
  int append_compressed(float const* values, int first, float least, int count) {
    __m512i const lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int i = first; i < first + block; i += 16) {
      __m512 const value = _mm512_loadu_ps(values + i);
      __mmask16 const reached = _mm512_cmp_ps_mask(value, _mm512_set1_ps(least), _CMP_GE_OQ);
      __m512i const index = _mm512_add_epi32(lane, _mm512_set1_epi32(i));
      _mm512_storeu_ps(values_ + count, _mm512_maskz_compress_ps(reached, value));
      _mm512_storeu_si512(indices_ + count, _mm512_maskz_compress_epi32(reached, index));
      count += __builtin_popcount(reached);
    }
    return count;
  }
#endif

  /// The index of the lowest bit that is set: the exponent of its value.
  MOIETY_HD static int lowest(std::uint32_t bits) {
    return static_cast<int>(bit_cast<std::uint32_t>(static_cast<float>(bits & (0u - bits))) >> 23) - 127;
  }

  MOIETY_HD int append(S const* values, int i, int count) {
    values_[count] = values[i];
    indices_[count] = i;
    return count + 1;
  }

  int count_ = 0;
  array_of<S, room + block + Columns> values_;
  array_of<int, room + block + Columns> indices_;
};

/// Calls f(rank, index) for the K largest; false, and no call, where it gives up.
template <int K, std::floating_point S, class F> MOIETY_HD bool find_largest(S const* values, int size, F const& f) {
  if constexpr (K > 16) {
    return false;
  } else {
    using found_type = candidates<S, (K > 8 ? 32 : 16)>;
    found_type const found(values, size, K);
    if (found.count() < K || found.count() > found_type::room) return false;
    array_of<int, found_type::room + found_type::columns> index;
    if (!found.place(index)) return false;
    for (int rank = 0; rank < K; ++rank) call(f, rank, index[rank]);
    return true;
  }
}

}  // namespace moiety::inline MOIETY_ABI::detail
