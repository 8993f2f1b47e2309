// SPDX-License-Identifier: Apache-2.0
// Which layers of a model a rank of a pipeline holds, chunk by chunk, and what every rank knows of all of them.
//
//   detail::stack_layers mine(ctx, split, placement::v);     of this rank: mine.chunks(), mine.stage_of(c), mine.begin(c), …
//   mine.agree(ctx, shapes);                                 shapes of the layers of this rank; a collective of the run
//   mine.all()[layer]                                        then: kind, columns of input and output of any layer
//   mine.input_width(), mine.width(), mine.output_width()    of the model's input, between stages, of its output
//
// A bidirectional placement puts stage s on rank s and on rank ranks − 1 − s. Throws config_error, on every rank, where split
// or placement does not fit the pipeline or is not the same everywhere, and where layers do not fit one another.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/mesh/agreement.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/shape.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moiety::inline MOIETY_ABI::detail {

constexpr std::string_view words_of(placement where) {
  if (where == placement::loop) return "mo::placement::loop";
  return where == placement::v ? "mo::placement::v" : "mo::placement::bidirectional";
}

/// What ranks tell each other of a layer: its kind in a list of block types, negative if they do not hold it.
struct layer_shape {
  std::int64_t kind = -1, input = 0, output = 0;
  friend bool operator==(layer_shape const&, layer_shape const&) = default;
};

class stack_layers {
 public:
  template <class Context, class Split>
  stack_layers(Context& ctx, Split const& split, placement where)
      : split_words_(sentence(split)), where_(where), all_(static_cast<std::size_t>(split.blocks())) {
    int const ranks = ctx.pipeline().size(), rank = ctx.pipeline().rank(), stages = split.stages();
    bool const two_ways = held_twice();
    require<config_error>(two_ways ? stages == ranks : stages % ranks == 0, "a split into ", stages,
                          " stages does not fit a ", two_ways ? "bidirectional " : "", "pipeline of ", ranks,
                          " ranks: ", words_of(where), " takes ",
                          two_ways ? "as many stages as ranks" : "a multiple of that", '.');
    require<config_error>(!two_ways || ranks % 2 == 0, "a bidirectional pipeline has an even number of ranks, not ",
                          ranks, '.');
    require<config_error>(split.blocks() >= 1, "a model needs at least 1 layer.");
    pipeline_shape const shape{.ranks = ranks, .chunks = stages / ranks, .microbatches = 1};
    for (int s = 0; s < stages; ++s) {
      bounds_.push_back(split.first(s));
      int const home = rank_of_stage(where, shape, s);
      if (home != rank && !(two_ways && ranks - 1 - home == rank)) continue;
      firsts_.push_back(numbers_.size());
      stages_.push_back(s);
      for (int l = split.first(s); l < split.first(s) + split.count(s); ++l) numbers_.push_back(l);
    }
    firsts_.push_back(numbers_.size());
  }

  placement placed() const { return where_; }
  int stages() const { return static_cast<int>(bounds_.size()); }
  /// Whether each stage is on two ranks.
  bool held_twice() const { return where_ == placement::bidirectional; }
  int chunks() const { return static_cast<int>(stages_.size()); }
  int stage_of(int chunk) const { return stages_[static_cast<std::size_t>(chunk)]; }
  /// The layers of this rank: their number, and those of a chunk as begin(chunk) … begin(chunk) + count(chunk).
  std::size_t size() const { return numbers_.size(); }
  int number(std::size_t i) const { return numbers_[i]; }
  std::size_t begin(int chunk) const { return firsts_[static_cast<std::size_t>(chunk)]; }
  std::size_t count(int chunk) const { return begin(chunk + 1) - begin(chunk); }

  template <class Context> void agree(Context& ctx, std::span<layer_shape const> mine) {
    auto& world = ctx.world();
    configuration common;
    common.add("the layers of each stage", split_words_);
    common.add("the placement", static_cast<int>(where_));
    common.check(world, "a stack");
    std::size_t const layers = all_.size();
    std::vector<layer_shape> told(layers), heard(layers * static_cast<std::size_t>(world.size()));
    for (std::size_t i = 0; i < mine.size(); ++i) told[static_cast<std::size_t>(numbers_[i])] = mine[i];
    world.template all_gather<layer_shape>(told, heard);
    for (std::size_t i = 0; i < heard.size(); ++i) {
      layer_shape& known = all_[i % layers];
      if (known.kind < 0) known = heard[i];
      require_together<config_error>(world, heard[i].kind < 0 || heard[i] == known, "rank ", i / layers,
                                     " has made layer ", i % layers,
                                     " another block than a rank before it that holds it too.");
    }
    check_widths(world);
  }

  std::vector<layer_shape> const& all() const { return all_; }
  std::int64_t input_width() const { return all_.front().input; }
  std::int64_t output_width() const { return all_.back().output; }
  std::int64_t width() const { return bounds_.size() > 1 ? width_before(1) : all_.front().output; }

 private:
  /// Columns of the rows that enter a stage.
  std::int64_t width_before(std::size_t stage) const {
    auto const first = static_cast<std::size_t>(bounds_[stage]);
    return first < all_.size() ? all_[first].input : output_width();
  }

  template <class Communicator> void check_widths(Communicator& world) const {
    for (std::size_t l = 0; l < all_.size(); ++l) {
      require_together<config_error>(world, all_[l].input >= 0 && all_[l].output >= 1, "layer ", l, " makes rows of ",
                                     all_[l].output, " columns from rows of ", all_[l].input, '.');
      std::int64_t const given = all_[l == 0 ? 0 : l - 1].output;
      require_together<config_error>(world, l == 0 || all_[l].input == given, "layer ", l, " takes rows of ",
                                     all_[l].input, " columns, but layer ", l - 1, " gives rows of ", given, '.');
    }
    for (std::size_t s = 1; s < bounds_.size(); ++s)
      require_together<config_error>(world, width_before(s) == width(),
                                     "rows between stages have one width, but stage 1 takes ", width(),
                                     " columns and stage ", s, ' ', width_before(s), '.');
  }

  std::string split_words_;
  placement where_;
  std::vector<layer_shape> all_;
  std::vector<int> bounds_, numbers_, stages_;  // the first layer of each stage; of this rank's layers, of its chunks
  std::vector<std::size_t> firsts_;             // of each chunk
};

}  // namespace moiety::inline MOIETY_ABI::detail
