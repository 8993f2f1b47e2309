// SPDX-License-Identifier: Apache-2.0
// Operands of products in 8 bits: e4m3, and scales that several values share.
//
//   row_scaled      one scale for each row of rows, and for each output of stored matrices [n × columns]
//   block_scaled    one for each 128 columns of a row, and for each 128 outputs × 128 columns of a matrix
//
//   s = 2^e, e ≥ −117, the least with |v| ≤ 448 s for all finite v that share it; 1 where all are 0
//   q = e4m3(v / s)       what is not finite becomes a NaN, and no other value feels it
//
// Scales are powers of two, so that quantising rounds once and scaling never does: q s is v with 4 significant bits where |v|
// is at least 2⁻¹³ of the largest that shares its scale, and below it is off by at most 2⁻¹⁷ of that. bf16 holds all q s, but
// for those of values that round to 2¹²⁸.
//
//   quantise_rows       rows offsets[0] … offsets[groups] − 1 of several operands [rows × n] side by side, each as it lies or
//                       gathered; row r comes to row r of `to`
//   quantise_matrices   the matrices [n × k] of each group, several side by side: rows of all their columns
//
// What products read is a quantised_operand: on a device q, rows quantised_stride(columns) apart with zeros between them, and s.
// On the host, which multiplies no 8 bits, it is q s in bf16. Nothing behind the columns of a row is read.
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/e4m3.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

/// Columns and outputs that share a scale; 0: all columns.
struct row_scaled {
  static constexpr std::int64_t columns = 0, outputs = 1;
};
struct block_scaled {
  static constexpr std::int64_t columns = 128, outputs = 128;
};

/// Scales of a row of so many columns.
template <class Scaling> MOIETY_HD constexpr std::int64_t scales_of_row(std::int64_t columns) {
  return Scaling::columns == 0 ? 1 : (columns + Scaling::columns - 1) / (Scaling::columns == 0 ? 1 : Scaling::columns);
}
/// Rows of scales of a matrix of n outputs.
template <class Scaling> MOIETY_HD constexpr std::int64_t rows_of_scales(std::int64_t n) {
  return (n + Scaling::outputs - 1) / Scaling::outputs;
}

/// Elements from one row of q to the next: rows begin at multiples of 16 bytes, as matrix instructions' copies want.
MOIETY_HD constexpr std::int64_t quantised_stride(std::int64_t columns) { return (columns + 15) / 16 * 16; }

/// Memory of rows, or of the n rows of each group's matrix.
template <class Engine, class Scaling> struct quantised_operand;

template <class Scaling> struct quantised_operand<host_engine, Scaling> {
  bf16* values = nullptr;  // [rows × columns], or [groups × n × columns]

  static constexpr std::int64_t row_bytes(std::int64_t rows, std::int64_t columns) {
    return moiety::detail::whole_blocks(rows * columns * static_cast<std::int64_t>(sizeof(bf16)));
  }
  static constexpr std::int64_t matrix_bytes(std::int64_t groups, std::int64_t n, std::int64_t columns) {
    return row_bytes(groups * n, columns);
  }
  static quantised_operand rows_at(void* memory, std::int64_t, std::int64_t) { return {static_cast<bf16*>(memory)}; }
  static quantised_operand matrices_at(void* memory, std::int64_t, std::int64_t, std::int64_t) {
    return {static_cast<bf16*>(memory)};
  }

  rows_of<bf16> rows(std::int64_t columns) const { return {values, columns}; }
  grouped_matrix<bf16 const> matrices(std::int64_t n, std::int64_t columns) const {
    return {values, n * columns, columns};
  }
};

