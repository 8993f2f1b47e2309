// SPDX-License-Identifier: Apache-2.0
// The CPU run of what only sm_90a has: how late things happen, and that mistakes are told.
#include <moiety/kernels/cuda/sm90/instructions.cuh>

#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/sm90/tensor_map.cuh>

#include <cuda_runtime.h>

#include <doctest/doctest.h>
#include <cuda_on_cpu/last_words.hpp>
#include <kernels/cuda/sm90/cases.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace emulator_tests {

namespace mo = moiety;
using namespace moiety::kernels;
using namespace moiety::kernels::sm90;
using testing::device_values;
constexpr auto k_first = tile_order::k_first;

template <class... P, class... A> std::string fate(void (*kernel)(P...), dim3 block, std::size_t shared, A... given) {
  return last_words([=] {
    launch(kernel, 1, block, shared, nullptr, static_cast<P>(given)...);
    cudaDeviceSynchronize();
  });
}

enum class barriers {
  right,
  not_made,
  not_published,
  no_sync,
  arrival_too_many,
  made_twice,
  overwritten,
  no_arrival,
  no_bytes,
  odd_place
};

__global__ void count(barriers how) {
  auto* const b = reinterpret_cast<barrier*>(testing::tiles());
  bool const first = threadIdx.x == 0;
  if (first && how == barriers::odd_place) init_barrier(reinterpret_cast<barrier*>(testing::tiles() + 4), 1);
  if (first && how != barriers::not_made) {
    init_barrier(b, 64);
    if (how == barriers::made_twice) init_barrier(b, 64);
    if (how != barriers::not_published) publish_barriers();
  }
  if (how != barriers::no_sync) __syncthreads();
  if (first && how == barriers::overwritten) *b = 0;
  for (unsigned phase = 0; phase < 3; ++phase) {
    bool const bytes = first && phase == 2 && (how == barriers::no_bytes || how == barriers::arrival_too_many);
    if (!first || phase < 2 || how != barriers::no_arrival) arrive_expecting(b, bytes ? 16 : 0);
    if (phase == 2 && how == barriers::arrival_too_many) __syncthreads(), arrive(b);
    if (!bytes && (phase < 2 || how != barriers::no_bytes)) wait_phase(b, phase % 2);
  }
}

TEST_CASE("mistakes with barriers are told") {
  fresh const state;
  knobs.seed = 0;  // the maker comes first
  auto const told = [](barriers how, std::string const& sentence) {
    std::string const words = fate(&count, 64, 2048, how);
    INFO(sentence, " | ", words);
    CHECK(contains(words, sentence));
  };
  CHECK(fate(&count, 64, 2048, barriers::right) == "");
  told(barriers::not_made, "it uses a barrier that has not been made");
  told(barriers::not_published, "it uses a barrier that has not been published");
  told(barriers::no_sync, "without a barrier of the block in between");
  told(barriers::arrival_too_many, "at a barrier whose 64 arrivals have come, but 16 bytes have not");
  told(barriers::made_twice, "it makes a barrier where there is one");
  told(barriers::overwritten, "it uses a barrier that has been overwritten");
  told(barriers::no_arrival, "deadlock: it waits for 1 arrivals and 0 bytes of phase 2 of the barrier at byte ");
  told(barriers::no_bytes, "its block ended without 0 arrivals and 16 bytes of phase 2 of the barrier at byte ");
  told(barriers::odd_place, "it makes a barrier at no multiple of 8 bytes");
}

enum class boxes { right, odd_place, beyond, other_rank, not_awaited, twice, no_map, not_expected };

/// Two boxes of 8 rows. out: an element before its box is waited for, and after.
__global__ void copy(tensor_map const __grid_constant__ map, boxes how, std::uint16_t* out) {
  std::byte* const to = testing::tiles();
  auto* const b = reinterpret_cast<barrier*>(to + 2048);
  tensor_map const none{};
  if (threadIdx.x == 0) {
    init_barrier(b, 1);
    publish_barriers();
    load_box(how == boxes::odd_place ? to + 128 : to, how == boxes::no_map ? none : map, b, 0, 1);
    if (how == boxes::other_rank) load_box(to + 1024, map, b, 0, 0, 0);
    if (how != boxes::not_expected)
      load_box(how == boxes::twice ? to : how == boxes::beyond ? to + 2048 : to + 1024, map, b, 0, 2);
    arrive_expecting(b, 2 * 1024);
  }
  __syncthreads();
  if (how == boxes::not_awaited) return;
  if (threadIdx.x == 0) std::memcpy(out, to, 2);
  wait_phase(b, 0);
  if (threadIdx.x == 0) std::memcpy(out + 1, to, 2);
  if (threadIdx.x == 0) std::memcpy(out + 2, to + 1024, 2);
}

