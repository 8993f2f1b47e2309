// SPDX-License-Identifier: Apache-2.0
// Cross entropy of the next byte, as a sum over rows: −Σ log softmax(logits)[target], and its gradient
// softmax(logits) − one-hot(target). logits [T × V].
#pragma once

#include "row_math.hpp"
#include "tensors.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace lm {

/// The cross entropy of every row in nats, and the gradient of their sum.
template <class Context>
std::vector<double> cross_entropy(Context& ctx, const_view<Context> logits, std::span<std::int32_t const> targets,
                                  view<Context> gradient) {
  using real = typename Context::element;
  std::vector<double> nats(targets.size());
  ctx.engine().for_blocks(logits.rows(), 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      auto const i = static_cast<std::size_t>(t), target = static_cast<std::size_t>(targets[i]);
      real const* const row = logits.row(t);
      real* const d = gradient.row(t);
      real const top = largest(row, logits.cols());
      for (std::int64_t v = 0; v < logits.cols(); ++v) d[v] = mo::exp(row[v] - top);
      real const total = sum(d, logits.cols()), inverse = real{1} / total;
      for (std::int64_t v = 0; v < logits.cols(); ++v) d[v] *= inverse;
      d[target] -= real{1};
      nats[i] = std::log(static_cast<double>(total)) + static_cast<double>(top - row[target]);
    }
  });
  return nats;
}

/// The cross entropy of the rows that have a target.
template <class Context>
std::vector<double> cross_entropy(Context& ctx, const_view<Context> logits, std::span<std::int32_t const> targets) {
  std::vector<double> nats(targets.size());
  ctx.engine().for_blocks(logits.rows(), 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t)
      if (std::int32_t const target = targets[static_cast<std::size_t>(t)]; target >= 0)
        nats[static_cast<std::size_t>(t)] =
            log_sum_exp(logits.row(t), logits.cols()) - static_cast<double>(logits(t, target));
  });
  return nats;
}

/// The sum, each in multiples of 2⁻³²: below 2²⁰ nats it is exact, so the same bits in any order and parts, on any layout.
inline double exact_total(std::span<double const> nats) {
  double total = 0;
  for (double const n : nats) total += std::round(n * 0x1p32) * 0x1p-32;
  return total;
}

}  // namespace lm
