// SPDX-License-Identifier: Apache-2.0
// The micro-batches of a step on one rank.
//
//   mo::equal_batches(8, 64)             8 of 64 tokens each
//   mo::microbatches{{64, 64, 17}}       of any sizes; all ranks of a pipeline name the same
//   batches.describe(f)                  f(microbatch) → mo::batch: its sequences, mask, ids, experts, weight and loss_scale, of
//                                        this rank's tokens. Asked on every rank of a pipeline, at the beginning of a step; what
//                                        it names lives until the step has returned. The engine fills in first_row and step,
//                                        and keeps the counts of each layer: a description names none
//   mo::no_inputs                        for a model whose first block reads ids: as inputs of a step
//   task_loss{sum, weight}               what a loss function returns of one micro-batch: a sum, and what it is divided by in
//                                        the end
//   mo::square_error(ctx, y, dy)         {Σ y², rows}; dy = 2 y. Of rows in the host's memory
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/batch/batch.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/exact_sum.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/mesh/agreement.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <type_traits>
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

  microbatches& describe(std::function<batch(int)> description) {
    description_ = std::move(description);
    return *this;
  }
  /// The description of a micro-batch. Throws data_error where it does not fit its tokens, or names counts.
  batch about(int microbatch) const {
    batch const found = description_ ? description_(microbatch) : batch{};
    found.check(tokens(microbatch));
    detail::require<data_error>(found.counts == nullptr, "the description of micro-batch ", microbatch,
                                " names mo::batch{.counts}, which are of one layer: an engine keeps those of each.");
    return found;
  }

 private:
  std::vector<std::int64_t> tokens_;
  std::function<batch(int)> description_;
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

/// What each micro-batch of a step is about, `wanted` of them unless that is negative. A collective of the run: what is wrong on
/// one rank is thrown on every one.
template <class Context>
std::vector<batch> batches_of_step(Context& ctx, microbatches const& batches, std::int64_t step, int wanted = -1) {
  std::vector<batch> all;
  agree(ctx.world(), [&] {
    detail::require<config_error>(wanted < 0 || batches.count() == wanted, "a schedule of ", wanted,
                                  " micro-batches was given ", batches.count(), '.');
    for (int m = 0; m < batches.count(); ++m) all.push_back(batches.about(m));
  });
  std::vector<std::int64_t> const first = first_rows(ctx.stage(), batches);
  for (std::size_t m = 0; m < all.size(); ++m) all[m].first_row = first[m], all[m].step = step;
  return all;
}

struct without_inputs {
  template <class View> void operator()(int, View const&) const {
    throw config_error("the first stage takes an input, but the step was given mo::no_inputs.");
  }
};
inline constexpr without_inputs no_inputs{};

struct task_loss {
  double sum = 0, weight = 0;
  friend bool operator==(task_loss const&, task_loss const&) = default;
};

namespace detail {
/// Adds up what loss functions return: exactly, so that the order does not matter.
class task_sums {
 public:
  void add(task_loss const& found) { all_[0].add(found.sum), all_[1].add(found.weight); }

  /// Of all ranks. A collective.
  template <class Context> task_loss over_ranks(Context& ctx) {
    ctx.stage().all_reduce(std::span<exact_sum>(all_));
    ctx.pipeline().all_reduce(std::span<exact_sum>(all_));
    return {all_[0].value(), all_[1].value()};
  }

 private:
  std::array<exact_sum, 2> all_{};
};
}  // namespace detail

template <class Context, scalar T> task_loss square_error(Context&, matrix_view<T> y, matrix_view<T> dy) {
  static_assert(std::is_same_v<typename Context::backend, host>,
                "mo::square_error reads rows of mo::host: of mo::cuda it is given a copy, and a context of the host.");
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
