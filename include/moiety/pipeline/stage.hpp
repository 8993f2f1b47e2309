// SPDX-License-Identifier: Apache-2.0
// What a pipeline engine runs: the part of a model that one rank holds, as one or more chunks of consecutive layers. Chunk c
// is the c-th of the schedule's stages that stand on this rank.
//
//   auto tape = stage.forward(weights, chunk, x, y, about);       x, y [T × width()]; y is overwritten
//   stage.backward_input(weights, tape, dy, dx);                  dx is overwritten
//   stage.backward_weights(tape, gradients);                      gradients are added to
//   stage.infer(weights, chunk, x, y, about);                     nothing kept
//   stage.width(), stage.chunks()                                 of a row; how many chunks there are on this rank
//   stage.stage_of(chunk)                                         which stage of the schedule a chunk is: ascending
//
// A tape refers to x, which lives unmodified until backward_weights has returned; dy does too. A stage of layers with losses also
// names their spec, and a step then returns their report:
//
//   using spec = block;
//   stage.layers()                                                how many of these layers the whole model has
//   stage.record(tape, ledger)                                    ledger.record(layer, …) for each that the tape is of
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/pipeline/ledger.hpp>

#include <concepts>
#include <cstdint>

namespace moiety::inline MOIETY_ABI {

template <class S>
concept pipeline_stage = requires(S const& stage, typename S::weights_type const& weights,
                                  typename S::gradients_type& gradients, typename S::tape_type& tape,
                                  matrix_view<typename S::element const> in, matrix_view<typename S::element> out,
                                  batch const& about) {
  { stage.width() } -> std::convertible_to<std::int64_t>;
  { stage.chunks() } -> std::convertible_to<int>;
  { stage.stage_of(0) } -> std::convertible_to<int>;
  { stage.forward(weights, 0, in, out, about) } -> std::same_as<typename S::tape_type>;
  stage.backward_input(weights, tape, in, out);
  stage.backward_weights(tape, gradients);
  stage.infer(weights, 0, in, out, about);
};

template <class S>
concept records_losses = pipeline_stage<S> &&
    requires(S const& stage, typename S::tape_type const& tape, loss_ledger<typename S::spec>& ledger) {
  { stage.layers() } -> std::convertible_to<std::int64_t>;
  stage.record(tape, ledger);
};

namespace detail {
template <class S>
concept names_spec = requires {
  typename S::spec;
};
}  // namespace detail

}  // namespace moiety
