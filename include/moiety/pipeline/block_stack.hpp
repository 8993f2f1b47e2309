// SPDX-License-Identifier: Apache-2.0
// A model of blocks one after another (pipeline/block.hpp), cut into the stages of a pipeline: what one rank holds of it.
//
//   using model = mo::block_stack<deployment, embedding, dense, mo::moe_layer<spec, deployment>, head>;
//   model stage{ctx, split, build};                            split: mo::split_layers of the whole model
//   model stage{ctx, split, build, mo::placement::v};
//     build(layer) → model::any_block, a variant of the blocks, or one of these; asked for each layer of this rank
//   auto weights = stage.make_weights(mo::seed{3});            the same logical weights whatever the split
//
// It models pipeline_stage (pipeline/stage.hpp): each stage of the schedule that stands on this rank is a chunk. Parameters are
// named layers.N.…, N counted in the whole model; one that is tied keeps its own name, under which other layers hold it too, as
// a head the matrix of an embedding (layer/shared_parameters.hpp). Under placement::bidirectional two ranks hold each stage.
// Gradients of what is held more than once are summed at the end of a step.
//
// What blocks with losses of one spec find is reported as loss_report<spec>, of several as model_report
// (pipeline/model_report.hpp); a model without losses has no report. What a layer finds wrong with its data is a data_error
// that names the layer.
//
// Made by every rank of the run together: which block each layer is, and of which widths, is then known to all. Throws
// config_error where split, placement and blocks do not fit the pipeline or one another, see pipeline/stack_layers.hpp.
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/random.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/shared_parameters.hpp>
#include <moiety/mesh/context.hpp>
#include <moiety/pipeline/block.hpp>
#include <moiety/pipeline/ledger.hpp>
#include <moiety/pipeline/model_report.hpp>
#include <moiety/pipeline/stack_counts.hpp>
#include <moiety/pipeline/stack_layers.hpp>
#include <moiety/pipeline/stack_of.hpp>
#include <moiety/pipeline/stage.hpp>
#include <moiety/schedule/order.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace moiety::inline MOIETY_ABI {

