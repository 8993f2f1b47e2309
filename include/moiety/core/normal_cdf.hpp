// SPDX-License-Identifier: Apache-2.0
// Φ, the chance that a standard normal is at most v, by fixed arithmetic: the inverse of normal_of in random.hpp.
//
//   normal_cdf(v)   relative error below 2⁻⁵⁰, in both tails; 0 and 1 beyond 40, NaN of NaN
//
// Rational approximations of W. J. Cody (Rational Chebyshev approximations for the error function, 1969), in three ranges
// of |v|; the exponential of a tail is taken in two factors, of which the first has an exact argument.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// numerator(at) / denominator(at), coefficients from the highest power down.
template <class Numerator, class Denominator>
MOIETY_HD inline double rational(Numerator const& numerator, Denominator const& denominator, double at) {
  double above = 0, below = 0;
  for (double const c : numerator) above = fma(above, at, c);
  for (double const c : denominator) below = fma(below, at, c);
  return above / below;
}

/// (1 − Φ(v)) exp(v²/2) for v above 0.67.
MOIETY_HD inline double scaled_tail(double v) {
  if (v <= 5.656854249492380) {
    constexpr double above[] = {1.0765576773720192317e-8, 0.39894151208813466764, 8.8831497943883759412,
                                93.506656132177855979,    597.27027639480026226,  2494.5375852903726711,
                                6848.1904505362823326,    11602.651437647350124,  9842.7148383839780218};
    constexpr double below[] = {1.0,
                                22.266688044328115691,
                                235.38790178262499861,
                                1519.377599407554805,
                                6485.558298266760755,
                                18615.571640885098091,
                                34900.952721145977266,
                                38912.003286093271411,
                                19685.429676859990727};
    return rational(above, below, v);
  }
  constexpr double above[] = {0.02307344176494017303, 0.21589853405795699,     0.1274011611602473639,
                              0.022235277870649807,   0.001421619193227893466, 2.9112874951168792e-5};
  constexpr double below[] = {1.0,
                              1.28426009614491121,
                              0.46823821248086512,
                              0.0659881378689285515,
                              0.00378239633202758244,
                              7.29751555083966205e-5};
  constexpr double inverse_root_of_two_pi = 0.39894228040143267794;
  double const square = 1 / (v * v);
  return fma(-square, rational(above, below, square), inverse_root_of_two_pi) / v;
}

}  // namespace detail

MOIETY_HD inline double normal_cdf(double v) {
  double const distance = v < 0 ? -v : v;
  if (!(distance < 40)) return v < 0 ? 0 : (v > 0 ? 1 : v);
  if (distance <= 0.67448975) {
    constexpr double above[] = {0.065682337918207449113, 2.2352520354606839287, 161.02823106855587881,
                                1067.6894854603709582, 18154.981253343561249};
    constexpr double below[] = {1.0, 47.20258190468824187, 976.09855173777669322, 10260.932208618978205,
                                45507.789335026729956};
    return fma(v, detail::rational(above, below, v * v), 0.5);
  }
  double const coarse = static_cast<double>(static_cast<int>(distance * 16)) / 16;  // its square is exact
  double const rest = (distance - coarse) * (distance + coarse);
  double const tail = moiety::exp(coarse * coarse * -0.5) * moiety::exp(rest * -0.5) * detail::scaled_tail(distance);
  return v < 0 ? tail : 1 - tail;
}

}  // namespace moiety