TEST_CASE("boxes come late, and mistakes with them are told") {
  std::vector<std::uint16_t> elements(10 * 64);
  for (std::size_t i = 0; i < elements.size(); ++i) elements[i] = static_cast<std::uint16_t>(i);
  device_values<std::uint16_t> const there(elements);
  auto const map = make_tensor_map(mapped_rows{there.data(), 10, 64, 64, 8});
  for (unsigned seed = 0; seed < 8; ++seed) {
    fresh const state;
    knobs.seed = seed;
    device_values<std::uint16_t> out(3);
    testing::launch_block(&copy, 64, 1024 + 2048 + 8, map, boxes::right, out.data());
    auto const got = out.host();
    CHECK(got[1] == 64);
    CHECK(got[2] == 128);
    if (seed == 0) CHECK(got[0] == 0xffff);
  }
  fresh const state;
  knobs.seed = 0;  // as late as they can
  device_values<std::uint16_t> out(3);
  auto const told = [&](boxes how, std::string const& sentence) {
    std::string const words = fate(&copy, 64, 1024 + 2048 + 8, map, how, out.data());
    INFO(sentence, " | ", words);
    CHECK(contains(words, sentence));
  };
  told(boxes::odd_place, "it copies a box to a shared address that is no multiple of 1024 bytes");
  told(boxes::beyond, "it copies a box beyond the end of its shared memory");
  told(boxes::other_rank, "it gives another number of coordinates than the tensor map has");
  told(boxes::not_awaited, "its block ended before a copy that it asked for had arrived");
  told(boxes::twice, "it copies a box to where another is still to arrive");
  told(boxes::no_map, "it copies a box of what is no tensor map");
  told(boxes::not_expected, "deadlock: it waits for 0 arrivals and 1024 bytes of phase 0 of the barrier at byte ");
  auto const nowhere = make_tensor_map(mapped_rows{elements.data(), 10, 64, 64, 8});
  CHECK(contains(fate(&copy, 64, 1024 + 2048 + 8, nowhere, boxes::right, out.data()),
                 "it copies a box of what is not device memory"));
}

enum class products {
  right,
  not_begun,
  not_awaited,
  touched,
  changed,
  not_arrived,
  not_published,
  published,
  one_warp_less,
  lanes_differ,
  beyond,
  not_swizzled
};

/// 128 threads; out: a sum before its product is waited for, and after.
__global__ void multiply(tensor_map const __grid_constant__ map, std::uint16_t const* from, products how, float* out) {
  std::byte* const tiles = testing::tiles();
  unsigned const thread = threadIdx.x;
  auto* const b = reinterpret_cast<barrier*>(tiles + 3 * 8192);
  for (unsigned i = thread; i < 2 * 8192; i += 128) tiles[i] = std::byte{0};
  if (thread == 0) init_barrier(b, 1), publish_barriers();
  publish_writes();
  __syncthreads();
  if (how == products::not_arrived && thread == 0) load_box(tiles, map, b, 0, 0), arrive_expecting(b, 8192);
  if (how == products::not_published || how == products::published) {
    copy_async_16(tiles + thread * 16, from, 16);
    commit_copies();
    wait_copies<0>();
    if (how == products::published) publish_writes();
  }
  __syncthreads();
  float sums[16];
  for (float& sum : sums) sum = 5;
  if (how != products::not_begun) begin_products();
  unsigned const at = shared_address(tiles) + (how == products::beyond ? 3 * 8192 : 0);
  std::uint64_t a = operand<k_first>(at, 0);
  if (how == products::not_swizzled) a &= ~(1ull << 62);
  bool const asks = how != products::one_warp_less || thread / 32 != 2;
  if (asks)
    multiply_async<mo::bf16, 32, k_first, k_first>(sums, a, operand<k_first>(shared_address(tiles + 8192), 0),
                                                   how != products::lanes_differ || thread != 7);
  if (thread == 0) out[0] = sums[3];
  commit_products();
  if (how == products::not_awaited) return;
  if (how == products::touched && thread == 9) sums[2] = 1;
  if (how == products::changed && thread == 0) tiles[0] = std::byte{1};
  wait_products<0>();
  if (thread == 0) out[1] = sums[3];
}

TEST_CASE("products are made late, and mistakes with them are told") {
  fresh const state;
  knobs.seed = 0;  // copies come as late as they can
  std::vector<std::uint16_t> const elements(64 * 64);
  device_values<std::uint16_t> const there(elements);
  auto const map = make_tensor_map(mapped_rows{there.data(), 64, 64, 64, 64});
  device_values<float> out(2);
  constexpr int bytes = 1024 + 3 * 8192 + 8;
  testing::launch_block(&multiply, 128, bytes, map, there.data(), products::right, out.data());
  auto const got = out.host();
  CHECK(std::isnan(got[0]));
  CHECK(got[1] == 5);
  auto const told = [&](products how, std::string const& sentence) {
    std::string const words = fate(&multiply, 128, bytes, map, there.data(), how, out.data());
    INFO(sentence, " | ", words);
    CHECK(contains(words, sentence));
  };
  CHECK(fate(&multiply, 128, bytes, map, there.data(), products::published, out.data()) == "");
  told(products::not_begun, "it multiplies without begin_products");
  told(products::not_awaited, "it ended before products that it did not wait for");
  told(products::touched, "thread (9, 0, 0): it touched sums before their products were waited for");
  told(products::changed, "an operand changed before its product was waited for");
  told(products::not_arrived, "it multiplies what a copy has not brought yet");
  told(products::not_published, "has copied and not published");
  told(products::one_warp_less, "the warps of its warpgroup asked for different numbers of products");
  told(products::lanes_differ, "lanes of a warp ask for different products");
  told(products::beyond, "a descriptor leads out of shared memory");
  told(products::not_swizzled, "a descriptor is not of a tile that is swizzled by 128 bytes");
  CHECK(contains(fate(&multiply, 96, bytes, map, there.data(), products::right, out.data()),
                 "it multiplies in no whole warpgroup"));
}

__global__ void where(unsigned* out) { *out = shared_address(dynamic_shared()); }

TEST_CASE("dynamic shared memory begins at a multiple of 128 bytes, of 1024 by no chance") {
  for (unsigned seed = 0; seed < 20; ++seed) {
    fresh const state;
    knobs.seed = seed;
    device_values<unsigned> out(1);
    testing::launch_block(&where, 1, 256, out.data());
    unsigned const address = out.host()[0];
    CHECK(address % 128 == 0);
    CHECK(address % 1024 != 0);
    CHECK(address >= 1024);
  }
}

}  // namespace emulator_tests
