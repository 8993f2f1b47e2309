// SPDX-License-Identifier: Apache-2.0
// The counts of a step for balance losses that take those of other micro-batches (batch/step_counts.hpp): one mo::step_counts
// for each layer of a stack that lists such a loss. An engine keeps them from step to step; without one:
//
//   auto counts = stage.make_counts();                             nothing counted, and no step before
//   counts.begin_step();                                           forgets what a step that failed has counted
//   auto tape = stage.forward(weights, chunk, x, y, about, &counts);   each layer takes its own, and then adds this micro-batch
//   counts.end_step(report);                                       what the report has of each layer becomes the last step
//
// counts::prefix is then of the micro-batches whose forward came before on this rank: ascending in every order, so that all
// orders give it alike; of a bidirectional one, those that came the same way. counts::previous_step is of the whole step,
// whatever the order. Both are of all ranks of a stage. Checkpoints do not have them: the first step after one is loaded has no
// step before it.
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/batch/step_counts.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/layer/report.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/losses/loss.hpp>
#include <moiety/pipeline/block.hpp>
#include <moiety/pipeline/model_report.hpp>

#include <cstddef>
#include <cstdint>
#include <map>

namespace moiety::inline MOIETY_ABI {

class stack_counts {
  /// Whether a loss of a block takes the counts of other micro-batches.
  template <class Block> static constexpr bool takes_counts() {
    if constexpr (block_with_losses<Block>)
      return spec_of<typename Block::spec>::losses_type::uses_step_counts;
    else
      return false;
  }

 public:
  template <class... Blocks> static constexpr bool wanted_by = (takes_counts<Blocks>() || ...);

  /// Keeps those of a layer, if a loss of it takes them.
  template <class Block> void keep(int layer, Block const&) {
    if constexpr (wanted_by<Block>) all_.emplace(layer, spec_of<typename Block::spec>::experts);
  }
  /// Null for a layer that has none.
  step_counts* of(int layer) {
    auto const found = all_.find(layer);
    return found == all_.end() ? nullptr : &found->second;
  }

  void begin_step() {
    for (auto& entry : all_) entry.second.restart();
  }
  /// After a forward of a layer.
  template <class Block> void add(int layer, Block const& block, typename Block::tape_type const& tape) {
    if constexpr (wanted_by<Block>) of(layer)->add(block.record(tape).statistics);
  }
  template <class Spec> void end_step(loss_report<Spec> const& report) {
    for (std::size_t l = 0; l < report.layers(); ++l) {
      step_counts* const mine = of(report.number(l));
      if (mine == nullptr) continue;
      mine->restart();
      mine->add(report.layer(l).statistics);
      mine->next_step();
    }
  }
  template <class... Specs> void end_step(model_report<Specs...> const& report) {
    (end_step(report.template of<Specs>()), ...);
  }

 private:
  std::map<int, step_counts> all_;
};

namespace detail {

/// What a call of a stack is about, for one layer.
inline batch of_layer(batch about, int layer, stack_counts* counts = nullptr) {
  require<data_error>(
      about.counts == nullptr,
      "mo::batch{.counts} is of one layer, and a model has several: an engine keeps those of each, and a "
      "stack without one is given stage.make_counts().");
  about.layer = layer;
  if (counts != nullptr) about.counts = counts->of(layer);
  return about;
}

}  // namespace detail

}  // namespace moiety
