// SPDX-License-Identifier: Apache-2.0
// A decoder-only transformer over bytes, with a Mixture-of-Experts block in every layer:
//
//   x₀ = embedding(bytes)
//   m  = x + attention(rms_norm(x));   x′ = m + experts(rms_norm(m))      in each layer
//   logits = rms_norm(x_L) Wᵀ
//
// Everything that a backward pass needs lies in tapes that the model keeps, so a step allocates little.
#pragma once

#include "attention.hpp"
#include "cross_entropy.hpp"
#include "embedding.hpp"
#include "linear.hpp"
#include "norm.hpp"
#include "parameter.hpp"

#include <moiety/moiety.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace lm {

/// A key of its own for a part of the model.
inline mo::seed seed_of(mo::seed seed, std::string const& part) {
  return mo::seed{std::uint64_t{mo::random_word(seed, mo::stream_of(part), 0)} << 32 |
                  mo::random_word(seed, mo::stream_of(part), 1)};
}

template <class Block, class Context> class transformer_layer {
 public:
  using real = typename Context::element;
  using experts_type = mo::moe_layer<Block, typename Context::deployment>;
  struct tape {
    typename rms_norm<Context>::tape norm1, norm2;
    typename attention<Context>::tape attention;
    mo::matrix<real> normed1, middle, normed2;
    std::optional<typename experts_type::tape_type> experts;
  };

  transformer_layer(Context& ctx, std::string const& name, std::int64_t hidden, std::int64_t heads,
                    mo::layer_options<Block> const& options, mo::seed seed)
      : ctx_(&ctx),
        norm1_(ctx, name + ".norm1", hidden),
        norm2_(ctx, name + ".norm2", hidden),
        attention_(ctx, name + ".attention", hidden, heads, seed),
        experts_(ctx, options),
        weights_(experts_.make_weights(seed_of(seed, name))),
        gradients_(experts_.make_gradients()),
        name_(name) {}

  void forward(const_view<Context> x, view<Context> y, mo::batch const& batch, std::int64_t length, tape& saved) {
    attend(x, length, saved);
    saved.experts.emplace(experts_.forward(weights_, saved.normed2, y, batch));
    add(*ctx_, saved.middle, y);
  }

  void infer(const_view<Context> x, view<Context> y, std::int64_t length, tape& saved) {
    attend(x, length, saved);
    experts_.infer(weights_, saved.normed2, y);
    add(*ctx_, saved.middle, y);
  }

  /// d, the gradient of y, becomes the gradient of x; `space` has its shape.
  void backward(const_view<Context> x, tape& saved, view<Context> d, view<Context> space) {
    experts_.backward(weights_, *saved.experts, d, space, gradients_);
    norm2_.backward(saved.middle, saved.norm2, space, d);
    attention_.backward(saved.normed1, saved.attention, d, space);
    norm1_.backward(x, saved.norm1, space, d);
  }

  /// Calls f(name, values, gradients, decayed) for the experts and the router.
  template <class Function> void for_each_expert_parameter(Function&& f) {
    mo::for_each_parameter(weights_, gradients_, [&](mo::parameter const& p, auto values, auto gradients) {
      f(name_ + "." + p.name, values, gradients, /*decayed=*/true);
    });
  }
  template <class Function> void for_each_dense_parameter(Function&& f) {
    norm1_.for_each_parameter(f);
    attention_.for_each_parameter(f);
    norm2_.for_each_parameter(f);
  }
  void reset_expert_gradients() { gradients_.reset(); }

 private:
  void attend(const_view<Context> x, std::int64_t length, tape& saved) const {
    for (auto* m : {&saved.normed1, &saved.middle, &saved.normed2}) reshape(*ctx_, *m, x.rows(), x.cols());
    norm1_.forward(x, saved.normed1, saved.norm1);
    attention_.forward(saved.normed1, saved.middle, length, saved.attention);
    add(*ctx_, x, saved.middle);
    norm2_.forward(saved.middle, saved.normed2, saved.norm2);
  }

  Context* ctx_;
  rms_norm<Context> norm1_, norm2_;
  attention<Context> attention_;
  experts_type experts_;
  typename experts_type::weights_type weights_;
  typename experts_type::gradients_type gradients_;
  std::string name_;
};

struct model_settings {
  std::int64_t layers, hidden, heads;
};

