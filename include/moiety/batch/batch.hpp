// SPDX-License-Identifier: Apache-2.0
// What one call is about. Every member is optional; {} is: one sequence, no padding.
//
//   sequences   offsets of the sequences, 0 = s₀ ≤ s₁ ≤ … ≤ s_B = T: the units of losses over a sequence
//   mask        one byte a token; 0 marks padding, which is routed nowhere and absent from every statistic
//   ids         token ids, for policies that route by them
//   experts     expert ids [T × k], for mo::precomputed. mask, ids and experts lie in memory of the back end
//   first_row   logical index of the first token, so that random numbers do not depend on how a batch was cut
//   step        number of the training step, for random numbers
//   layer       number of the layer in its model, so that layers draw other random numbers; a stack gives it to each
//   weight      the weight of the batch in auxiliary losses; by default its unmasked tokens. In the range of core/exact_sum.hpp
//   loss_scale  times layer_options::loss_scale, multiplies the gradients of auxiliary losses, as the scale of a task loss
//               multiplies dy. The tape keeps it, so it may change from call to call (training/loss_scale.hpp); the same on all
//               ranks
//   counts      of the layer's other micro-batches, for balance losses that ask for them, see batch/step_counts.hpp; of one
//               layer, so that a stack of layers takes none
#pragma once

#include <moiety/batch/token.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace moiety::inline MOIETY_ABI {

class step_counts;

struct batch {
  std::span<std::int64_t const> sequences{};
  std::span<std::uint8_t const> mask{};
  std::span<std::int32_t const> ids{};
  std::span<std::int32_t const> experts{};
  std::int64_t first_row = 0;
  std::int64_t step = 0;
  std::int64_t layer = 0;
  std::optional<double> weight{};
  float loss_scale = 1;
  step_counts const* counts = nullptr;

  /// Number of sequences.
  std::int64_t units() const { return sequences.empty() ? 1 : static_cast<std::int64_t>(sequences.size()) - 1; }

  bool masked(std::int64_t token) const { return !mask.empty() && mask[static_cast<std::size_t>(token)] == 0; }

  /// The tokens of a call that has `slots` of them each.
  token_table tokens(std::int64_t slots) const { return {ids.data(), experts.data(), slots, first_row, step, layer}; }

  /// Throws data_error unless every member fits a call of `tokens` tokens.
  void check(std::int64_t tokens) const {
    auto const fits = [&](auto const& member, char const* name) {
      auto const size = static_cast<std::int64_t>(member.size());
      detail::require<data_error>(size == 0 || size == tokens, "mo::batch{.", name, "} has ", size,
                                  " entries for a call of ", tokens, " tokens.");
    };
    fits(mask, "mask");
    fits(ids, "ids");
    detail::require<data_error>(
        experts.empty() || (tokens > 0 && static_cast<std::int64_t>(experts.size()) % tokens == 0),
        "mo::batch{.experts} has ", experts.size(), " entries for a call of ", tokens,
        " tokens, which is not the same number for each.");
    if (!sequences.empty())
      detail::require<data_error>(
          sequences.front() == 0 && sequences.back() == tokens && std::is_sorted(sequences.begin(), sequences.end()),
          "mo::batch{.sequences} must be offsets that rise from 0 to the ", tokens, " tokens of the call.");
    detail::require<data_error>(!weight || *weight == 0 || (*weight >= 0x1p-64 && *weight < 0x1p62),
                                "mo::batch{.weight} must be 0, or at least 2^-64 and below 2^62, but is ",
                                weight.value_or(0), '.');
    detail::require<data_error>(std::isfinite(loss_scale) && loss_scale > 0,
                                "mo::batch{.loss_scale} must be finite and positive, but is ", loss_scale, '.');
  }
};

}  // namespace moiety
