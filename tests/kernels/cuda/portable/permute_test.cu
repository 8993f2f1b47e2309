// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/permute.cuh>

#include <moiety/core/random.hpp>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

enum class skew { uniform, zipf, one_hot };

struct routes {
  std::vector<std::int32_t> ids;
  std::vector<mo::token_state> states;

  routes(std::int64_t tokens, std::int64_t experts, std::int64_t k, skew how, mo::seed key) {
    std::uint64_t next = 0;
    auto const word = [&] { return static_cast<std::int64_t>(mo::random_word(key, 3, next++)); };
    for (std::int64_t t = 0; t < tokens; ++t) {
      states.push_back(word() % 5 == 0 ? static_cast<mo::token_state>(word() % 4) : mo::token_state::routed);
      std::int64_t const first = how == skew::one_hot ? 0
                                 : how == skew::zipf  ? word() % (1 + word() % experts)
                                                      : word() % experts;
      for (std::int64_t j = 0; j < k; ++j) ids.push_back(static_cast<std::int32_t>((first + j) % experts));
    }
  }
};

void check(std::int64_t tokens, std::int64_t experts, std::int64_t k, skew how) {
  std::uint64_t const number = std::random_device{}();
  INFO(tokens, " tokens, ", k, " of ", experts, " experts, seed ", number);
  routes of(tokens, experts, k, how, mo::seed{number});
  auto const size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  std::vector<std::int64_t> starts(size(experts + 1));
  std::vector<std::int32_t> sources(size(tokens * k), -1), positions(size(tokens * k), -9);  // poison is -1
  mo::host_engine cpu{mo::host{.threads = 1}};
  mo::kernels::build_permutation<float>(cpu, {tokens, experts, k, of.ids.data(), nullptr, of.states.data()},
                                        {tokens, experts, k, starts.data(), sources.data(), positions.data()});
  mo::cuda_engine gpu{mo::cuda{}};
  testing::device_values<std::int32_t> d_ids(of.ids), d_sources(tokens * k), d_positions(tokens * k);
  testing::device_values<mo::token_state> d_states(of.states);
  testing::device_values<std::int64_t> d_starts(experts + 1);
  mo::kernels::build_permutation<float>(gpu, {tokens, experts, k, d_ids.data(), nullptr, d_states.data()},
                                        {tokens, experts, k, d_starts.data(), d_sources.data(), d_positions.data()});
  CHECK(d_starts.host() == starts);
  CHECK(d_sources.host() == sources);
  CHECK(d_positions.host() == positions);

  std::vector<std::int32_t> list(size(tokens), -1);
  std::array<std::int64_t, 2> offsets{};
  mo::kernels::list_routed(cpu, of.states.data(), tokens, list.data(), offsets.data());
  testing::device_values<std::int32_t> d_list(tokens);
  testing::device_values<std::int64_t> d_offsets(2);
  mo::kernels::list_routed(gpu, d_states.data(), tokens, d_list.data(), d_offsets.data());
  CHECK(d_list.host() == list);
  CHECK(d_offsets.host() == std::vector<std::int64_t>(offsets.begin(), offsets.end()));
}

}  // namespace

TEST_CASE("a permutation built on a device is that of the host") {
  for (std::int64_t const experts : {1, 3, 8, 40, 128, 160, 383, 384})  // 383: all of the shared memory
    for (std::int64_t const tokens : {0, 1, 37, 600})
      for (skew const how : {skew::uniform, skew::zipf, skew::one_hot})
        check(tokens, experts, std::min<std::int64_t>(experts, tokens == 600 ? 3 : 8), how);
  check(300, 5, 5, skew::uniform);
  check(3000, 2, 2, skew::zipf);
  check(40, 2000, 8, skew::uniform);  // few warps a block
  check(5, 4000, 2, skew::uniform);   // one warp a block
  check(20000, 40, 2, skew::zipf);    // more tokens a block than the least
}

TEST_CASE("the cut of tokens covers them, in blocks that the scratch can count") {
  for (std::int64_t const experts : {1, 8, 383, 384, 1024, 4000})
    for (std::int64_t const tokens : {0, 1, 255, 256, 257, 100000, 2000000000}) {
      auto const cut = mo::kernels::gpu::cut_tokens(tokens, experts);
      CHECK(cut.blocks >= 1);
      CHECK(cut.blocks * cut.each >= tokens);
      CHECK(cut.blocks * experts * 4 <= mo::cuda_engine::scratch_bytes);
      CHECK((2 + cut.warps) * experts * 4 + 128 <= 48 * 1024);  // the sums of 32 warps are static
    }
}

TEST_CASE("what no index can hold is refused") {
  mo::cuda_engine gpu{mo::cuda{}};
  std::int64_t const many = std::int64_t{1} << 30;
  CHECK_THROWS_WITH_AS(mo::kernels::build_permutation<float>(gpu, {many, 8, 2}, {many, 8, 2}),
                       "1073741824 tokens of 2 slots each do not fit a row index of 32 bits.", mo::data_error);
  CHECK_THROWS_WITH_AS(mo::kernels::build_permutation<float>(gpu, {1, 4001, 2}, {1, 4001, 2}),
                       "a permutation on a device has at most 4000 experts, but this one has 4001.", mo::config_error);
}