template <class Deployment, model_block... Blocks> class block_stack {
  using T = detail::element_t<Deployment>;
  using matrix_type = typename context<Deployment>::backend::template matrix<T>;
  using specs = detail::specs_of<Blocks...>;
  template <std::size_t K> using block_type = std::tuple_element_t<K, std::tuple<Blocks...>>;
  static_assert((std::same_as<typename Blocks::element, T> && ...),
                "every block of a stack computes in the element of its deployment.");
  static_assert(((block_with_losses<Blocks> || !detail::block_names_spec<Blocks>)&&...),
                "a block that names a spec has record(tape).");

 public:
  using element = T;
  using any_block = std::variant<Blocks...>;
  using weights_type = stack_of<typename Blocks::weights_type...>;
  using gradients_type = stack_of<typename Blocks::gradients_type...>;

  /// The tapes of a chunk's layers, with what lies between these.
  struct tape_type {
    int chunk = 0;
    std::vector<std::variant<typename Blocks::tape_type...>> layers{};
    std::vector<matrix_type> between{}, gradients{};
  };

  template <class Split, class Build>
  block_stack(context<Deployment>& ctx, Split const& split, Build&& build, placement where = placement::loop)
      : ctx_(&ctx), layers_(ctx, split, where) {
    std::vector<detail::layer_shape> shapes;
    blocks_.reserve(layers_.size());
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      blocks_.emplace_back(build(layers_.number(i)));
      auto const kind = static_cast<std::int64_t>(blocks_.back().index());
      std::visit([&](auto const& b) { shapes.push_back({kind, b.input_width(), b.output_width()}); }, blocks_.back());
    }
    layers_.agree(ctx, shapes);
  }

  int chunks() const { return layers_.chunks(); }
  int stage_of(int chunk) const { return layers_.stage_of(chunk); }
  int stages() const { return layers_.stages(); }
  placement placed() const { return layers_.placed(); }
  /// Layers of the whole model, and the numbers of those that have losses of a spec.
  int layers() const { return static_cast<int>(layers_.all().size()); }
  template <class Spec> std::vector<int> layers_of() const {
    std::vector<int> numbers;
    for (int l = 0; l < layers(); ++l)
      with_kind(static_cast<std::size_t>(layers_.all()[static_cast<std::size_t>(l)].kind), [&]<std::size_t K>() {
        if constexpr (block_with_losses<block_type<K>>)
          if (std::same_as<typename block_type<K>::spec, Spec>) numbers.push_back(l);
      });
    return numbers;
  }
  /// Columns of the rows between stages, of the model's input and of its output.
  std::int64_t width() const { return layers_.width(); }
  std::int64_t input_width() const { return layers_.input_width(); }
  std::int64_t output_width() const { return layers_.output_width(); }

  weights_type make_weights(seed key) const {
    weights_type all(layers_.held_twice());
    for (std::size_t i = 0; i < blocks_.size(); ++i)
      at(i, [&]<std::size_t K>(block_type<K> const& block) {
        int const number = layers_.number(i);
        all.template add<K>(number, block.make_weights(key, weights_type::prefix(number)));
      });
    return all;
  }
  gradients_type make_gradients() const {
    gradients_type all(layers_.held_twice());
    for (std::size_t i = 0; i < blocks_.size(); ++i)
      at(i, [&]<std::size_t K>(block_type<K> const& block) {
        all.template add<K>(layers_.number(i), block.make_gradients());
      });
    return all;
  }

  /// After every change of weights, where blocks keep these in a packed layout too: block.pack(weights) of those that have it.
  void pack(weights_type& weights) const {
    for (std::size_t i = 0; i < blocks_.size(); ++i)
      at(i, [&]<std::size_t K>([[maybe_unused]] block_type<K> const& block) {
        if constexpr (requires { block.pack(weights.template get<K>(i)); }) block.pack(weights.template get<K>(i));
      });
  }

  /// Counts of the layers of this rank whose losses take them, see pipeline/stack_counts.hpp.
  stack_counts make_counts() const requires stack_counts::wanted_by<Blocks...> {
    stack_counts all;
    for (std::size_t i = 0; i < blocks_.size(); ++i)
      at(i, [&]<std::size_t K>(block_type<K> const& block) { all.keep(layers_.number(i), block); });
    return all;
  }

  tape_type forward(weights_type const& weights, int chunk, matrix_view<T const> x, matrix_view<T> y,
                    batch const& about, stack_counts* counts = nullptr) const {
    tape_type tape{chunk};
    tape.between.reserve(layers_.count(chunk));
    tape.layers.reserve(layers_.count(chunk));
    through(chunk, x, y, [&]<std::size_t K>(block_type<K> const& block, std::size_t i, bool last, auto in) {
      if (!last) tape.between.push_back(ctx_->matrix(x.rows(), block.output_width()));
      matrix_view<T> const out = last ? y : tape.between.back().view();
      tape.layers.emplace_back(
          std::in_place_index<K>,
          block.forward(weights.template get<K>(i), in, out, detail::of_layer(about, layers_.number(i), counts)));
      if (counts != nullptr) counts->add(layers_.number(i), block, std::get<K>(tape.layers.back()));
      return out;
    });
    return tape;
  }

  void infer(weights_type const& weights, int chunk, matrix_view<T const> x, matrix_view<T> y,
             batch const& about) const {
    matrix_type rooms[2];
    through(chunk, x, y, [&]<std::size_t K>(block_type<K> const& block, std::size_t i, bool last, auto in) {
      matrix_type& room = rooms[i % 2];
      if (!last && room.cols() != block.output_width()) room = ctx_->matrix(x.rows(), block.output_width());
      matrix_view<T> const out = last ? y : room.view();
      block.infer(weights.template get<K>(i), in, out, detail::of_layer(about, layers_.number(i)));
      return out;
    });
  }

  void backward_input(weights_type const& weights, tape_type& tape, matrix_view<T const> dy, matrix_view<T> dx) const {
    std::size_t const first = layers_.begin(tape.chunk), layers = layers_.count(tape.chunk);
    if (layers == 0) return detail::pass_rows(ctx_->memory(), dy, dx);
    tape.gradients.reserve(layers);
    for (std::size_t l = layers; l-- > 0;)
      at(first + l, [&]<std::size_t K>(block_type<K> const& block) {
        matrix_view<T const> const from = l + 1 == layers ? dy : matrix_view<T const>(tape.gradients.back().view());
        if (l > 0) tape.gradients.push_back(ctx_->matrix(dy.rows(), block.input_width()));
        block.backward_input(weights.template get<K>(first + l), std::get<K>(tape.layers[l]), from,
                             l > 0 ? tape.gradients.back().view() : dx);
      });
  }

  void backward_weights(tape_type& tape, gradients_type& gradients) const {
    gradients.before_more(ctx_->memory());
    std::size_t const first = layers_.begin(tape.chunk);
    for (std::size_t l = 0; l < tape.layers.size(); ++l)
      at(first + l, [&]<std::size_t K>(block_type<K> const& block) {
        block.backward_weights(std::get<K>(tape.layers[l]), gradients.template get<K>(first + l));
      });
  }

  /// Gradients of parameters that are tied, or in both copies of a stage, become the sums over all that hold them: the same bits
  /// whatever the split. At the end of a step; a collective of the pipeline.
  void unite(gradients_type& gradients) const {
    gradients.before_more(ctx_->memory());
    gradients.unite(shared_parameters(ctx_->pipeline(), gradients, ctx_->memory()));
  }

  /// What losses are recorded in: of the whole model.
  auto make_ledger(context<Deployment>& ctx) const requires(specs::count > 0) {
    return detail::ledger_of_layers(ctx, *this, specs{});
  }

  /// The losses of a chunk's layers.
  template <class Ledger> void record(tape_type const& tape, Ledger& ledger) const requires(specs::count > 0) {
    std::size_t const first = layers_.begin(tape.chunk);
    for (std::size_t l = 0; l < tape.layers.size(); ++l)
      at(first + l, [&]<std::size_t K>(block_type<K> const& block) {
        if constexpr (block_with_losses<block_type<K>>)
          ledger.record(layers_.number(first + l), block.record(std::get<K>(tape.layers[l])));
      });
  }

 private:
  /// f.operator()<K>() of a kind known when running.
  template <class F> static void with_kind(std::size_t kind, F const& f) {
    [&]<std::size_t... K>(std::index_sequence<K...>) { ((kind == K ? f.template operator()<K>() : void()), ...); }
    (std::make_index_sequence<sizeof...(Blocks)>{});
  }
  /// f.operator()<K>(block) of a layer of this rank, whose kind is K.
  template <class F> void at(std::size_t i, F const& f) const {
    with_kind(blocks_[i].index(), [&]<std::size_t K>() { f.template operator()<K>(std::get<K>(blocks_[i])); });
  }

  /// layer<K>(block, index, whether it is the last, its input) → its output, for each of a chunk; without any, y is x.
  template <class F> void through(int chunk, matrix_view<T const> x, matrix_view<T> y, F const& layer) const {
    std::size_t const begin = layers_.begin(chunk), end = begin + layers_.count(chunk);
    if (begin == end) return detail::pass_rows(ctx_->memory(), x, y);
    for (std::size_t i = begin; i < end; ++i)
      at(i, [&]<std::size_t K>(block_type<K> const& block) {
        try {
          x = layer.template operator()<K>(block, i, i + 1 == end, x);
        } catch (data_error const& error) {
          throw data_error(detail::sentence("layer ", layers_.number(i), ": ", error.what()));
        }
      });
  }

  context<Deployment>* ctx_;
  detail::stack_layers layers_;
  std::vector<any_block> blocks_;
};

}  // namespace moiety
