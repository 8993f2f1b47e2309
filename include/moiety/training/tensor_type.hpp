// SPDX-License-Identifier: Apache-2.0
// The types and shapes of tensors in files.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moiety::inline MOIETY_ABI {

static_assert(std::endian::native == std::endian::little, "values of a file are little-endian, and taken as they are.");

/// The types of values that files may hold.
enum class tensor_type : std::uint8_t { f64, f32, f16, bf16, i64, u64, i32, u8 };

namespace detail {
struct type_row {
  std::string_view name;
  std::int64_t bytes;
};
inline constexpr std::array<type_row, 8> type_rows{
    {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"U64", 8}, {"I32", 4}, {"U8", 1}}};
}  // namespace detail

/// As files spell it.
constexpr std::string_view name_of_type(tensor_type type) {
  return detail::type_rows[static_cast<std::size_t>(type)].name;
}
constexpr std::int64_t bytes_of_type(tensor_type type) {
  return detail::type_rows[static_cast<std::size_t>(type)].bytes;
}

template <class T> inline constexpr tensor_type type_of_values = T::no_type_of_a_file;
template <> inline constexpr tensor_type type_of_values<double> = tensor_type::f64;
template <> inline constexpr tensor_type type_of_values<float> = tensor_type::f32;
template <> inline constexpr tensor_type type_of_values<fp16> = tensor_type::f16;
template <> inline constexpr tensor_type type_of_values<bf16> = tensor_type::bf16;
template <> inline constexpr tensor_type type_of_values<std::int64_t> = tensor_type::i64;
template <> inline constexpr tensor_type type_of_values<std::uint64_t> = tensor_type::u64;
template <> inline constexpr tensor_type type_of_values<std::int32_t> = tensor_type::i32;
template <> inline constexpr tensor_type type_of_values<std::uint8_t> = tensor_type::u8;

using tensor_shape = std::vector<std::int64_t>;

namespace detail {

/// "[2, 3]", as files and messages write it.
inline std::string list_of(std::span<std::int64_t const> numbers) {
  std::string text = "[";
  for (std::int64_t const n : numbers) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return text + ']';
}

/// Bytes of all values; −1 beyond 2⁶³ − 1, also of shapes that are empty only for a last 0.
inline std::int64_t bytes_of_shape(std::span<std::int64_t const> shape, tensor_type type) {
  std::int64_t bytes = bytes_of_type(type);
  for (std::int64_t const extent : shape)
    if (__builtin_mul_overflow(bytes, extent, &bytes)) return -1;
  return bytes;
}

}  // namespace detail

}  // namespace moiety
