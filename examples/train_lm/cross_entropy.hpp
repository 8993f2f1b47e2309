// SPDX-License-Identifier: Apache-2.0
// Cross entropy of the next byte, as a sum over rows: −Σ log softmax(logits)[target], and its gradient
// softmax(logits) − one-hot(target). logits [T × V].
#pragma once

#include "parameter.hpp"
#include "row_math.hpp"
#include "text.hpp"

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

namespace lm {

/// The cross entropy of every row in nats; logits become the gradient of their sum.
template <class Context>
std::vector<double> cross_entropy(Context& ctx, view<Context> logits, std::span<byte const> targets) {
  using real = typename Context::element;
  std::vector<double> nats(targets.size());
  ctx.engine().for_blocks(logits.rows(), 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      auto const i = static_cast<std::size_t>(t);
      real* const row = logits.row(t);
      real const top = largest(row, logits.cols()), at_target = row[targets[i]];
      for (std::int64_t v = 0; v < logits.cols(); ++v) row[v] = mo::exp(row[v] - top);
      real const total = sum(row, logits.cols()), inverse = real{1} / total;
      for (std::int64_t v = 0; v < logits.cols(); ++v) row[v] *= inverse;
      row[targets[i]] -= real{1};
      nats[i] = std::log(static_cast<double>(total)) + static_cast<double>(top - at_target);
    }
  });
  return nats;
}

}  // namespace lm
