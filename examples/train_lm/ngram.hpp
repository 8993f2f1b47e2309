// SPDX-License-Identifier: Apache-2.0
// What counting alone achieves: bits per byte of a unigram and of a bigram model, counted on the training text.
//
//   unigram   p(b)     = (n(b) + 1) / (N + 256)
//   bigram    p(b | a) = (n(a b) + p(b)) / (n(a) + 1)      a pair never seen falls back on the unigram
#pragma once

#include "text.hpp"

#include <array>
#include <cmath>
#include <cstddef>
#include <vector>

namespace lm {

class ngram {
 public:
  explicit ngram(text_view training) : pairs_(256 * 256), after_{}, single_{} {
    for (byte const b : training) single_[b] += 1;
    for (std::size_t i = 1; i < training.size(); ++i) {
      pairs_[training[i - 1] * 256u + training[i]] += 1;
      after_[training[i - 1]] += 1;
    }
    for (double& p : single_) p = (p + 1) / (static_cast<double>(training.size()) + 256);
  }

  double unigram(byte b) const { return single_[b]; }
  double bigram(byte a, byte b) const { return (pairs_[a * 256u + b] + single_[b]) / (after_[a] + 1); }

  /// Mean bits of every byte of the text but the first, which is only context.
  double unigram_bits(text_view text) const {
    return mean_bits(text, [this](byte, byte b) { return unigram(b); });
  }
  double bigram_bits(text_view text) const {
    return mean_bits(text, [this](byte a, byte b) { return bigram(a, b); });
  }

 private:
  template <class Probability> static double mean_bits(text_view text, Probability const& p) {
    double bits = 0;
    for (std::size_t i = 1; i < text.size(); ++i) bits -= std::log2(p(text[i - 1], text[i]));
    return bits / static_cast<double>(text.size() - 1);
  }

  std::vector<double> pairs_;
  std::array<double, 256> after_, single_;
};

}  // namespace lm
