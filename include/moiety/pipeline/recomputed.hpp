// SPDX-License-Identifier: Apache-2.0
// A block that keeps less between forward and backward, and computes it again:
//
//   mo::recomputed block{ctx, mo::moe_layer<spec, deployment>{ctx, options}};
//   mo::block_stack<deployment, dense, mo::recomputed<mo::moe_layer<spec, deployment>>> stage{ctx, split, build};
//
// forward drops the tape of the block that it holds, and keeps its record of losses; backward_input runs forward again, with
// the same rows, batch and counts, so that noise, routing, capacity and all gradients come out the same to the bit, and what
// that tape holds is there from then until backward_weights. Statistics are recorded once. Costs one more forward; where the
// block speaks with other ranks in forward, it does so again in backward_input, on all of them.
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/batch/step_counts.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/random.hpp>
#include <moiety/layer/record.hpp>
#include <moiety/pipeline/block.hpp>

#include <cstdint>
#include <memory_resource>
#include <optional>
#include <string_view>
#include <utility>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// What a tape keeps of a block's losses.
template <class Block> struct kept_losses {
  void keep(Block const&, typename Block::tape_type const&) {}
};
template <block_with_losses Block> struct kept_losses<Block> {
  layer_record<typename Block::spec> record{};
  void keep(Block const& block, typename Block::tape_type const& tape) { record = block.record(tape); }
};

template <class Block>
concept packs = requires(Block const& block, typename Block::weights_type& weights) {
  block.pack(weights);
};

/// The name of its spec, for a block with losses.
template <class Block> struct spec_name {};
template <block_with_losses Block> struct spec_name<Block> { using spec = typename Block::spec; };

}  // namespace detail

template <model_block Block> class recomputed : public detail::spec_name<Block> {
  using T = typename Block::element;
  using inner_tape = typename Block::tape_type;

 public:
  using element = T;
  using weights_type = typename Block::weights_type;
  using gradients_type = typename Block::gradients_type;

  struct tape_type {
    matrix_view<T const> x{};
    batch about{};
    std::optional<step_counts> counts{};  // as forward saw them
    detail::kept_losses<Block> losses{};
    std::optional<inner_tape> again{};
    bool used = false;
  };

  template <class Context> recomputed(Context& ctx, Block block) : memory_(&ctx.memory()), block_(std::move(block)) {}

  std::int64_t input_width() const { return block_.input_width(); }
  std::int64_t output_width() const { return block_.output_width(); }
  weights_type make_weights(seed key, std::string_view prefix = {}) const { return block_.make_weights(key, prefix); }
  gradients_type make_gradients() const { return block_.make_gradients(); }
  void pack(weights_type& weights) const requires detail::packs<Block> { block_.pack(weights); }

  tape_type forward(weights_type const& weights, matrix_view<T const> x, matrix_view<T> y,
                    batch const& about = {}) const {
    tape_type tape{.x = x, .about = about};
    if (about.counts != nullptr) tape.counts = *about.counts;
    tape.losses.keep(block_, block_.forward(weights, x, y, about));
    return tape;
  }

  void infer(weights_type const& weights, matrix_view<T const> x, matrix_view<T> y, batch const& about = {}) const {
    block_.infer(weights, x, y, about);
  }

  void backward_input(weights_type const& weights, tape_type& tape, matrix_view<T const> dy, matrix_view<T> dx) const {
    detail::require<state_error>(!tape.used, "backward_input needs a tape after forward, but this one was used.");
    tape.used = true;
    if (tape.counts) tape.about.counts = &*tape.counts;
    {
      std::int64_t const rows = dy.rows(), columns = output_width();
      buffer const room(rows * columns * static_cast<std::int64_t>(sizeof(T)), *memory_);
      matrix_view<T> const y(static_cast<T*>(room.data()), rows, columns);
      tape.again.emplace(block_.forward(weights, tape.x, y, tape.about));
    }
    block_.backward_input(weights, *tape.again, dy, dx);
  }

  void backward_weights(tape_type& tape, gradients_type& gradients) const {
    detail::require<state_error>(tape.again.has_value(), "backward_weights needs a tape after the input half.");
    block_.backward_weights(*tape.again, gradients);
    tape.again.reset();
  }

  /// What forward found; the second one is not counted.
  auto record(tape_type const& tape) const requires block_with_losses<Block> { return tape.losses.record; }

 private:
  std::pmr::memory_resource* memory_;
  Block block_;
};

}  // namespace moiety
