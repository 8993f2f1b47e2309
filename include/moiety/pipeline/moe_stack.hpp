// SPDX-License-Identifier: Apache-2.0
// A model of equal MoE layers, one after another, cut into the stages of a pipeline: what one rank holds of it.
//
//   mo::moe_stack<block, deployment> stage{ctx, split};                  split: mo::split_layers of the whole model
//   mo::moe_stack<block, deployment> stage{ctx, split, options, mo::placement::v};
//   auto weights = stage.make_weights(mo::seed{3});                      the same logical weights whatever the split
//
// Parameters are named layers.N.…, N counted in the whole model. It models pipeline_stage (pipeline/stage.hpp): each stage of
// the schedule that stands on this rank is a chunk. Throws config_error for a split that does not fit the pipeline's ranks.
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/random.hpp>
#include <moiety/layer/moe_layer.hpp>
#include <moiety/pipeline/ledger.hpp>
#include <moiety/pipeline/stage.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/partition.hpp>
#include <moiety/schedule/shape.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

/// What the layers of a rank hold, each with its number in the model.
template <class Part> class stack_of {
 public:
  void add(int layer, Part part) {
    numbers_.push_back(layer);
    parts_.push_back(std::move(part));
  }
  std::size_t size() const { return parts_.size(); }
  int number(std::size_t i) const { return numbers_[i]; }
  Part& operator[](std::size_t i) { return parts_[i]; }
  Part const& operator[](std::size_t i) const { return parts_[i]; }
  static std::string prefix(int layer) { return "layers." + std::to_string(layer) + '.'; }

  /// f(parameter, values) for each of every layer, by its name in the model.
  template <class F> void for_each(F&& f) { visit(*this, f); }
  template <class F> void for_each(F&& f) const { visit(*this, f); }

  /// Of gradients: the next backward overwrites.
  void reset() requires requires(Part& part) { part.reset(); }
  {
    for (Part& part : parts_) part.reset();
  }

 private:
  template <class Self, class F> static void visit(Self& self, F& f) {
    for (std::size_t i = 0; i < self.size(); ++i)
      self.parts_[i].for_each([&](parameter p, auto values) {
        p.name = prefix(self.numbers_[i]) + p.name;
        f(p, values);
      });
  }

  std::vector<int> numbers_;
  std::vector<Part> parts_;
};

