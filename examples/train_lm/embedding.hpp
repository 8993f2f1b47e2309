// SPDX-License-Identifier: Apache-2.0
// The first block of the model: y_t = table[id_t], table [256 × H]. It has no input but about.ids, in memory of the back end.
#pragma once

#include "rows.hpp"
#include "tensors.hpp"
#include "text.hpp"

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace lm {

namespace detail {

template <class Real> struct looked_up_rows {
  mo::matrix_view<Real const> table;
  std::int32_t const* ids;
  mo::matrix_view<Real> y;

  template <class Team> MOIETY_HD void operator()(Team const& team, std::int64_t t) const {
    team.columns(y.cols(), [&](std::int64_t h) { y.row(t)[h] = table.row(ids[t])[h]; });
  }
};

/// Row b of the work is the columns 16 b … 16 b + 15.
template <class Real> struct table_columns {
  mo::matrix_view<Real const> dy;
  std::int32_t const* ids;
  mo::matrix_view<Real> table;

  template <class Team> MOIETY_HD void operator()(Team const& team, std::int64_t b) const {
    std::int64_t const first = lanes * b, left = dy.cols() - first;
    for (std::int64_t t = 0; t < dy.rows(); ++t) {
      Real* const row = table.row(ids[t]) + first;
      Real const* const d = dy.row(t) + first;
      team.columns(left < lanes ? left : lanes, [&](std::int64_t h) { row[h] += d[h]; });
    }
  }
};

}  // namespace detail

template <class Deployment> class embedding_block {
  using context = mo::context<Deployment>;

 public:
  using element = typename context::element;
  using weights_type = tensors<context>;
  using gradients_type = tensors<context>;
  struct tape_type {
    std::int32_t const* ids = nullptr;  // those of the batch, which live until the weights' half of backward
    const_view<context> dy{};
  };

  embedding_block(context& ctx, std::int64_t hidden)
      : ctx_(&ctx), hidden_(hidden), tensors_{{"table", vocabulary, hidden, /*fan_in=*/0, 0.0, 1.0}} {}

  std::int64_t input_width() const { return 0; }
  std::int64_t output_width() const { return hidden_; }

  weights_type make_weights(mo::seed seed, std::string_view prefix) const {
    return make_tensors(*ctx_, tensors_, seed, prefix);
  }
  gradients_type make_gradients() const { return {*ctx_, tensors_}; }

  tape_type forward(weights_type const& weights, const_view<context> x, view<context> y, mo::batch const& about) const {
    infer(weights, x, y, about);
    return {about.ids.data()};
  }

  void infer(weights_type const& weights, const_view<context>, view<context> y, mo::batch const& about) const {
    if (static_cast<std::int64_t>(about.ids.size()) != y.rows())
      throw mo::data_error("an embedding needs the id of every token.");
    for_rows(ctx_->engine(), y.rows(), 64, detail::looked_up_rows<element>{weights[0], about.ids.data(), y});
  }

  void backward_input(weights_type const&, tape_type& tape, const_view<context> dy, view<context>) const {
    tape.dy = dy;
  }

  /// Columns are shared out, so each sum over tokens has one order.
  void backward_weights(tape_type& tape, gradients_type& gradients) const {
    for_rows(ctx_->engine(), (hidden_ + lanes - 1) / lanes, 1,
             detail::table_columns<element>{tape.dy, tape.ids, gradients[0]});
  }

 private:
  context* ctx_;
  std::int64_t hidden_;
  std::vector<dense> tensors_;
};

}  // namespace lm
