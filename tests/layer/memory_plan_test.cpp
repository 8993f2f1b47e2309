// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/memory_plan.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <ratio>

namespace mo = moiety;

namespace {

struct spec : mo::layer_spec<mo::dims{.hidden = 8, .ffn = 16, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};
struct by_sequence : spec {
  using losses = mo::losses<mo::load_balance<mo::over::sequence>>;
};
struct limited : spec {
  using capacity = mo::capacity<std::ratio<1>, mo::per::sequence>;
};

}  // namespace

TEST_CASE("buffers are laid out one after another, each aligned") {
  mo::detail::block_layout block;
  CHECK(block.add<float>(1) == 0);
  CHECK(block.add<double>(8) == 64);
  CHECK(block.add<char>(65) == 128);
  CHECK(block.add<char>(0) == 256);
  CHECK(block.add<char>(1) == 256);
  CHECK(block.bytes() == 320);
  block.at_least(320);
  CHECK(block.bytes() == 320);
  block.at_least(321);
  CHECK(block.bytes() == 384);
}

TEST_CASE("the plan of a tape is a constant: bf16 saves 4 T k I bytes of a gated expert") {
  constexpr std::int64_t none = mo::tape_plan<spec, mo::bf16>(mo::tokens{64}, false).block.bytes();
  constexpr std::int64_t saved = mo::tape_plan<spec, mo::bf16>(mo::tokens{64}).block.bytes();
  static_assert(saved - none == 4 * 64 * 2 * 16);
  CHECK(mo::tape_plan<spec, float>(mo::tokens{64}).block.bytes() -
            mo::tape_plan<spec, float>(mo::tokens{64}, false).block.bytes() ==
        8 * 64 * 2 * 16);
}

TEST_CASE("sequences have units of their own only where a loss is over them") {
  CHECK(mo::tape_plan<spec, float>::units(mo::tokens{10, 3}) == 1);
  CHECK(mo::tape_plan<by_sequence, float>::units(mo::tokens{10, 3}) == 4);
}

TEST_CASE("a capacity of each sequence has room for their offsets, where experts' rows are less") {
  CHECK(mo::forward_plan<limited, float>(mo::tokens{1, 100}).block.bytes() == 13 * 64);  // 101 * 8 in whole blocks
  CHECK(mo::forward_plan<limited, float>(mo::tokens{64, 2}).block.bytes() ==
        mo::forward_plan<spec, float>(mo::tokens{64, 2}).block.bytes());
}

TEST_CASE("sizes beyond 2^31 do not wrap") {
  struct wide : mo::layer_spec<mo::dims{.hidden = 7168, .ffn = 2048, .experts = 256}> {
    using router = mo::router<mo::softmax, mo::top_k<8>>;
  };
  constexpr std::int64_t bytes = mo::forward_plan<wide, float>(mo::tokens{1 << 20}).block.bytes();
  CHECK(bytes == std::int64_t{4} * (1 << 20) * 8 * (7168 + 2048));
}
