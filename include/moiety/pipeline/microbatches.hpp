// SPDX-License-Identifier: Apache-2.0
// The micro-batches of a step on one rank.
//
//   mo::equal_batches(8, 64)             8 of 64 tokens each
//   mo::microbatches{{64, 64, 17}}       of any sizes; all ranks of a pipeline name the same
//   task_loss{sum, weight}               what a loss function returns of one micro-batch: a sum, and what it is divided by in
//                                        the end
//   mo::square_error(ctx, y, dy)         {Σ y², rows}; dy = 2 y
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/exact_sum.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

class microbatches {
 public:
  explicit microbatches(std::vector<std::int64_t> tokens) : tokens_(std::move(tokens)) {
    for (std::int64_t const n : tokens_)
      detail::require<config_error>(n >= 0, "a micro-batch cannot have ", n, " tokens.");
  }

  int count() const { return static_cast<int>(tokens_.size()); }
  std::int64_t tokens(int microbatch) const { return tokens_[static_cast<std::size_t>(microbatch)]; }
  /// Tokens before a micro-batch.
  std::int64_t before(int microbatch) const {
    std::int64_t sum = 0;
    for (int m = 0; m < microbatch; ++m) sum += tokens(m);
    return sum;
  }
  std::int64_t all() const { return before(count()); }

 private:
  std::vector<std::int64_t> tokens_;
};

inline microbatches equal_batches(int count, std::int64_t tokens) {
  detail::require<config_error>(count >= 1, "a step needs at least 1 micro-batch, but was given ", count, '.');
  return microbatches(std::vector<std::int64_t>(static_cast<std::size_t>(count), tokens));
}

/// Where the tokens of this rank begin in each micro-batch, counted over the step: micro-batch by micro-batch, then rank by rank.
/// A collective of the ranks of a stage.
template <class Communicator> std::vector<std::int64_t> first_rows(Communicator& ranks, microbatches const& batches) {
  std::vector<std::int64_t> mine, first;
  for (int m = 0; m < batches.count(); ++m) mine.push_back(batches.tokens(m));
  std::vector<std::int64_t> all(mine.size() * static_cast<std::size_t>(ranks.size()));
  ranks.template all_gather<std::int64_t>(mine, all);
  std::int64_t before = 0;
  for (std::size_t m = 0; m < mine.size(); ++m)
    for (int r = 0; r < ranks.size(); before += all[static_cast<std::size_t>(r++) * mine.size() + m])
      if (r == ranks.rank()) first.push_back(before);
  return first;
}

struct task_loss {
  double sum = 0, weight = 0;
  friend bool operator==(task_loss const&, task_loss const&) = default;
};

template <class Context, scalar T> task_loss square_error(Context&, matrix_view<T> y, matrix_view<T> dy) {
  detail::require<data_error>(y.rows() == dy.rows() && y.cols() == dy.cols(), "square_error was given y of the shape ",
                              detail::shape(y.rows(), y.cols()), " and dy of ", detail::shape(dy.rows(), dy.cols()),
                              '.');
  using S = sum_t<T>;
  exact_sum sum;
  for (std::int64_t i = 0; i < y.rows(); ++i)
    for (std::int64_t j = 0; j < y.cols(); ++j) {
      S const v = static_cast<S>(y(i, j));
      sum.add(static_cast<double>(v) * static_cast<double>(v));
      dy(i, j) = static_cast<T>(2 * v);
    }
  return {sum.value(), static_cast<double>(y.rows())};
}

}  // namespace moiety
