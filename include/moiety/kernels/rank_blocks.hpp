// SPDX-License-Identifier: Apache-2.0
// Blocks of one size, of which every two ranks exchange one: how many rows each expert of the receiver gets, and room for
// `most` rows of each.
//
//   a block = [ rows of each expert | their values, experts · most · width ], each up to a whole line of 64 bytes
//
//   list_sent      parts of experts of all ranks in rows by permutation, from where the rows of each expert begin; `copies`
//                  neighbours hold the same experts
//   pack           rows by parts → blocks; what is left of a block is zeros
//   list_arrived   parts, and offsets by expert, from what blocks that came say; rows are by expert, then rank
//   unpack         blocks → rows by parts; rows of copies are added, in the order of ranks: to = (b₀ + b₁) + b₂
//
// Parts are [ranks × experts], {first row, rows}. More rows of an expert than a block has room for, or fewer than none, are an
// error: on the host list_sent and list_arrived return that number, else 0; on a device they always return 0, leave such rows
// out, and the next cuda_engine::synchronize throws.
#pragma once

#include <moiety/backend/transport/rows.hpp>
#include <moiety/core/config.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace moiety::inline MOIETY_ABI::kernels {

/// The size of blocks, and the places in `ranks` of them that lie together.
template <class V> struct rank_blocks {
  std::int64_t ranks, experts, most, width;

  MOIETY_HD std::int64_t head_bytes() const { return lines(experts * static_cast<std::int64_t>(sizeof(std::int64_t))); }
  MOIETY_HD std::int64_t block_bytes() const {
    return head_bytes() + lines(experts * most * width * static_cast<std::int64_t>(sizeof(V)));
  }
  std::int64_t bytes() const { return ranks * block_bytes(); }
  MOIETY_HD std::int64_t parts() const { return ranks * experts; }

  MOIETY_HD std::int64_t* counts(std::byte* blocks, std::int64_t rank) const {
    return reinterpret_cast<std::int64_t*>(blocks + rank * block_bytes());
  }
  MOIETY_HD V* rows(std::byte* blocks, std::int64_t rank, std::int64_t expert) const {
    return reinterpret_cast<V*>(blocks + rank * block_bytes() + head_bytes()) + expert * most * width;
  }

 private:
  MOIETY_HD static std::int64_t lines(std::int64_t bytes) {
    constexpr std::int64_t line = 64;
    return (bytes + line - 1) / line * line;
  }
};

template <class V>
std::int64_t list_sent(rank_blocks<V> const& shape, int copies, std::int64_t const* starts, range_of* parts) {
  for (std::int64_t i = 0; i < shape.parts(); ++i) {
    std::int64_t const* const start = starts + i / shape.experts / copies * shape.experts + i % shape.experts;
    parts[i] = {start[0], start[1] - start[0]};
    if (parts[i].count > shape.most) return parts[i].count;
  }
  return 0;
}

template <class V>
void pack(rank_blocks<V> const& shape, rows_of<V> const& from, range_of const* parts, std::byte* blocks) {
  for (std::int64_t r = 0; r < shape.ranks; ++r) {
    std::memset(shape.counts(blocks, r), 0, static_cast<std::size_t>(shape.head_bytes()));
    V* end = shape.rows(blocks, r, 0);
    for (std::int64_t e = 0; e < shape.experts; ++e) {
      range_of const part = parts[r * shape.experts + e];
      shape.counts(blocks, r)[e] = part.count;
      V* const to = shape.rows(blocks, r, e);
      for (std::int64_t i = 0; i < part.count; ++i)
        std::copy_n(from.row(part.first + i), shape.width, to + i * shape.width);
      end = to + shape.most * shape.width;
      std::fill(to + part.count * shape.width, end, V{});
    }
    auto* const left = reinterpret_cast<std::byte*>(end);
    std::memset(left, 0, static_cast<std::size_t>(blocks + (r + 1) * shape.block_bytes() - left));
  }
}

template <class V>
std::int64_t list_arrived(rank_blocks<V> const& shape, std::byte* blocks, range_of* parts, std::int64_t* offsets) {
  std::int64_t all = 0;
  for (std::int64_t e = 0; e < shape.experts; ++e) {
    offsets[e] = all;
    for (std::int64_t r = 0; r < shape.ranks; ++r) {
      std::int64_t const count = shape.counts(blocks, r)[e];
      if (count < 0 || count > shape.most) return count;
      parts[r * shape.experts + e] = {all, count};
      all += count;
    }
  }
  offsets[shape.experts] = all;
  return 0;
}

template <class V>
void unpack(rank_blocks<V> const& shape, std::byte* blocks, range_of const* parts, int copies, V* to) {
  for (std::int64_t r = 0; r < shape.ranks; ++r)
    for (std::int64_t e = 0; e < shape.experts; ++e) {
      range_of const part = parts[r * shape.experts + e];
      V const* const from = shape.rows(blocks, r, e);
      V* const there = to + part.first * shape.width;
      if (r % copies == 0)
        std::copy_n(from, part.count * shape.width, there);
      else
        moiety::detail::add_values(from, part.count * shape.width, there);
    }
}

template <class V>
std::int64_t list_sent(cuda_engine& engine, rank_blocks<V> const& shape, int copies, std::int64_t const* starts,
                       range_of* parts);
template <class V>
void pack(cuda_engine& engine, rank_blocks<V> const& shape, rows_of<V> const& from, range_of const* parts,
          std::byte* blocks);
template <class V>
std::int64_t list_arrived(cuda_engine& engine, rank_blocks<V> const& shape, std::byte* blocks, range_of* parts,
                          std::int64_t* offsets);
template <class V>
void unpack(cuda_engine& engine, rank_blocks<V> const& shape, std::byte* blocks, range_of const* parts, int copies,
            V* to);

}  // namespace moiety::inline MOIETY_ABI::kernels
