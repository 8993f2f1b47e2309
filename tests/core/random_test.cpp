// SPDX-License-Identifier: Apache-2.0
#include <moiety/core/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>

namespace mo = moiety;

TEST_CASE("Philox 4x32-10 gives the published vectors") {
  constexpr std::uint32_t ones = 0xffffffffu;
  static_assert(mo::philox4x32({0, 0, 0, 0}, 0, 0) == mo::philox_block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  static_assert(mo::philox4x32({ones, ones, ones, ones}, ones, ones) ==
                mo::philox_block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(mo::philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0) ==
        mo::philox_block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("words depend on seed, stream and index, in all their bits") {
  auto const word = mo::random_word(mo::seed{1}, 2, 3);
  CHECK(word != mo::random_word(mo::seed{2}, 2, 3));
  CHECK(word != mo::random_word(mo::seed{std::int64_t{1} | (std::int64_t{1} << 40)}, 2, 3));
  CHECK(word != mo::random_word(mo::seed{1}, 3, 3));
  CHECK(word != mo::random_word(mo::seed{1}, 2 | (std::uint64_t{1} << 50), 3));
  CHECK(word != mo::random_word(mo::seed{1}, 2, 3 + (std::uint64_t{1} << 40)));
  CHECK(mo::random_block(mo::seed{1}, 2, 0)[3] == word);
}

TEST_CASE("a normal is the quantile of its word") {
  double previous = -7;
  for (std::uint64_t w = 0; w < (std::uint64_t{1} << 32); w += 4000037) {
    double const z = mo::normal_of(static_cast<std::uint32_t>(w));
    REQUIRE(z > previous);
    previous = z;
    double const p = (static_cast<double>(w) + 0.5) * 0x1p-32;
    double const tail = p < 0.5 ? std::erfc(-z / std::sqrt(2.0)) / 2 : std::erfc(z / std::sqrt(2.0)) / 2;
    REQUIRE(tail == doctest::Approx(p < 0.5 ? p : 1 - p).epsilon(1e-12));
  }
  CHECK(mo::normal_of(0) == doctest::Approx(-6.337957754553789).epsilon(1e-13));
  CHECK(mo::normal_of(0) == -mo::normal_of(0xffffffffu));
}

TEST_CASE("moments of a stream are those of a normal") {
  double sum = 0, square = 0, fourth = 0;
  int const n = 200000;
  for (int i = 0; i < n; ++i) {
    double const z = mo::normal(mo::seed{5}, 9, static_cast<std::uint64_t>(i));
    sum += z, square += z * z, fourth += z * z * z * z;
  }
  CHECK(std::abs(sum / n) < 0.01);
  CHECK(square / n == doctest::Approx(1).epsilon(0.02));
  CHECK(fourth / n == doctest::Approx(3).epsilon(0.05));
}

TEST_CASE("a sequence is the normals one by one, from any start") {
  for (std::uint64_t const first : {0u, 1u, 2u, 3u, 4u, 1000003u}) {
    mo::normal_sequence sequence(mo::seed{8}, 7, first);
    for (std::uint64_t i = 0; i < 11; ++i) CHECK(sequence.next() == mo::normal(mo::seed{8}, 7, first + i));
  }
}

TEST_CASE("streams of names are apart") {
  CHECK(mo::stream_of("") == 0xcbf29ce484222325u);
  CHECK(mo::stream_of("a") == 0xaf63dc4c8601ec8cu);  // FNV-1a
  CHECK(mo::stream_of("experts.up") != mo::stream_of("experts.gate"));
}
