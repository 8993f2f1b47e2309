// SPDX-License-Identifier: Apache-2.0
// Losses as other systems train them: one column beside the rows takes the losses of all layers to the last stage, and the
// gradient of that column brings back to every layer what its losses weigh.
#pragma once

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <cstdint>
#include <string_view>
#include <utility>

namespace carrying {

namespace mo = moiety;

/// Column `hidden` of the first row: on the way to y, the losses of the layers so far; of dy, their weight.
template <class Block> class block {
 public:
  using spec = typename Block::spec;
  using element = double;
  using weights_type = typename Block::weights_type;
  using gradients_type = typename Block::gradients_type;
  using tape_type = typename Block::tape_type;
  using in = mo::matrix_view<double const>;
  using out = mo::matrix_view<double>;

  explicit block(Block of) : of_(std::move(of)) {}

  static std::int64_t hidden() { return Block::input_width(); }
  static std::int64_t input_width() { return hidden() + 1; }
  static std::int64_t output_width() { return hidden() + 1; }
  weights_type make_weights(mo::seed key, std::string_view prefix) const { return of_.make_weights(key, prefix); }
  gradients_type make_gradients() const { return of_.make_gradients(); }
  auto record(tape_type const& tape) const { return of_.record(tape); }

  static in rows(in m) { return {m.data(), m.rows(), hidden(), m.stride()}; }
  static out rows(out m) { return {m.data(), m.rows(), hidden(), m.stride()}; }

  tape_type forward(weights_type const& weights, in x, out y, mo::batch const& about) const {
    tape_type tape = of_.forward(weights, rows(x), rows(y), about);
    carry(x, y);
    if (y.rows() > 0) y(0, hidden()) += mo::loss_report<spec>({of_.record(tape)}).total();
    return tape;
  }
  void infer(weights_type const& weights, in x, out y, mo::batch const& about) const {
    of_.infer(weights, rows(x), rows(y), about);
    carry(x, y);
  }
  void backward_input(weights_type const& weights, tape_type& tape, in dy, out dx) const {
    if (dy.rows() > 0) tape.give_weight(dy(0, hidden()));
    of_.backward_input(weights, tape, rows(dy), rows(dx));
    carry(dy, dx);
  }
  void backward_weights(tape_type& tape, gradients_type& gradients) const { of_.backward_weights(tape, gradients); }

 private:
  static void carry(in from, out to) {
    for (std::int64_t t = 0; t < from.rows(); ++t) to(t, hidden()) = from(t, hidden());
  }

  Block of_;
};

}  // namespace carrying
