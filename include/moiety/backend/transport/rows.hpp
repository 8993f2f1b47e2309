// SPDX-License-Identifier: Apache-2.0
// What communicators move: rows of any place in memory, messages, and the slices of an array over ranks.
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/backend/stream.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

/// Rows that go to one rank, or come from one: row i begins at data + stride · (index ? index[i] : i) bytes.
template <class Byte> struct rows_block {
  Byte* data = nullptr;
  std::int64_t rows = 0, width = 0, stride = 0;  // width and stride in bytes
  std::int32_t const* index = nullptr;

  std::int64_t bytes() const { return rows * width; }
  Byte* row(std::int64_t i) const { return data + stride * (index == nullptr ? i : index[i]); }
  /// Whether the rows are one piece of memory.
  bool whole() const { return index == nullptr && (stride == width || rows <= 1); }
  /// Whether these rows can be copied to or from the others.
  template <class Other> bool same_size(rows_block<Other> const& other) const {
    return rows == other.rows && (rows == 0 || width == other.width);
  }
};
using outgoing_rows = rows_block<std::byte const>;
using incoming_rows = rows_block<std::byte>;

/// A message between two ranks. Those of one channel arrive in the order in which they were sent.
template <class Byte> struct rank_message {
  int peer = 0;
  Byte* data = nullptr;
  std::int64_t bytes = 0;
  int channel = 0;
};
using outgoing_message = rank_message<std::byte const>;
using incoming_message = rank_message<std::byte>;

/// What the ranks of a group must agree on in a call: its name, the bytes of an element or row, and where they are common the
/// number of elements and the root.
struct rank_operation {
  char const* name = "";
  std::int64_t width = 0, count = -1;
  int root = -1;
  /// Every pair exchanges one block of the width, and blocks lie side by side: those that a rank sends, and those that it gets.
  bool equal = false;

  friend bool operator==(rank_operation const& a, rank_operation const& b) {
    return std::string_view(a.name) == b.name && a.width == b.width && a.count == b.count && a.root == b.root;
  }
  std::string words() const {
    std::string text = detail::sentence(name, " of elements of ", width, " bytes");
    if (count >= 0) text += detail::sentence(", ", count, " of them");
    if (root >= 0) text += detail::sentence(", root ", root);
    return text;
  }
};

struct range_of {
  std::int64_t first = 0, count = 0;
};

/// Slice r of n values over `size` ranks: the first n mod size slices have one value more.
constexpr range_of slice_of(std::int64_t n, int r, int size) {
  std::int64_t const least = n / size, more = n % size;
  return {r * least + std::min<std::int64_t>(r, more), least + (r < more ? 1 : 0)};
}
/// How many values each slice has.
inline std::vector<std::int64_t> slice_counts(std::int64_t n, int size) {
  std::vector<std::int64_t> counts;
  for (int r = 0; r < size; ++r) counts.push_back(slice_of(n, r, size).count);
  return counts;
}

namespace detail {

template <class Byte, class T> rows_block<Byte> block_of(T* values, std::int64_t count) {
  constexpr auto width = static_cast<std::int64_t>(sizeof(T));
  return {reinterpret_cast<Byte*>(values), count, width, width, nullptr};
}

/// Rows of no width, in which ranks compare what they say of parts that belong to one rank each, and which move nothing.
inline std::pair<std::vector<outgoing_rows>, std::vector<incoming_rows>> rows_of_parts(
    std::span<std::int64_t const> counts, int rank) {
  std::pair<std::vector<outgoing_rows>, std::vector<incoming_rows>> all;
  for (std::int64_t const n : counts) {
    all.first.push_back({nullptr, n, 0, 0, nullptr});
    all.second.push_back({nullptr, counts[static_cast<std::size_t>(rank)], 0, 0, nullptr});
  }
  return all;
}

/// Rows of the same number and width from one place to another. The processor does not foresee where the next row lies: it is
/// asked for the beginning, and goes on by itself.
inline void copy_rows(outgoing_rows const& from, incoming_rows const& to, stores how = stores::cached) {
  constexpr std::int64_t beginning = 1024;
  if (from.bytes() == 0 || (from.whole() && to.whole() && from.row(0) == to.row(0))) return;
  bool const one = from.whole() && to.whole();
  std::int64_t const rows = one ? 1 : from.rows, width = one ? from.bytes() : from.width;
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t at = 0; i + 1 < rows && at < std::min(width, beginning); at += std::int64_t{line_bytes})
      prefetch(from.row(i + 1) + at);
    write_row(to.row(i), from.row(i), width, how);
  }
  finish_stores(how);
}

/// to[i] = to[i] + from[i], rounded to their type.
template <class V> void add_values(V const* from, std::int64_t count, V* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<V>(to[i] + from[i]);
}
template <class V> void add_values(cuda_engine& engine, V const* from, std::int64_t count, V* to);

/// call(engine) where the rows of a group lie in memory of a device, else call(): for kernels of both kinds.
template <class C, class Call> void call_kernel(C& group, Call const& call) {
  if constexpr (requires { group.engine(); })
    call(group.engine());
  else
    call();
}

}  // namespace detail

}  // namespace moiety
