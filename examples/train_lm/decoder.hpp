// SPDX-License-Identifier: Apache-2.0
// A layer of the model, between the embedding and the head:
//
//   m = x + attention(rms_norm(x));   y = m + experts(rms_norm(m))
//
// Attention sees the sequences of about.sequences apart, which have one length; by default all rows are one sequence.
#pragma once

#include "attention.hpp"
#include "norm.hpp"
#include "tensors.hpp"

#include <moiety/moiety.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace lm {

/// The length of a batch's sequences; 0 where it has no tokens.
inline std::int64_t sequence_length(mo::batch const& about, std::int64_t tokens) {
  if (tokens == 0 || about.sequences.empty()) return tokens;
  std::int64_t const length = about.sequences[1];
  for (std::size_t s = 1; s < about.sequences.size(); ++s)
    if (about.sequences[s] - about.sequences[s - 1] != length)
      throw mo::data_error("attention needs sequences of one length.");
  return length;
}

template <class Spec, class Deployment> class decoder_block {
  using context = mo::context<Deployment>;
  using experts_type = mo::moe_layer<Spec, Deployment>;
  enum : std::size_t { norm1, qkv, out, norm2 };

  /// Dense parameters, and the experts'.
  template <class Dense, class Experts> struct both {
    Dense dense;
    Experts experts;

    template <class F> void for_each(F&& f) { dense.for_each(f), experts.for_each(f); }
    template <class F> void for_each(F&& f) const { dense.for_each(f), experts.for_each(f); }
    void reset() { dense.reset(), experts.reset(); }
  };

 public:
  using spec = Spec;
  using element = typename context::element;
  using weights_type = both<tensors<context>, typename experts_type::weights_type>;
  using gradients_type = both<tensors<context>, typename experts_type::gradients_type>;

  /// What forward leaves; d_… are for the weights' half of backward.
  struct room {
    typename attention<context>::tape attention{};
    matrix_of<context> inverse1{}, inverse2{}, normed1{}, middle{}, normed2{}, d_normed1{}, d_middle{}, d_normed2{};
  };
  struct tape_type {
    std::unique_ptr<room> dense;
    const_view<context> x;
    typename experts_type::tape_type experts;
  };

  decoder_block(context& ctx, std::int64_t heads, mo::layer_options<Spec> const& options)
      : ctx_(&ctx),
        attention_(ctx, hidden, heads),
        experts_(ctx, options),
        tensors_{{"norm1", 1, hidden, 0, 1.0, 0.0}} {
    for (dense& d : attention_.tensors_of("attention")) tensors_.push_back(std::move(d));
    tensors_.push_back({"norm2", 1, hidden, 0, 1.0, 0.0});
  }

  std::int64_t input_width() const { return hidden; }
  std::int64_t output_width() const { return hidden; }

  weights_type make_weights(mo::seed seed, std::string_view prefix) const {
    return {make_tensors(*ctx_, tensors_, seed, prefix), experts_.make_weights(seed, prefix)};
  }
  gradients_type make_gradients() const { return {{*ctx_, tensors_}, experts_.make_gradients()}; }

  tape_type forward(weights_type const& weights, const_view<context> x, view<context> y, mo::batch const& about) const {
    auto kept = attend(weights.dense, x, about);
    auto experts = experts_.forward(weights.experts, kept->normed2, y, about);
    add(*ctx_, kept->middle, y, y);
    return {std::move(kept), x, std::move(experts)};
  }

  void infer(weights_type const& weights, const_view<context> x, view<context> y, mo::batch const& about) const {
    auto kept = attend(weights.dense, x, about);
    experts_.infer(weights.experts, kept->normed2, y, about);
    add(*ctx_, kept->middle, y, y);
    spare_.give(std::move(kept));
  }

  void backward_input(weights_type const& weights, tape_type& tape, const_view<context> dy, view<context> dx) const {
    room& kept = *tape.dense;
    for (auto* m : {&kept.d_normed1, &kept.d_middle, &kept.d_normed2}) reshape(*ctx_, *m, dy.rows(), hidden);
    experts_.backward_input(weights.experts, tape.experts, dy, kept.d_normed2);
    rms_norm_input(*ctx_, kept.middle, weights.dense[norm2], kept.inverse2, kept.d_normed2, dy, kept.d_middle);
    if (dy.rows() > 0)
      attention_.backward_input(weights.dense[qkv], weights.dense[out], kept.attention, kept.d_middle, kept.d_normed1);
    rms_norm_input(*ctx_, tape.x, weights.dense[norm1], kept.inverse1, kept.d_normed1, kept.d_middle, dx);
  }

  void backward_weights(tape_type& tape, gradients_type& gradients) const {
    room& kept = *tape.dense;
    experts_.backward_weights(tape.experts, gradients.experts);
    rms_norm_gain(*ctx_, kept.middle, kept.inverse2, kept.d_normed2, gradients.dense[norm2]);
    if (tape.x.rows() > 0)
      attention_.backward_weights(kept.normed1, kept.d_middle, kept.attention, gradients.dense[qkv],
                                  gradients.dense[out]);
    rms_norm_gain(*ctx_, tape.x, kept.inverse1, kept.d_normed1, gradients.dense[norm1]);
    spare_.give(std::move(tape.dense));
  }

  mo::layer_record<Spec> record(tape_type const& tape) const { return mo::layer_record<Spec>(tape.experts); }

 private:
  static constexpr std::int64_t hidden = mo::spec_of<Spec>::hidden;

  std::unique_ptr<room> attend(tensors<context> const& weights, const_view<context> x, mo::batch const& about) const {
    auto kept = spare_.take();
    if (kept == nullptr) kept = std::make_unique<room>();
    for (auto* m : {&kept->normed1, &kept->middle, &kept->normed2}) reshape(*ctx_, *m, x.rows(), hidden);
    rms_norm(*ctx_, x, weights[norm1], kept->normed1, kept->inverse1);
    if (std::int64_t const length = sequence_length(about, x.rows()); length > 0)
      attention_.forward(weights[qkv], weights[out], kept->normed1, kept->middle, length, kept->attention);
    add(*ctx_, x, kept->middle, kept->middle);
    rms_norm(*ctx_, kept->middle, weights[norm2], kept->normed2, kept->inverse2);
    return kept;
  }

  context* ctx_;
  attention<context> attention_;
  experts_type experts_;
  std::vector<dense> tensors_;
  mutable spare_rooms<std::unique_ptr<room>> spare_;
};

}  // namespace lm
