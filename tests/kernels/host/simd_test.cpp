// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/host/simd.hpp>

#include <doctest/doctest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;
namespace simd = moiety::simd;

namespace {

template <class S> using bits_of = std::conditional_t<sizeof(S) == 4, std::uint32_t, std::uint64_t>;
template <class S> bits_of<S> bits(S value) { return std::bit_cast<bits_of<S>>(value); }

/// Values whose products round: spread over a few binades, both signs.
template <class S> S sample(int i) {
  double const x = std::sin(12.9898 * i + 0.5) * std::ldexp(1.0, i % 5 - 2);
  return static_cast<S>(x);
}

}  // namespace

TEST_CASE_TEMPLATE("fma is mo::fma in each lane", S, float, double) {
  constexpr std::size_t n = simd::lanes<S>;
  for (int round = 0; round < 100; ++round) {
    std::array<S, n> a, b, c, d;
    for (std::size_t i = 0; i < n; ++i) {
      int const at = 3 * (round * simd::lanes<S> + static_cast<int>(i));
      a[i] = sample<S>(at), b[i] = sample<S>(at + 1), c[i] = sample<S>(at + 2);
    }
    simd::store(d.data(), simd::fma(simd::load(a.data()), simd::load(b.data()), simd::load(c.data())));
    for (std::size_t i = 0; i < d.size(); ++i) CHECK(bits(d[i]) == bits(mo::fma(a[i], b[i], c[i])));
  }
}

TEST_CASE_TEMPLATE("a negative zero survives a zero product", S, float, double) {
  std::array<S, simd::lanes<S>> out;
  simd::store(out.data(), simd::fma(simd::broadcast(S{0}), simd::broadcast(S{-1}), simd::broadcast(S{-0.0})));
  for (S const value : out) CHECK(std::signbit(value));
  simd::store(out.data(), simd::fma(simd::broadcast(S{0}), simd::broadcast(S{-1}), simd::zero<S>()));
  for (S const value : out) CHECK(!std::signbit(value));
}

TEST_CASE_TEMPLATE("loads and stores need no alignment", S, float, double) {
  constexpr std::size_t n = simd::lanes<S>;
  std::vector<S> from(2 * n + 1), to(2 * n + 1, S{-1});
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = sample<S>(static_cast<int>(i));
  simd::store(to.data() + 1, simd::load(from.data() + 1));
  CHECK(to.front() == S{-1});
  for (std::size_t i = 1; i <= n; ++i) CHECK(to[i] == from[i]);
  for (std::size_t i = n + 1; i < to.size(); ++i) CHECK(to[i] == S{-1});
}

TEST_CASE("two rows are zipped into pairs, one register or two, and one row with zeros") {
  constexpr int n = simd::lanes<simd::bf16_pair>;
  std::vector<mo::bf16> first, second;  // nothing lies behind them
  for (int i = 0; i < 2 * n; ++i)
    first.push_back(static_cast<mo::bf16>(sample<float>(i))),
        second.push_back(static_cast<mo::bf16>(sample<float>(i + 99)));
  for (bool const both : {true, false}) {
    simd::vec<simd::bf16_pair> low, high;
    simd::load_zipped(first.data(), both ? second.data() : nullptr, low, high);
    auto const one = simd::load_zipped(first.data() + n, both ? second.data() + n : nullptr);
    for (int i = 0; i < n; ++i) {
      auto const pair = [&](int at) {
        auto const place = static_cast<std::size_t>(at);
        return first[place].bits | (both ? std::uint32_t{second[place].bits} << 16 : 0u);
      };
      CHECK(std::uint32_t{low[i]} == pair(i));
      CHECK(std::uint32_t{high[i]} == pair(n + i));
      CHECK(std::uint32_t{one[i]} == pair(n + i));
    }
  }
}

TEST_CASE_TEMPLATE("a partial load reads and a partial store writes only what it names", S, float, double) {
  constexpr std::size_t n = simd::lanes<S>;
  for (std::size_t count = 0; count < n; ++count) {
    std::vector<S> const from(count, S{3});  // the sanitizer sees reads beyond
    std::array<S, n> loaded;
    simd::store(loaded.data(), simd::load_first<S>(from.data(), static_cast<std::int64_t>(count)));
    for (std::size_t i = 0; i < n; ++i) CHECK(loaded[i] == (i < count ? S{3} : S{0}));
    std::array<S, n> to;
    to.fill(S{-1});
    simd::store_first(to.data(), simd::broadcast(S{5}), static_cast<std::int64_t>(count));
    for (std::size_t i = 0; i < n; ++i) CHECK(to[i] == (i < count ? S{5} : S{-1}));
  }
}

TEST_CASE_TEMPLATE("every finite 16-bit value widens as its type does", T, mo::bf16, mo::fp16) {
  constexpr std::size_t n = simd::lanes<float>;
  std::array<T, n> from;
  std::array<float, n> to;
  int wrong = 0;
  for (std::uint32_t base = 0; base < 65536; base += n) {
    for (std::uint32_t i = 0; i < n; ++i) from[i].bits = static_cast<std::uint16_t>(base + i);
    simd::store(to.data(), simd::load_as<float>(from.data()));
    for (std::uint32_t i = 0; i < n; ++i) {
      float const expected = from[i];
      wrong += std::isnan(expected) ? !std::isnan(to[i]) : bits(to[i]) != bits(expected);
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE_TEMPLATE("transpose turns a square", S, float, double) {
  constexpr std::size_t n = simd::lanes<S>;
  std::array<S, n * n> square;
  for (std::size_t i = 0; i < square.size(); ++i) square[i] = static_cast<S>(i);
  simd::square<S> rows;
  for (std::size_t i = 0; i < n; ++i) rows[i] = simd::load(square.data() + i * n);
  simd::transpose<S>(rows);
  for (std::size_t i = 0; i < n; ++i) simd::store(square.data() + i * n, rows[i]);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) CHECK(square[i * n + j] == static_cast<S>(j * n + i));
}
