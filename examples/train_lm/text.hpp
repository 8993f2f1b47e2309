// SPDX-License-Identifier: Apache-2.0
// The text: a file of bytes, of which a tail is held out for validation, and windows into it.
#pragma once

#include <moiety/moiety.hpp>

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace lm {

namespace mo = moiety;
using byte = unsigned char;
using text_view = std::span<byte const>;

inline constexpr std::int64_t vocabulary = 256;

struct text {
  std::vector<byte> bytes;
  std::size_t training_bytes;

  text_view training() const { return text_view(bytes).first(training_bytes); }
  text_view validation() const { return text_view(bytes).subspan(training_bytes); }
};

/// Holds out the last twentieth, which must leave both parts longer than a window.
inline text split(std::vector<byte> bytes, std::int64_t window) {
  std::size_t const held_out = bytes.size() / 20;
  if (held_out <= static_cast<std::size_t>(window))
    throw std::runtime_error("the text has " + std::to_string(bytes.size()) + " bytes; a context of " +
                             std::to_string(window) + " needs at least " + std::to_string(20 * (window + 1)) + ".");
  std::size_t const training = bytes.size() - held_out;
  return {std::move(bytes), training};
}

inline std::vector<byte> read_file(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<byte> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file || bytes.empty()) throw std::runtime_error("cannot read text from " + path + ".");
  return bytes;
}

/// Windows of one length, one after another: inputs, and targets one byte later. A target of −1 is not scored.
struct windows {
  std::vector<std::int32_t> inputs, targets;
  std::vector<std::int64_t> sequences{0};  // where each begins, and the end

  /// The window that begins at `first`, of which the first `skipped` targets are not scored.
  void add(text_view text, std::int64_t first, std::int64_t length, std::int64_t skipped = 0) {
    for (std::int64_t i = first; i < first + length; ++i) {
      inputs.push_back(text[static_cast<std::size_t>(i)]);
      targets.push_back(i < first + skipped ? -1 : text[static_cast<std::size_t>(i + 1)]);
    }
    sequences.push_back(sequences.back() + length);
  }
  std::int64_t tokens() const { return static_cast<std::int64_t>(inputs.size()); }
};

/// Window number `index` of a seed starts at a place that depends on nothing else.
inline windows draw_windows(text_view text, std::int64_t count, std::int64_t length, mo::seed seed,
                            std::int64_t index) {
  windows drawn;
  std::uint64_t const places = text.size() - static_cast<std::uint64_t>(length);
  for (std::int64_t w = 0; w < count; ++w) {
    auto const number = static_cast<std::uint64_t>(index + w);
    std::uint64_t const word = mo::random_word(seed, mo::stream_of("windows"), number);
    drawn.add(text, static_cast<std::int64_t>(word * places >> 32), length);
  }
  return drawn;
}

}  // namespace lm
