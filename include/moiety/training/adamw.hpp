// SPDX-License-Identifier: Apache-2.0
// AdamW: Adam (Kingma and Ba, 2015) with weight decay apart from the gradient (Loshchilov and Hutter, 2019). In step t = 1, 2, …
//
//   m = β₁ m + (1 − β₁) g         m̂ = m / (1 − β₁ᵗ)
//   v = β₂ v + (1 − β₂) g²        v̂ = v / (1 − β₂ᵗ)
//   w = w − rate · (m̂ / (√v̂ + ε) + decay · w)
//
//   mo::adamw<float> optimiser{{.weight_decay = 0.1}};
//   bool const taken = optimiser.step(parameters, rate, norm);       parameters as in training/replication.hpp
//   optimiser.step(parameters, rate, norm, ctx.engine());            the same bits, by all threads of the host
//
// Weights of 16 bits have a master copy of 32, which is what a step changes; they are its rounding. A norm that is not finite
// skips the step: nothing has changed when step returns false. Arithmetic is element by element, the same for any slice.
//
//   prepare(parameters)   makes the states, as the first step does
//   for_each_state(f)     f(optimiser_state) for each, to save or to fill; with steps() and resume(steps) a checkpoint
//
// config_error for options or a rate that can never work; state_error for other parameters than those it began with, before
// anything is written.
#pragma once

#include <moiety/backend/transport/communicator.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/training/replication.hpp>

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

struct adamw_options {
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0.01;

  void check() const {
    detail::require<config_error>(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1,
                                  "adamw's beta1 and beta2 must be in [0, 1), but are ", beta1, " and ", beta2, '.');
    detail::require<config_error>(epsilon > 0 && std::isfinite(epsilon), "adamw's epsilon must be positive, but is ",
                                  epsilon, '.');
    detail::require<config_error>(weight_decay >= 0 && std::isfinite(weight_decay),
                                  "adamw's weight_decay must be at least 0, but is ", weight_decay, '.');
  }
};

/// Part of a tensor's state: values [first, first + count) of a logical tensor of `size`.
template <std::floating_point S> struct optimiser_state {
  std::string_view tensor;
  std::string_view kind;  // "first_moment", "second_moment" or "master"
  std::int64_t size = 0;
  range_of range;
  std::span<S> values;
};

