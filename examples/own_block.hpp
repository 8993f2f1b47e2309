// SPDX-License-Identifier: Apache-2.0
// A layer of one's own for a stack of blocks: y = x + x Wᵀ, with W [H × H].
#pragma once

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

class residual {
  using in = moiety::matrix_view<float const>;
  using out = moiety::matrix_view<float>;

 public:
  /// Weights, or gradients: W, row by row.
  struct matrix {
    std::int64_t hidden;
    std::vector<float> values;

    moiety::parameter what() const { return {"weight", {hidden, hidden}, {{0, hidden}, {0, hidden}}, hidden, "float"}; }
    template <class F> void for_each(F&& f) { f(what(), std::span<float>(values)); }
    template <class F> void for_each(F&& f) const { f(what(), std::span<float const>(values)); }
    void reset() { std::fill(values.begin(), values.end(), 0.f); }
    float const* row(std::int64_t i) const { return values.data() + i * hidden; }
  };
  struct tape_type {
    in x, dy{};
  };
  using element = float;
  using weights_type = matrix;
  using gradients_type = matrix;

  explicit residual(std::int64_t hidden) : hidden_(hidden) {}
  std::int64_t input_width() const { return hidden_; }
  std::int64_t output_width() const { return hidden_; }

  matrix make_gradients() const { return {hidden_, std::vector<float>(static_cast<std::size_t>(hidden_ * hidden_))}; }
  /// Drawn by name, so that the split of a model does not matter.
  matrix make_weights(moiety::seed key, std::string_view prefix) const {
    matrix w = make_gradients();
    auto const stream = moiety::stream_of(std::string(prefix) + "weight");
    double const deviation = 1 / std::sqrt(static_cast<double>(hidden_));
    for (std::size_t i = 0; i < w.values.size(); ++i)
      w.values[i] = static_cast<float>(deviation * moiety::normal(key, stream, i));
    return w;
  }

  void infer(matrix const& w, in x, out y, moiety::batch const&) const {
    for (std::int64_t t = 0; t < x.rows(); ++t)
      for (std::int64_t i = 0; i < hidden_; ++i) {
        y(t, i) = x(t, i);
        for (std::int64_t j = 0; j < hidden_; ++j) y(t, i) += w.row(i)[j] * x(t, j);
      }
  }
  tape_type forward(matrix const& w, in x, out y, moiety::batch const& about) const {
    infer(w, x, y, about);
    return {x};
  }
  void backward_input(matrix const& w, tape_type& tape, in dy, out dx) const {
    tape.dy = dy;
    for (std::int64_t t = 0; t < dy.rows(); ++t) {
      std::copy_n(dy.row(t), hidden_, dx.row(t));
      for (std::int64_t i = 0; i < hidden_; ++i)
        for (std::int64_t j = 0; j < hidden_; ++j) dx(t, j) += dy(t, i) * w.row(i)[j];
    }
  }
  void backward_weights(tape_type& tape, matrix& gradients) const {
    for (std::int64_t t = 0; t < tape.x.rows(); ++t)
      for (std::int64_t i = 0; i < hidden_; ++i)
        for (std::int64_t j = 0; j < hidden_; ++j)
          gradients.values[static_cast<std::size_t>(i * hidden_ + j)] += tape.dy(t, i) * tape.x(t, j);
  }

 private:
  std::int64_t hidden_;
};
