// SPDX-License-Identifier: Apache-2.0
// The first block of the model: y_t = table[id_t], table [256 × H]. It has no input but about.ids.
#pragma once

#include "tensors.hpp"
#include "text.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace lm {

template <class Deployment> class embedding_block {
  using context = mo::context<Deployment>;

 public:
  using element = typename context::element;
  using weights_type = tensors<element>;
  using gradients_type = tensors<element>;
  struct tape_type {
    std::vector<std::int32_t> ids{};
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
    return {{about.ids.begin(), about.ids.end()}};
  }

  void infer(weights_type const& weights, const_view<context>, view<context> y, mo::batch const& about) const {
    if (static_cast<std::int64_t>(about.ids.size()) != y.rows())
      throw mo::data_error("an embedding needs the id of every token.");
    for (std::int64_t t = 0; std::int32_t const id : about.ids) std::copy_n(weights[0].row(id), y.cols(), y.row(t++));
  }

  void backward_input(weights_type const&, tape_type& tape, const_view<context> dy, view<context>) const {
    tape.dy = dy;
  }

  /// Columns are shared out, so each sum over tokens has one order.
  void backward_weights(tape_type& tape, gradients_type& gradients) const {
    ctx_->engine().for_blocks(hidden_, 16, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t t = 0; std::int32_t const id : tape.ids) {
        element* const row = gradients[0].row(id);
        for (std::int64_t h = first; h < last; ++h) row[h] += tape.dy(t, h);
        ++t;
      }
    });
  }

 private:
  context* ctx_;
  std::int64_t hidden_;
  std::vector<dense> tensors_;
};

}  // namespace lm