namespace detail {

/// bᵗ by squaring: the same bits on every machine.
constexpr double power(double b, std::int64_t t) {
  double result = 1;
  for (; t > 0; t /= 2, b *= b)
    if (t % 2 != 0) result *= b;
  return result;
}

/// Runs for_blocks of an engine here, in one piece.
struct in_one_piece {
  template <class F> void for_blocks(std::int64_t count, std::int64_t, F const& f) const {
    if (count > 0) f(0, count, 0);
  }
};

/// The coefficients of one step, and the arithmetic of one element.
template <std::floating_point S> struct adamw_rule {
  S beta1, rest1, beta2, rest2, rate, unbias, epsilon, decay;

  adamw_rule(adamw_options const& o, double learning_rate, std::int64_t t)
      : beta1(static_cast<S>(o.beta1)),
        rest1(static_cast<S>(1 - o.beta1)),
        beta2(static_cast<S>(o.beta2)),
        rest2(static_cast<S>(1 - o.beta2)),
        rate(static_cast<S>(learning_rate / (1 - power(o.beta1, t)))),
        unbias(static_cast<S>(1 / (1 - power(o.beta2, t)))),
        epsilon(static_cast<S>(o.epsilon)),
        decay(static_cast<S>(learning_rate * o.weight_decay)) {}

  S operator()(S w, S g, S& first, S& second) const {
    first = moiety::fma(beta1, first, rest1 * g);
    second = moiety::fma(beta2, second, rest2 * g * g);
    return moiety::fma(-decay, w, w - rate * first / (std::sqrt(second * unbias) + epsilon));
  }
};

/// The states of this rank's part of every tensor.
template <std::floating_point S> class adamw_states {
 public:
  explicit adamw_states(adamw_options const& options) : options_(options) { options_.check(); }

  bool prepared() const { return prepared_; }
  std::int64_t steps() const { return steps_; }
  void resume(std::int64_t steps) {
    require<config_error>(steps >= 0, "an optimiser resumes after 0 steps or more, but was given ", steps, '.');
    steps_ = steps;
  }

  /// slice(tensor) is the part that this rank keeps.
  template <class Parameters, class Slice> void prepare(Parameters const& parameters, Slice const& slice) {
    if (prepared_) return expect_same(parameters);
    std::vector<states> made;
    parameters([&]<class T>(trained_tensor<T> const& t) {
      expect_fitting(t);
      range_of const mine = slice(t);
      auto const count = static_cast<std::size_t>(mine.count);
      states& s =
          made.emplace_back(states{t.name, t.weights.size(), mine, std::vector<S>(count), std::vector<S>(count), {}});
      if constexpr (!std::is_same_v<T, S>)
        for (std::size_t i = 0; i < count; ++i) s.master.push_back(t.weights[static_cast<std::size_t>(mine.first) + i]);
    });
    tensors_ = std::move(made);
    prepared_ = true;
  }

  template <class Parameters, class Engine> void step(Parameters const& parameters, double rate, Engine& engine) {
    std::size_t index = 0;
    adamw_rule<S> const decayed(options_, rate, steps_ + 1);
    adamw_rule<S> whole = decayed;
    whole.decay = 0;
    parameters([&](auto const& t) { update(t, tensors_[index++], t.decays ? decayed : whole, engine); });
    ++steps_;
  }

  template <class F> void for_each_state(F const& f) {
    for (states& s : tensors_) {
      optimiser_state<S> state{s.name, "first_moment", static_cast<std::int64_t>(s.size), s.range, s.first};
      f(std::as_const(state));
      state.kind = "second_moment", state.values = s.second;
      f(std::as_const(state));
      state.kind = "master", state.values = s.master;
      if (s.master.size() == s.first.size()) f(std::as_const(state));
    }
  }

 private:
  struct states {
    std::string name;
    std::size_t size;
    range_of range;
    std::vector<S> first, second, master;  // no master where weights are S themselves
  };

  template <class T> static void expect_fitting(trained_tensor<T> const& t) {
    require<data_error>(t.weights.size() == t.gradients.size(), "tensor ", t.name, " has ", t.weights.size(),
                        " weights and ", t.gradients.size(), " gradients.");
  }

  template <class Parameters> void expect_same(Parameters const& parameters) const {
    std::size_t index = 0;
    parameters([&](auto const& t) {
      expect_fitting(t);
      require<state_error>(
          index < tensors_.size() && tensors_[index].name == t.name && tensors_[index].size == t.weights.size(),
          "the optimiser was given tensor ", t.name, " of ", t.weights.size(), " values at place ", index,
          ", where it began with another.");
      ++index;
    });
    require<state_error>(index == tensors_.size(), "the optimiser was given ", index, " tensors, and began with ",
                         tensors_.size(), '.');
  }

  template <class T, class Engine>
  static void update(trained_tensor<T> const& t, states& s, adamw_rule<S> const& rule, Engine& engine) {
    engine.for_blocks(s.range.count, 8192, [&](std::int64_t begin, std::int64_t end, int) {
      T* const weights = t.weights.data() + s.range.first;
      S const* const gradients = t.gradients.data() + s.range.first;
      S *const first = s.first.data(), *const second = s.second.data(), *const master = s.master.data();
      for (std::int64_t i = begin; i < end; ++i) {
        if constexpr (std::is_same_v<T, S>) {
          weights[i] = rule(weights[i], gradients[i], first[i], second[i]);
        } else {
          master[i] = rule(master[i], gradients[i], first[i], second[i]);
          weights[i] = T(master[i]);
        }
      }
    });
  }

  adamw_options options_;
  std::vector<states> tensors_;
  bool prepared_ = false;  // a rank may have no tensor
  std::int64_t steps_ = 0;
};

inline void check_rate(double rate) {
  require<config_error>(rate >= 0 && std::isfinite(rate), "a learning rate must be finite and at least 0, but is ",
                        rate, '.');
}

}  // namespace detail

template <std::floating_point S> class adamw {
 public:
  explicit adamw(adamw_options const& options = {}) : states_(options) {}

  template <class Parameters> void prepare(Parameters const& parameters) {
    states_.prepare(parameters, [](auto const& t) { return range_of{0, static_cast<std::int64_t>(t.weights.size())}; });
  }

  /// Whether the step was taken; not where the norm is not finite.
  template <class Parameters, class Engine = detail::in_one_piece>
  bool step(Parameters const& parameters, double rate, double norm, Engine&& engine = {}) {
    detail::check_rate(rate);
    if (!std::isfinite(norm)) return false;
    prepare(parameters);
    states_.step(parameters, rate, engine);
    return true;
  }

  std::int64_t steps() const { return states_.steps(); }
  void resume(std::int64_t steps) { states_.resume(steps); }
  template <class F> void for_each_state(F const& f) { states_.for_each_state(f); }

 private:
  detail::adamw_states<S> states_;
};

}  // namespace moiety
