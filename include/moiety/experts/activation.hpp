// SPDX-License-Identifier: Apache-2.0
// Activations: a struct of two static functions, for float and for double.
//
//   silu           v σ(v)
//   gelu           v Φ(v) = v/2 (1 + erf(v/√2))
//   gelu_tanh      v/2 (1 + tanh(√(2/π) (v + 0.044715 v³))) = v σ(2 √(2/π) (v + 0.044715 v³))
//   gelu_quick     v σ(1.702 v)
//   relu           max(v, 0)                       derivative 0 at 0
//   relu_squared   max(v, 0)²
//   identity       v
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>

#include <concepts>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <class A>
concept activation = requires(float f, double d) {
  { A::value(f) } -> std::convertible_to<float>;
  { A::value(d) } -> std::convertible_to<double>;
  { A::derivative(f) } -> std::convertible_to<float>;
  { A::derivative(d) } -> std::convertible_to<double>;
};

struct silu {
  static constexpr std::string_view name = "silu";
  template <std::floating_point S> MOIETY_HD static S value(S v) { return v * logistic(v); }
  template <std::floating_point S> MOIETY_HD static S derivative(S v) {
    S const s = logistic(v);
    return fma(v * s, S{1} - s, s);
  }
};

struct gelu {
  static constexpr std::string_view name = "gelu";
  template <std::floating_point S> MOIETY_HD static S value(S v) { return v * phi(v); }
  template <std::floating_point S> MOIETY_HD static S derivative(S v) {
    constexpr S density_at_0 = static_cast<S>(0.3989422804014326779);  // 1/√(2π)
    return fma(v * density_at_0, moiety::exp(v * v / -2), phi(v));
  }

 private:
  template <std::floating_point S> MOIETY_HD static S phi(S v) {
    constexpr S inverse_root_2 = static_cast<S>(0.7071067811865475244);
    return (S{1} + moiety::erf(v * inverse_root_2)) / 2;
  }
};

struct gelu_tanh {
  static constexpr std::string_view name = "gelu_tanh";
  template <std::floating_point S> MOIETY_HD static S value(S v) {
    return v * logistic(v * fma(cubic<S>, v * v, linear<S>));
  }
  template <std::floating_point S> MOIETY_HD static S derivative(S v) {
    S const s = logistic(v * fma(cubic<S>, v * v, linear<S>));
    S const slope = fma(3 * cubic<S>, v * v, linear<S>);
    return fma(v * slope, s * (S{1} - s), s);
  }

 private:
  template <class S> static constexpr S linear = static_cast<S>(1.5957691216057307117);  // 2 √(2/π)
  template <class S> static constexpr S cubic = static_cast<S>(1.5957691216057307117 * 0.044715);
};

struct gelu_quick {
  static constexpr std::string_view name = "gelu_quick";
  template <std::floating_point S> MOIETY_HD static S value(S v) { return v * logistic(slope<S> * v); }
  template <std::floating_point S> MOIETY_HD static S derivative(S v) {
    S const s = logistic(slope<S> * v);
    return fma(slope<S> * v, s * (S{1} - s), s);
  }

 private:
  template <class S> static constexpr S slope = static_cast<S>(1.702);
};

struct relu {
  static constexpr std::string_view name = "relu";
  template <std::floating_point S> MOIETY_HD static S value(S v) { return v > 0 ? v : S{0}; }
  template <std::floating_point S> MOIETY_HD static S derivative(S v) { return v > 0 ? S{1} : S{0}; }
};

struct relu_squared {
  static constexpr std::string_view name = "relu_squared";
  template <std::floating_point S> MOIETY_HD static S value(S v) { return v > 0 ? v * v : S{0}; }
  template <std::floating_point S> MOIETY_HD static S derivative(S v) { return v > 0 ? 2 * v : S{0}; }
};

struct identity {
  static constexpr std::string_view name = "identity";
  template <std::floating_point S> MOIETY_HD static S value(S v) { return v; }
  template <std::floating_point S> MOIETY_HD static S derivative(S) { return S{1}; }
};

static_assert(activation<silu> && activation<gelu> && activation<gelu_tanh> && activation<gelu_quick>);
static_assert(activation<relu> && activation<relu_squared> && activation<identity>);

}  // namespace moiety