template <class Scaling> struct quantised_operand<cuda_engine, Scaling> {
  e4m3* values = nullptr;  // [rows × quantised_stride(columns)], or [groups × n × quantised_stride(columns)]
  float* scales = nullptr;  // [rows × scales_of_row(columns)], or [groups × rows_of_scales(n) × scales_of_row(columns)]

  static constexpr std::int64_t row_bytes(std::int64_t rows, std::int64_t columns) {
    return value_bytes(rows, columns) + scale_bytes(rows, columns);
  }
  static constexpr std::int64_t matrix_bytes(std::int64_t groups, std::int64_t n, std::int64_t columns) {
    return value_bytes(groups * n, columns) + scale_bytes(groups * rows_of_scales<Scaling>(n), columns);
  }
  static quantised_operand rows_at(void* memory, std::int64_t rows, std::int64_t columns) {
    auto* const values = static_cast<std::byte*>(memory);
    return {reinterpret_cast<e4m3*>(values), reinterpret_cast<float*>(values + value_bytes(rows, columns))};
  }
  static quantised_operand matrices_at(void* memory, std::int64_t groups, std::int64_t n, std::int64_t columns) {
    return rows_at(memory, groups * n, columns);
  }

  rows_of<e4m3> rows(std::int64_t columns) const { return {values, quantised_stride(columns)}; }
  grouped_matrix<e4m3 const> matrices(std::int64_t n, std::int64_t columns) const {
    return {values, n * quantised_stride(columns), quantised_stride(columns)};
  }

 private:
  static constexpr std::int64_t value_bytes(std::int64_t rows, std::int64_t columns) {
    return moiety::detail::whole_blocks(rows * quantised_stride(columns));
  }
  static constexpr std::int64_t scale_bytes(std::int64_t rows, std::int64_t columns) {
    return moiety::detail::whole_blocks(rows * scales_of_row<Scaling>(columns) *
                                        static_cast<std::int64_t>(sizeof(float)));
  }
};

/// The bits of a value's magnitude, which order as magnitudes do; 0 where it is not finite.
MOIETY_HD constexpr std::uint32_t magnitude_bits(float value) {
  std::uint32_t const bits = moiety::detail::bit_cast<std::uint32_t>(value) & 0x7fffffffu;
  return bits < 0x7f800000u ? bits : 0u;
}
MOIETY_HD constexpr std::uint32_t larger_magnitude(std::uint32_t largest, float value) {
  std::uint32_t const bits = magnitude_bits(value);
  return bits > largest ? bits : largest;
}

/// The scale of values by the bits of the largest finite magnitude.
MOIETY_HD constexpr float quantising_scale(std::uint32_t bits) {
  if (bits == 0) return 1;
  constexpr std::uint32_t fraction_of_448 = 0x600000u, least = 10u;  // 448 = 1.75 · 2⁸; 2⁻¹¹⁷ is the least scale
  std::uint32_t const exponent = (bits >> 23) + ((bits & 0x7fffffu) > fraction_of_448 ? 1u : 0u);
  return moiety::detail::bit_cast<float>((exponent > 8u + least ? exponent - 8u : least) << 23);
}

/// A value by the inverse of its scale.
MOIETY_HD constexpr e4m3 quantised(float value, float inverse) {
  return value - value == 0 ? e4m3(value * inverse) : e4m3::nan();
}

template <class Scaling, class T, std::size_t M>
void quantise_rows(host_engine& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                   std::array<rows_of<T>, M> const& from, std::int64_t n,
                   quantised_operand<host_engine, Scaling> const& to);
template <class Scaling, class T, std::size_t M>
void quantise_rows(cuda_engine& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                   std::array<rows_of<T>, M> const& from, std::int64_t n,
                   quantised_operand<cuda_engine, Scaling> const& to);

template <class Scaling, class T, std::size_t M>
void quantise_matrices(host_engine& engine, std::int64_t groups, std::array<grouped_matrix<T const>, M> const& from,
                       std::int64_t n, std::int64_t k, quantised_operand<host_engine, Scaling> const& to);
template <class Scaling, class T, std::size_t M>
void quantise_matrices(cuda_engine& engine, std::int64_t groups, std::array<grouped_matrix<T const>, M> const& from,
                       std::int64_t n, std::int64_t k, quantised_operand<cuda_engine, Scaling> const& to);

/// The same of matrices that lie as their transposes.
template <class Scaling, class T, std::size_t M>
void quantise_matrices(host_engine& engine, std::int64_t groups, std::array<transposed_matrix<T const>, M> const& from,
                       std::int64_t n, std::int64_t k, quantised_operand<host_engine, Scaling> const& to);
template <class Scaling, class T, std::size_t M>
void quantise_matrices(cuda_engine& engine, std::int64_t groups, std::array<transposed_matrix<T const>, M> const& from,
                       std::int64_t n, std::int64_t k, quantised_operand<cuda_engine, Scaling> const& to);

}  // namespace moiety::inline MOIETY_ABI::kernels

#include <moiety/kernels/host/quantise.hpp>
