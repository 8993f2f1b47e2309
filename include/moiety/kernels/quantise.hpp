// SPDX-License-Identifier: Apache-2.0
// Operands of products in 8 bits: e4m3 with one scale for each row of rows, and for each output of stored matrices.
//
//   s = 2^e, e ≥ −126, the least with |v| ≤ 448 s for all finite v of a row; 1 where all are 0
//   q = e4m3(v / s)      what is not finite becomes a NaN, and no other value feels it
//
// Scales are powers of two, so that quantising rounds once and scaling never does: q s is v with 4 significant bits where
// |v| is at least 2⁻¹⁵ of the largest of its row, and v to the nearest multiple of 2⁻⁹ s below. A sum of products of two
// such operands is scaled by both scales after it is made: see experts/fp8.hpp.
//
//   quantise_rows       rows offsets[0] … offsets[groups] − 1 of several operands [rows × n] side by side, each as it lies or
//                       gathered; row r comes to row r of `to`
//   quantise_matrices   the matrices [n × k] of each group, several side by side: one scale for each of n
//
// Rows of `to` begin quantised_stride(columns) apart and hold what is behind their columns as it was.
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/e4m3.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

/// Elements from one quantised row to the next: rows begin at multiples of 16 bytes, as matrix instructions' copies want.
MOIETY_HD constexpr std::int64_t quantised_stride(std::int64_t columns) { return (columns + 15) / 16 * 16; }

struct quantised_rows {
  e4m3* values = nullptr;  // [rows × quantised_stride(columns)]
  float* scales = nullptr;
};

/// Of each group n rows of `columns`, which a product sums over.
struct quantised_matrix {
  e4m3* values = nullptr;   // [groups × n × quantised_stride(columns)]
  float* scales = nullptr;  // [groups × n]

  /// As a product reads it.
  grouped_matrix<e4m3 const> matrix(std::int64_t n, std::int64_t columns) const {
    return {values, n * quantised_stride(columns), quantised_stride(columns)};
  }
};

/// The scale of a row by the bits of its largest finite magnitude.
MOIETY_HD constexpr float quantising_scale(std::uint32_t bits) {
  if (bits == 0) return 1;
  constexpr std::uint32_t fraction_of_448 = 0x600000u, least = 1u;  // 448 = 1.75 · 2⁸; 2⁻¹²⁶ is the least scale
  std::uint32_t const exponent = (bits >> 23) + ((bits & 0x7fffffu) > fraction_of_448 ? 1u : 0u);
  return moiety::detail::bit_cast<float>((exponent > 8u + least ? exponent - 8u : least) << 23);
}

/// A value by the inverse of its row's scale.
MOIETY_HD constexpr e4m3 quantised(float value, float inverse) {
  return value - value == 0 ? e4m3(value * inverse) : e4m3::nan();
}

/// The bits of a value's magnitude, which order as magnitudes do; 0 where it is not finite.
MOIETY_HD constexpr std::uint32_t magnitude_bits(float value) {
  std::uint32_t const bits = moiety::detail::bit_cast<std::uint32_t>(value) & 0x7fffffffu;
  return bits < 0x7f800000u ? bits : 0u;
}
MOIETY_HD constexpr std::uint32_t larger_magnitude(std::uint32_t largest, float value) {
  std::uint32_t const bits = magnitude_bits(value);
  return bits > largest ? bits : largest;
}

template <class T, std::size_t M>
void quantise_rows(host_engine& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                   std::array<rows_of<T>, M> const& from, std::int64_t n, quantised_rows const& to);
template <class T, std::size_t M>
void quantise_rows(cuda_engine& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                   std::array<rows_of<T>, M> const& from, std::int64_t n, quantised_rows const& to);

template <class T, std::size_t M>
void quantise_matrices(host_engine& engine, std::int64_t groups, std::array<grouped_matrix<T const>, M> const& from,
                       std::int64_t n, std::int64_t k, quantised_matrix const& to);
template <class T, std::size_t M>
void quantise_matrices(cuda_engine& engine, std::int64_t groups, std::array<grouped_matrix<T const>, M> const& from,
                       std::int64_t n, std::int64_t k, quantised_matrix const& to);

/// The same of matrices that lie as their transposes.
template <class T, std::size_t M>
void quantise_matrices(host_engine& engine, std::int64_t groups, std::array<transposed_matrix<T const>, M> const& from,
                       std::int64_t n, std::int64_t k, quantised_matrix const& to);
template <class T, std::size_t M>
void quantise_matrices(cuda_engine& engine, std::int64_t groups, std::array<transposed_matrix<T const>, M> const& from,
                       std::int64_t n, std::int64_t k, quantised_matrix const& to);

}  // namespace moiety::inline MOIETY_ABI::kernels

#include <moiety/kernels/host/quantise.hpp>
