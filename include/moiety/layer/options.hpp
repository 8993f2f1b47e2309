// SPDX-License-Identifier: Apache-2.0
// The run-time knobs of a layer, as designated initialisers:
//
//   mo::layer_options<mine>{.losses = {mo::load_balance<>{.coefficient = 1e-2f}}, .non_finite = mo::non_finite::sanitise}
//
// router      values of the router's policies
// losses      values of the listed losses; one without a coefficient is measured, not trained
// non_finite  what non-finite logits lead to; by default what the back end prefers
// name        says which layer an error is about
// loss_scale  multiplies the gradients of the losses, as a scaled task loss has its gradient multiplied
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/batch/step_counts.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/layer/spec.hpp>

#include <cmath>
#include <concepts>
#include <cstdint>
#include <optional>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// A copy of this, not a constructor, is a member's default: GCC 12 forgets to emit one where a layer with options is itself the
/// default of a member.
template <class T> inline constexpr T default_of{};

}  // namespace detail

template <class Spec> struct layer_options {
  typename spec_of<Spec>::router_type router = detail::default_of<typename spec_of<Spec>::router_type>;
  typename spec_of<Spec>::losses_type losses = detail::default_of<typename spec_of<Spec>::losses_type>;
  std::optional<moiety::non_finite> non_finite{};
  float loss_scale = 1;
  char const* name = "";

  /// Whether a loss over units of kind Unit has a coefficient, and nothing but the unit's own statistics to go by.
  template <class Unit> bool trains_over() const {
    bool trains = false;
    losses.for_each([&]<class Loss>(Loss const& loss) {
      trains = trains || (std::same_as<typename Loss::unit, Unit> && !uses_step_counts<Loss> && loss.coefficient != 0);
    });
    return trains;
  }

  /// Throws data_error unless a batch brings the counts that a trained loss takes, and any counts are of the layer's experts.
  void check_counts(batch const& about) const {
    bool wanted = false;
    losses.for_each(
        [&]<class Loss>(Loss const& loss) { wanted = wanted || (uses_step_counts<Loss> && loss.coefficient != 0); });
    detail::require<data_error>(
        !wanted || about.counts != nullptr,
        "a loss with counts::prefix or counts::previous_step is trained, and the batch brings no "
        "mo::batch{.counts}.");
    std::int64_t const experts = about.counts == nullptr ? spec_of<Spec>::experts : about.counts->experts();
    detail::require<data_error>(experts == spec_of<Spec>::experts, "mo::batch{.counts} of ", experts,
                                " experts was given to a layer of ", spec_of<Spec>::experts, '.');
  }

  /// Throws config_error where a trained loss would need counts that were not known to an earlier backward.
  void check_accumulation(bool has_backward) const {
    detail::require<config_error>(!has_backward || !trains_over<over::global_batch>(),
                                  "a loss over the global batch cannot be trained under gradient accumulation: its "
                                  "counts are not known when the first backward runs, unless it names "
                                  "counts::prefix or counts::previous_step.");
  }

  /// Throws config_error for a knob that can never work.
  void check() const {
    losses.for_each([](auto const& loss) {
      detail::require<config_error>(std::isfinite(loss.coefficient) && loss.coefficient >= 0, "the coefficient of ",
                                    loss.name, " must be finite and not negative, but is ", loss.coefficient, '.');
    });
    detail::require<config_error>(std::isfinite(loss_scale) && loss_scale > 0,
                                  "loss_scale must be finite and positive, but is ", loss_scale, '.');
    detail::require<config_error>(std::isfinite(router.scale_factor()) && router.scale_factor() != 0,
                                  "the scale of a router must be finite and not 0, but is ", router.scale_factor(),
                                  '.');
    router.for_each_policy([](auto const& policy) {
      if constexpr (requires { policy.check(); }) policy.check();
    });
  }
};

}  // namespace moiety
