// SPDX-License-Identifier: Apache-2.0
// The last block of the model: logits = rms_norm(x) Wᵀ, W [256 × H].
#pragma once

#include "gemm.hpp"
#include "norm.hpp"
#include "tensors.hpp"
#include "text.hpp"

#include <cmath>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace lm {

template <class Deployment> class head_block {
  using context = mo::context<Deployment>;
  enum : std::size_t { gain, weight };

 public:
  using element = typename context::element;
  using weights_type = tensors<context>;
  using gradients_type = tensors<context>;
  struct tape_type {
    const_view<context> x{}, dy{};
    matrix_of<context> normed{}, d_normed{}, inverse{};
  };

  head_block(context& ctx, std::int64_t hidden)
      : ctx_(&ctx),
        hidden_(hidden),
        tensors_{{"norm", 1, hidden, /*fan_in=*/0, 1.0, 0.0},
                 {"weight", vocabulary, hidden, hidden, 0.0, 0.1 / std::sqrt(static_cast<double>(hidden))}} {}

  std::int64_t input_width() const { return hidden_; }
  std::int64_t output_width() const { return vocabulary; }

  weights_type make_weights(mo::seed seed, std::string_view prefix) const {
    return make_tensors(*ctx_, tensors_, seed, prefix);
  }
  gradients_type make_gradients() const { return {*ctx_, tensors_}; }

  tape_type forward(weights_type const& weights, const_view<context> x, view<context> y, mo::batch const&) const {
    tape_type tape = spare_.take();
    reshape(*ctx_, tape.normed, x.rows(), hidden_);
    rms_norm(*ctx_, x, weights[gain], tape.normed, tape.inverse);
    multiply_nt(*ctx_, one_group(*ctx_, x), tape.normed, weights[weight], y);
    tape.x = x;
    return tape;
  }

  void infer(weights_type const& weights, const_view<context> x, view<context> y, mo::batch const& about) const {
    spare_.give(forward(weights, x, y, about));
  }

  void backward_input(weights_type const& weights, tape_type& tape, const_view<context> dy, view<context> dx) const {
    tape.dy = dy;
    reshape(*ctx_, tape.d_normed, dx.rows(), hidden_);
    multiply_nn(*ctx_, one_group(*ctx_, dy), dy, weights[weight], tape.d_normed);
    rms_norm_input(*ctx_, tape.x, weights[gain], tape.inverse, tape.d_normed, {}, dx);
  }

  void backward_weights(tape_type& tape, gradients_type& gradients) const {
    multiply_tn(*ctx_, one_group(*ctx_, tape.dy), tape.dy, tape.normed, gradients[weight], /*accumulate=*/true);
    rms_norm_gain(*ctx_, tape.x, tape.inverse, tape.d_normed, gradients[gain]);
    spare_.give(std::move(tape));
  }

 private:
  context* ctx_;
  std::int64_t hidden_;
  std::vector<dense> tensors_;
  mutable spare_rooms<tape_type> spare_;
};

}  // namespace lm