template <class Block, class Context> class language_model {
 public:
  using real = typename Context::element;
  using layer_type = transformer_layer<Block, Context>;

  language_model(Context& ctx, model_settings const& s, mo::layer_options<Block> const& options, mo::seed seed)
      : ctx_(&ctx),
        embedding_(ctx, "embedding", s.hidden, seed),
        norm_(ctx, "norm", s.hidden),
        head_(ctx, "head", s.hidden, vocabulary, 0.1 / std::sqrt(static_cast<double>(s.hidden)), seed),
        tapes_(static_cast<std::size_t>(s.layers)),
        stream_(static_cast<std::size_t>(s.layers + 1)),
        hidden_(s.hidden) {
    for (std::int64_t l = 0; l < s.layers; ++l)
      layers_.push_back(
          std::make_unique<layer_type>(ctx, "layer" + std::to_string(l), s.hidden, s.heads, options, seed));
  }

  void clear_gradients() {
    for_each_dense_parameter([](parameter<real>& p, bool) { p.clear(); });
    for (auto& layer : layers_) layer->reset_expert_gradients();
  }

  /// One micro-batch of sequences of equal length: adds to the gradients, tells the ledger, and returns the sum of the
  /// cross entropies in nats.
  template <class Ledger>
  double accumulate(std::span<byte const> inputs, std::span<byte const> targets, mo::batch const& batch,
                    Ledger& ledger) {
    auto const tokens = static_cast<std::int64_t>(inputs.size());
    std::int64_t const length = tokens / batch.units();
    embed(inputs);
    for (std::size_t l = 0; l < layers_.size(); ++l)
      layers_[l]->forward(stream_[l], stream_[l + 1], batch, length, tapes_[l]);
    project();
    std::vector<double> const nats = cross_entropy(*ctx_, logits_, targets);
    head_.backward(normed_, logits_, space_);
    std::fill(d_.begin(), d_.end(), real{0});
    norm_.backward(stream_.back(), norm_tape_, space_, d_);
    for (std::size_t l = layers_.size(); l-- > 0;) layers_[l]->backward(stream_[l], tapes_[l], d_, space_);
    embedding_.backward(inputs, d_);
    for (std::size_t l = 0; l < layers_.size(); ++l) ledger.record(static_cast<std::int64_t>(l), *tapes_[l].experts);
    return std::accumulate(nats.begin(), nats.end(), 0.0);
  }

  /// The logits after each byte of sequences of equal length; they live until the next call.
  mo::matrix<real> const& infer(std::span<byte const> inputs, std::int64_t length) {
    embed(inputs);
    for (std::size_t l = 0; l < layers_.size(); ++l) layers_[l]->infer(stream_[l], stream_[l + 1], length, tapes_[l]);
    project();
    return logits_;
  }

  /// Calls f(name, values, gradients, decayed) for every parameter of the model.
  template <class Function> void for_each_parameter(Function&& f) {
    for_each_dense_parameter([&](parameter<real>& p, bool decayed) { f(p.name, p.values(), p.gradients(), decayed); });
    for (auto& layer : layers_) layer->for_each_expert_parameter(f);
  }

 private:
  void embed(std::span<byte const> inputs) {
    auto const tokens = static_cast<std::int64_t>(inputs.size());
    for (auto& x : stream_) reshape(*ctx_, x, tokens, hidden_);
    for (auto* m : {&normed_, &d_, &space_}) reshape(*ctx_, *m, tokens, hidden_);
    reshape(*ctx_, logits_, tokens, vocabulary);
    embedding_.forward(inputs, stream_.front());
  }

  void project() {
    norm_.forward(stream_.back(), normed_, norm_tape_);
    head_.forward(normed_, logits_);
  }

  template <class Function> void for_each_dense_parameter(Function&& f) {
    embedding_.for_each_parameter(f);
    for (auto& layer : layers_) layer->for_each_dense_parameter(f);
    norm_.for_each_parameter(f);
    head_.for_each_parameter(f);
  }

  Context* ctx_;
  embedding<Context> embedding_;
  std::vector<std::unique_ptr<layer_type>> layers_;
  rms_norm<Context> norm_;
  linear<Context> head_;
  std::vector<typename layer_type::tape> tapes_;
  std::vector<mo::matrix<real>> stream_;  // the input of each layer, and the last output
  mo::matrix<real> normed_, logits_, d_, space_;
  typename rms_norm<Context>::tape norm_tape_;
  std::int64_t hidden_;
};

}  // namespace lm
