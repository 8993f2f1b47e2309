// SPDX-License-Identifier: Apache-2.0
// Random numbers as a pure function of (seed, stream, logical index): no state, so a value depends neither on the
// layout nor on the order in which ranks or threads ask for it.
//
//   philox4x32      ten rounds of Philox 4×32 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3)
//   normal          standard normal: Wichura's quantile function PPND16 (AS 241) of (u + ½) / 2³², fixed arithmetic
//
// Streams keep parameters apart: stream_of("experts.gate") is one stream, whatever else a model holds.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/hash.hpp>
#include <moiety/core/math.hpp>

#include <concepts>
#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

/// The key of all random numbers of one call.
struct seed {
  std::uint64_t value;
  template <std::integral Integer>
  MOIETY_HD constexpr explicit seed(Integer given) : value(static_cast<std::uint64_t>(given)) {}
};

/// The logical index of a rank's first row.
struct first_row {
  std::int64_t value;
  template <std::integral Integer>
  MOIETY_HD constexpr explicit first_row(Integer given) : value(static_cast<std::int64_t>(given)) {}
};

struct philox_block {
  std::uint32_t word[4];
  MOIETY_HD constexpr std::uint32_t operator[](std::uint64_t i) const { return word[i]; }
  friend constexpr bool operator==(philox_block const&, philox_block const&) = default;
};

MOIETY_HD constexpr philox_block philox4x32(philox_block counter, std::uint32_t key0, std::uint32_t key1) {
  constexpr std::uint64_t multiplier0 = 0xD2511F53u, multiplier1 = 0xCD9E8D57u;
  for (int round = 0; round < 10; ++round) {
    std::uint64_t const product0 = multiplier0 * counter[0], product1 = multiplier1 * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<std::uint32_t>(product0)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

/// Four words for the block of indices [4·block, 4·block + 4) of a stream.
MOIETY_HD constexpr philox_block random_block(seed key, std::uint64_t stream, std::uint64_t block) {
  return philox4x32({static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32),
                     static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)},
                    static_cast<std::uint32_t>(key.value), static_cast<std::uint32_t>(key.value >> 32));
}

MOIETY_HD constexpr std::uint32_t random_word(seed key, std::uint64_t stream, std::uint64_t index) {
  return random_block(key, stream, index / 4)[index % 4];
}

/// The stream of a parameter by its name.
constexpr std::uint64_t stream_of(std::string_view name) { return fnv_1a(name).value(); }

/// The standard normal quantile of (word + ½) / 2³²: monotone, between −6.34 and 6.34.
MOIETY_HD inline double normal_of(std::uint32_t word) {
  auto const horner = [](auto const& coefficients, double at) {
    double value = 0;
    for (double const c : coefficients) value = fma(value, at, c);
    return value;
  };
  double const p = (static_cast<double>(word) + 0.5) * 0x1p-32, q = p - 0.5;
  double const distance = q < 0 ? -q : q;
  if (distance <= 0.425) {
    constexpr double numerator[] = {2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4,
                                    4.5921953931549871457e4, 1.3731693765509461125e4, 1.9715909503065514427e3,
                                    1.3314166789178437745e2, 3.3871328727963666080e0};
    constexpr double denominator[] = {
        5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
        5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0};
    double const r = fma(-q, q, 0.180625);
    return q * horner(numerator, r) / horner(denominator, r);
  }
  constexpr double numerator[] = {7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1,
                                  1.27045825245236838258e0,  3.64784832476320460504e0,  5.76949722146069140550e0,
                                  4.63033784615654529590e0,  1.42343711074968357734e0};
  constexpr double denominator[] = {
      1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
      6.89767334985100004550e-1, 1.67638483018380384940e0,  2.05319162663775882187e0,  1.0};
  double const root = moiety::sqrt(-moiety::log(q < 0 ? p : 1 - p));
  double const magnitude = horner(numerator, root - 1.6) / horner(denominator, root - 1.6);
  return q < 0 ? -magnitude : magnitude;
}

/// The normal at one logical index of a stream.
MOIETY_HD inline double normal(seed key, std::uint64_t stream, std::uint64_t index) {
  return normal_of(random_word(key, stream, index));
}

/// The normals of a stream from one index on: as normal(), with one block of Philox for four values.
class normal_sequence {
 public:
  MOIETY_HD normal_sequence(seed key, std::uint64_t stream, std::uint64_t first)
      : key_(key), stream_(stream), index_(first), block_(random_block(key, stream, first / 4)) {}

  MOIETY_HD double next() {
    double const value = normal_of(block_[index_ % 4]);
    if (++index_ % 4 == 0) block_ = random_block(key_, stream_, index_ / 4);
    return value;
  }

 private:
  seed key_;
  std::uint64_t stream_, index_;
  philox_block block_;
};

}  // namespace moiety