template <class Spec, class Deployment = deployment<>> class moe_stack {
  using layer_type = moe_layer<Spec, Deployment>;
  using T = detail::element_t<Deployment>;
  using matrix_type = typename context<Deployment>::backend::template matrix<T>;

 public:
  using spec = Spec;
  using element = T;
  using weights_type = stack_of<typename layer_type::weights_type>;
  using gradients_type = stack_of<typename layer_type::gradients_type>;

  /// The tapes of a chunk's layers, with what lies between these.
  struct tape_type {
    int chunk = 0;
    std::vector<typename layer_type::tape_type> layers{};
    std::vector<matrix_type> between{}, gradients{};
  };

  template <class Split>
  moe_stack(context<Deployment>& ctx, Split const& split, layer_options<Spec> const& options = {},
            placement where = placement::loop)
      : ctx_(&ctx), layers_(split.blocks()) {
    int const ranks = ctx.pipeline().size(), stages = split.stages();
    detail::require<config_error>(stages % ranks == 0, "a split into ", stages, " stages does not fit a pipeline of ",
                                  ranks, " ranks.");
    pipeline_shape const shape{.ranks = ranks, .chunks = stages / ranks, .microbatches = 1};
    for (int s = 0; s < stages; ++s) {
      if (rank_of_stage(where, shape, s) != ctx.pipeline().rank()) continue;
      firsts_.push_back(numbers_.size());
      stages_.push_back(s);
      for (int l = split.first(s); l < split.first(s) + split.count(s); ++l) {
        numbers_.push_back(l);
        parts_.emplace_back(ctx, options);
      }
    }
    firsts_.push_back(numbers_.size());
  }

  int chunks() const { return static_cast<int>(firsts_.size()) - 1; }
  int stage_of(int chunk) const { return stages_[static_cast<std::size_t>(chunk)]; }
  /// Layers of the whole model.
  int layers() const { return layers_; }
  static constexpr std::int64_t width() { return spec_of<Spec>::hidden; }

  weights_type make_weights(seed key) const {
    weights_type all;
    for (std::size_t i = 0; i < parts_.size(); ++i)
      all.add(numbers_[i], parts_[i].make_weights(key, weights_type::prefix(numbers_[i])));
    return all;
  }
  gradients_type make_gradients() const {
    gradients_type all;
    for (std::size_t i = 0; i < parts_.size(); ++i) all.add(numbers_[i], parts_[i].make_gradients());
    return all;
  }

  tape_type forward(weights_type const& weights, int chunk, matrix_view<T const> x, matrix_view<T> y,
                    batch const& about) const {
    tape_type tape{chunk};
    tape.between.reserve(count(chunk));
    through(chunk, x, y, [&](std::size_t i, bool last, matrix_view<T const> in) {
      if (!last) tape.between.push_back(ctx_->matrix(x.rows(), width()));
      matrix_view<T> const out = last ? y : tape.between.back().view();
      tape.layers.push_back(parts_[i].forward(weights[i], in, out, about));
      return out;
    });
    return tape;
  }

  void infer(weights_type const& weights, int chunk, matrix_view<T const> x, matrix_view<T> y,
             batch const& about) const {
    matrix_type rooms[2] = {ctx_->matrix(x.rows(), width()), ctx_->matrix(x.rows(), width())};
    through(chunk, x, y, [&](std::size_t i, bool last, matrix_view<T const> in) {
      matrix_view<T> const out = last ? y : rooms[i % 2].view();
      parts_[i].infer(weights[i], in, out, about);
      return out;
    });
  }

  void backward_input(weights_type const& weights, tape_type& tape, matrix_view<T const> dy, matrix_view<T> dx) const {
    std::size_t const first = begin(tape.chunk), layers = count(tape.chunk);
    if (layers == 0) return copy(dy, dx);
    tape.gradients.reserve(layers);
    for (std::size_t l = layers; l-- > 0;) {
      matrix_view<T const> const from = l + 1 == layers ? dy : matrix_view<T const>(tape.gradients.back().view());
      if (l > 0) tape.gradients.push_back(ctx_->matrix(dy.rows(), width()));
      parts_[first + l].backward_input(weights[first + l], tape.layers[l], from,
                                       l > 0 ? tape.gradients.back().view() : dx);
    }
  }

  void backward_weights(tape_type& tape, gradients_type& gradients) const {
    std::size_t const first = begin(tape.chunk);
    for (std::size_t l = 0; l < tape.layers.size(); ++l)
      parts_[first + l].backward_weights(tape.layers[l], gradients[first + l]);
  }

  /// The losses of a chunk's layers, to a ledger of the whole model.
  void record(tape_type const& tape, loss_ledger<Spec>& ledger) const {
    for (std::size_t l = 0; l < tape.layers.size(); ++l) ledger.record(numbers_[begin(tape.chunk) + l], tape.layers[l]);
  }

 private:
  std::size_t begin(int chunk) const { return firsts_[static_cast<std::size_t>(chunk)]; }
  std::size_t count(int chunk) const { return begin(chunk + 1) - begin(chunk); }

  static void copy(matrix_view<T const> from, matrix_view<T> to) {
    for (std::int64_t i = 0; i < from.rows(); ++i) std::copy_n(from.row(i), from.cols(), to.row(i));
  }

  /// layer(index, whether it is the last, its input) → its output, for each layer of a chunk; without any, y is x.
  template <class F> void through(int chunk, matrix_view<T const> x, matrix_view<T> y, F const& layer) const {
    if (count(chunk) == 0) return copy(x, y);
    for (std::size_t i = begin(chunk); i < begin(chunk + 1); ++i) x = layer(i, i + 1 == begin(chunk + 1), x);
  }

  context<Deployment>* ctx_;
  int layers_;
  std::vector<int> numbers_, stages_;  // of each layer, of each chunk
  std::vector<std::size_t> firsts_;    // of each chunk
  std::vector<layer_type> parts_;
};

}  // namespace moiety
