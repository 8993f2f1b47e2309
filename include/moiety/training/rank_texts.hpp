// SPDX-License-Identifier: Apache-2.0
// Texts that go to the first rank of a group, and from it.
#pragma once

#include <moiety/backend/transport/communicator.hpp>
#include <moiety/core/config.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

namespace moiety::inline MOIETY_ABI::detail {

/// The texts of all ranks on the first; nothing on others.
template <communicator C> std::vector<std::string> gather_texts(C& ranks, std::string const& mine) {
  auto const count = static_cast<std::size_t>(ranks.size());
  auto const length = static_cast<std::int64_t>(mine.size());
  std::vector<std::int64_t> to(count), from(count);
  ranks.template all_gather<std::int64_t>({&length, 1}, from);
  if (ranks.rank() != 0) std::fill(from.begin(), from.end(), 0);
  to[0] = length;
  std::string joined(static_cast<std::size_t>(std::accumulate(from.begin(), from.end(), std::int64_t{0})), '\0');
  ranks.template all_to_all_v<char>(mine, to, joined, from);
  std::vector<std::string> texts;
  std::size_t begin = 0;
  for (std::size_t r = 0; r < count && ranks.rank() == 0; begin += static_cast<std::size_t>(from[r++]))
    texts.push_back(joined.substr(begin, static_cast<std::size_t>(from[r])));
  return texts;
}

/// The first rank's text on all.
template <communicator C> void broadcast_text(C& ranks, std::string& text) {
  auto length = static_cast<std::int64_t>(text.size());
  ranks.template broadcast<std::int64_t>({&length, 1}, 0);
  text.resize(static_cast<std::size_t>(length));
  ranks.template broadcast<char>(text, 0);
}

}  // namespace moiety::inline MOIETY_ABI::detail
