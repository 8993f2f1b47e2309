// SPDX-License-Identifier: Apache-2.0
// Dynamic loss scaling, for gradients that travel in fp16: the loss is multiplied by a factor that is as large as does not
// overflow.
//
//   mo::dynamic_loss_scale scale;
//   dy = scale.factor() · ∂loss;  mo::batch{.loss_scale = scale.factor()};       in every micro-batch of the step
//   mo::normalise(list, total_weight * scale.factor());                          once, after reduce_gradients
//   double const norm = mo::global_norm(list, groups);
//   if (scale.update(groups.world, !std::isfinite(norm))) optimiser.step(parameters, rate, norm);
//
// The factor changes in update alone, between steps, so every micro-batch of a step has the same; a tape keeps that of its
// batch. Where any rank overflowed, update is false on every rank and the factor shrinks by `backoff`, to no less than `least`;
// after growth_interval steps in a row without overflow it grows by `growth`, to no more than `greatest`. Powers of two leave
// the bits of gradients alone.
//
// A checkpoint holds value() and clean_steps(), for resume. config_error for options that can never work.
#pragma once

#include <moiety/backend/transport/communicator.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <algorithm>
#include <cstdint>
#include <span>

namespace moiety::inline MOIETY_ABI {

struct loss_scale_options {
  double initial = 0x1p16, growth = 2, backoff = 0.5, least = 1, greatest = 0x1p32;
  std::int64_t growth_interval = 2000;

  void check() const {
    detail::require<config_error>(growth > 1 && growth <= 0x1p32, "growth must be above 1, but is ", growth, '.');
    detail::require<config_error>(backoff > 0 && backoff < 1, "backoff must be between 0 and 1, but is ", backoff, '.');
    detail::require<config_error>(0x1p-126 <= least && least <= initial && initial <= greatest && greatest <= 0x1p127,
                                  "a loss scale needs 2^-126 <= least <= initial <= greatest <= 2^127, but has ", least,
                                  ", ", initial, " and ", greatest, '.');
    detail::require<config_error>(growth_interval >= 1, "growth_interval must be at least 1, but is ", growth_interval,
                                  '.');
  }
};

class dynamic_loss_scale {
 public:
  explicit dynamic_loss_scale(loss_scale_options const& options = {}) : options_(options), value_(options.initial) {
    options_.check();
  }

  double value() const { return value_; }
  /// What losses are multiplied by: the value as float.
  float factor() const { return static_cast<float>(value_); }
  /// Steps since the last overflow or growth.
  std::int64_t clean_steps() const { return clean_steps_; }

  void resume(double value, std::int64_t clean_steps) {
    detail::require<config_error>(value >= options_.least && value <= options_.greatest && clean_steps >= 0,
                                  "a loss scale cannot resume with value ", value, " after ", clean_steps, " steps.");
    value_ = value;
    clean_steps_ = clean_steps;
  }

  /// Ends a step. Whether its gradients may be used: no rank overflowed.
  template <communicator C> bool update(C& world, bool overflow) {
    std::int32_t any = overflow ? 1 : 0;
    world.all_reduce(std::span(&any, 1), [](std::int32_t& a, std::int32_t const& b) { a |= b; });
    if (any != 0) {
      value_ = std::max(options_.least, value_ * options_.backoff);
      clean_steps_ = 0;
    } else if (++clean_steps_ >= options_.growth_interval) {
      value_ = std::min(options_.greatest, value_ * options_.growth);
      clean_steps_ = 0;
    }
    return any == 0;
  }

 private:
  loss_scale_options options_;
  double value_;
  std::int64_t clean_steps_ = 0;
};

}  // namespace moiety
