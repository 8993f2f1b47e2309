// SPDX-License-Identifier: Apache-2.0
// One tile for every kind of descriptor: identity times ramp says which element went wrong, random integers that nothing
// hides. What matrices.hpp leaves to a device to confirm is confirmed where this passes on one.
#include <moiety/kernels/cuda/sm90/instructions.cuh>

#include <moiety/core/e4m3.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/fragments.hpp>
#include <moiety/kernels/cuda/sm90/tensor_map.cuh>

#include <kernels/cuda/sm90/cases.hpp>

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace mo = moiety;
using namespace moiety::kernels;
using namespace moiety::kernels::sm90;
using testing::device_values;

namespace {

constexpr auto k_first = tile_order::k_first, outer_first = tile_order::outer_first;
MOIETY_HD constexpr int panels(int outer) { return (outer + 63) / 64; }

__device__ void fill(std::byte* to, std::uint16_t const* from, int bytes) {
  auto* const elements = reinterpret_cast<std::uint16_t*>(to);
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 2; i += static_cast<int>(blockDim.x)) elements[i] = from[i];
}

/// sums [rows x N] = start + A B of tiles as they lie, a warpgroup for 64 rows.
template <class T, int N, tile_order A, tile_order B>
__global__ void __launch_bounds__(256, 1)
    one_tile(std::uint16_t const* a, std::uint16_t const* b, bool add, float* sums) {
  int const a_bytes = static_cast<int>(blockDim.x) / 128 * gpu::panel_bytes;
  std::byte* const tiles = testing::tiles();
  fill(tiles, a, a_bytes);
  fill(tiles + a_bytes, b, panels(N) * gpu::panel_bytes);
  publish_writes();
  __syncthreads();
  int const thread = static_cast<int>(threadIdx.x) % 128, first_row = static_cast<int>(threadIdx.x) / 128 * 64;
  float mine[N / 2];
  MOIETY_REGISTERS
  for (int i = 0; i < N / 2; ++i) {
    element const at = sum_element(thread, i);
    mine[i] = sums[(first_row + at.row) * N + at.col];
  }
  auto const left = shared_address(tiles + outer_offset(first_row)), right = shared_address(tiles + a_bytes);
  hold(mine);
  begin_products();
  MOIETY_REGISTERS
  for (int step = 0; step < 4; ++step)
    multiply_async<T, N, A, B>(mine, operand<A>(left, step), operand<B>(right, step), add || step > 0);
  commit_products();
  wait_products<0>();
  hold(mine);
  MOIETY_REGISTERS
  for (int i = 0; i < N / 2; ++i) {
    element const at = sum_element(thread, i);
    sums[(first_row + at.row) * N + at.col] = mine[i];
  }
}

template <class T> inline constexpr int depth = gpu::tile_row_bytes / static_cast<int>(sizeof(T));

/// f(outer, k) for every element of a tile, as it lies: in 16 bits one, or of e4m3 two neighbours along k.
template <class T, class F> std::vector<std::uint16_t> tile_of(tile_order order, int outer, F const& f) {
  std::vector<std::uint16_t> tile(static_cast<std::size_t>(panels(outer) * gpu::panel_bytes / 2), 0xffff);
  auto const bits = [&](int o, int k) { return unsigned{T(static_cast<float>(f(o, k))).bits}; };
  for (int o = 0; o < outer; ++o)
    for (int k = 0; k < gpu::tile_depth; ++k) {
      int const offset = order == k_first ? gpu::element_offset<k_first>(o, k) : gpu::element_offset<outer_first>(o, k);
      tile[static_cast<std::size_t>(offset / 2)] =
          static_cast<std::uint16_t>(sizeof(T) == 1 ? bits(o, 2 * k) | bits(o, 2 * k + 1) << 8 : bits(o, k));
    }
  return tile;
}

/// The first sum that is wrong, in words; a and b are functions of (outer, k), integers whose sums are exact.
template <class T, int N, tile_order A, tile_order B, class Left, class Right>
std::string first_wrong(int rows, Left const& a, Right const& b, bool add) {
  device_values<std::uint16_t> const left(tile_of<T>(A, rows, a)), right(tile_of<T>(B, N, b));
  std::vector<float> start(static_cast<std::size_t>(rows * N));
  for (std::size_t i = 0; i < start.size(); ++i) start[i] = static_cast<float>(i % 1000);
  device_values<float> sums(start);
  testing::launch_block(&one_tile<T, N, A, B>, rows * 2, (panels(rows) + panels(N)) * gpu::panel_bytes + testing::slack,
                        left.data(), right.data(), add, sums.data());
  auto const got = sums.host();
  for (int row = 0; row < rows; ++row)
    for (int col = 0; col < N; ++col) {
      auto const i = static_cast<std::size_t>(row * N + col);
      float expected = add ? start[i] : 0;
      for (int k = 0; k < depth<T>; ++k) expected += static_cast<float>(a(row, k)) * static_cast<float>(b(col, k));
      if (got[i] != expected)
        return "(" + std::to_string(row) + ", " + std::to_string(col) + ") is " + std::to_string(got[i]) +
               " and should be " + std::to_string(expected);
    }
  return "none";
}

template <class T, int N, tile_order A, tile_order B> void check_tile() {
  auto const named = [](tile_order order) { return std::string(order == k_first ? "k first" : "outer first"); };
  INFO("N ", N, ", A ", named(A), ", B ", named(B));
  auto const identity = [](int outer, int k) { return outer % 64 == k ? 1 : 0; };
  auto const by_outer = [](int outer, int) { return outer; };
  auto const by_k = [](int, int k) { return k; };
  CHECK(first_wrong<T, N, A, B>(64, identity, by_outer, false) == "none");
  CHECK(first_wrong<T, N, A, B>(64, identity, by_k, false) == "none");
  CHECK(first_wrong<T, N, A, B>(64, by_outer, identity, false) == "none");
  CHECK(first_wrong<T, N, A, B>(64, by_k, identity, false) == "none");
  auto const drawn = [](int outer, int k) { return (outer * 131 + k * 71 + outer * k * 29) % 17 - 8; };
  CHECK(first_wrong<T, N, A, B>(128, drawn, drawn, true) == "none");
}

/// The same of what e4m3 holds exactly; one or two k meet the identity's ones.
template <int N> void check_tile_of_e4m3() {
  INFO("N ", N);
  auto const check = [](auto const& a, auto const& b) {
    return first_wrong<mo::e4m3, N, k_first, k_first>(64, a, b, false);
  };
  auto const identity = [](int outer, int k) { return outer % 64 == k % 64 ? 1 : 0; };
  auto const by_outer = [](int outer, int) { return outer % 16; };
  auto const by_outer_16 = [](int outer, int) { return outer / 16; };
  auto const by_k = [](int, int k) { return k % 16; };
  auto const by_k_16 = [](int, int k) { return k / 16; };
  CHECK(check(identity, by_outer) == "none");
  CHECK(check(identity, by_outer_16) == "none");
  CHECK(check(identity, by_k) == "none");
  CHECK(check(identity, by_k_16) == "none");
  CHECK(check(by_outer, identity) == "none");
  CHECK(check(by_outer_16, identity) == "none");
  CHECK(check(by_k, identity) == "none");
  CHECK(check(by_k_16, identity) == "none");
  auto const drawn = [](int outer, int k) { return (outer * 131 + k * 71 + outer * k * 29) % 17 - 8; };
  CHECK(first_wrong<mo::e4m3, N, k_first, k_first>(128, drawn, drawn, true) == "none");
}

template <class T, int N> void check_orders() {
  check_tile<T, N, k_first, k_first>();
  check_tile<T, N, k_first, outer_first>();
  check_tile<T, N, outer_first, k_first>();
  check_tile<T, N, outer_first, outer_first>();
}

/// Two groups of products on two sums; the first one's operand is overwritten while the second may be under way.
__global__ void __launch_bounds__(128, 1) two_groups(std::uint16_t const* a, std::uint16_t const* b, float* out) {
  std::byte* const tiles = testing::tiles();
  fill(tiles, a, gpu::panel_bytes);
  fill(tiles + gpu::panel_bytes, b, 2 * gpu::panel_bytes);
  publish_writes();
  __syncthreads();
  float first[32], second[32];
  auto const left = shared_address(tiles), right = left + gpu::panel_bytes;
  begin_products();
  MOIETY_REGISTERS
  for (int step = 0; step < 4; ++step)
    multiply_async<mo::bf16, 64, k_first, k_first>(first, operand<k_first>(left, step), operand<k_first>(right, step),
                                                   step > 0);
  commit_products();
  MOIETY_REGISTERS
  for (int step = 0; step < 4; ++step)
    multiply_async<mo::bf16, 64, k_first, k_first>(second, operand<k_first>(left, step),
                                                   operand<k_first>(right + gpu::panel_bytes, step), step > 0);
  commit_products();
  wait_products<1>();
  hold(first);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < gpu::panel_bytes; i += 128) tiles[gpu::panel_bytes + i] = std::byte{};
  wait_products<0>();
  hold(second);
  MOIETY_REGISTERS
  for (int i = 0; i < 32; ++i) {
    element const at = sum_element(static_cast<int>(threadIdx.x), i);
    out[at.row * 128 + at.col] = first[i];
    out[at.row * 128 + 64 + at.col] = second[i];
  }
}

/// A warpgroup that only copies, by boxes, and two that multiply and sum: A [128 x k] B [96 x k], two stages in a ring.
__global__ void __launch_bounds__(384, 1)
    ring(tensor_map const __grid_constant__ a, tensor_map const __grid_constant__ b, int steps, float* out) {
  constexpr int a_bytes = 128 * 128, stage_bytes = a_bytes + 96 * 128;
  std::byte* const tiles = testing::tiles();
  auto* const full = reinterpret_cast<barrier*>(tiles + 2 * stage_bytes);
  barrier* const empty = full + 2;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      init_barrier(full + i, 1);
      init_barrier(empty + i, 8);
    }
    publish_barriers();
  }
  __syncthreads();
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (threadIdx.x >= 256) {
    give_registers<24>();
    if (threadIdx.x > 256) return;
    for (int step = 0; step < steps; ++step) {
      std::byte* const stage = tiles + step % 2 * stage_bytes;
      wait_phase(empty + step % 2, static_cast<unsigned>(step / 2 % 2) ^ 1u);
      arrive_expecting(full + step % 2, stage_bytes);
      load_box(stage, a, full + step % 2, step * 64, 0);
      load_box(stage + a_bytes, b, full + step % 2, step * 64, 0, 1);
    }
    return;
  }
  take_registers<240>();
  int const thread = static_cast<int>(threadIdx.x) % 128, first_row = static_cast<int>(threadIdx.x) / 128 * 64;
  float sums[48];
  for (int step = 0; step < steps; ++step) {
    wait_phase(full + step % 2, static_cast<unsigned>(step / 2 % 2));
    auto const stage = shared_address(tiles + step % 2 * stage_bytes);
    auto const left = stage + static_cast<unsigned>(outer_offset(first_row)), right = stage + a_bytes;
    hold(sums);
    begin_products();
    MOIETY_REGISTERS
    for (int i = 0; i < 4; ++i)
      multiply_async<mo::bf16, 96, k_first, k_first>(sums, operand<k_first>(left, i), operand<k_first>(right, i),
                                                     step > 0 || i > 0);
    commit_products();
    wait_products<0>();
    hold(sums);
    if (threadIdx.x % 32 == 0) arrive(empty + step % 2);
  }
  MOIETY_REGISTERS
  for (int i = 0; i < 48; ++i) {
    element const at = sum_element(thread, i);
    out[(first_row + at.row) * 96 + at.col] = sums[i];
  }
}

}  // namespace

TEST_CASE("products of tiles in every order and width") {
  if (!testing::on_sm90()) return;
  check_orders<mo::bf16, 32>();
  check_orders<mo::bf16, 64>();
  check_orders<mo::bf16, 96>();
  check_orders<mo::bf16, 128>();
  check_orders<mo::bf16, 192>();
  check_orders<mo::bf16, 256>();
}

TEST_CASE("products of fp16") {
  if (!testing::on_sm90()) return;
  check_tile<mo::fp16, 32, outer_first, k_first>();
  check_tile<mo::fp16, 64, k_first, k_first>();
  check_tile<mo::fp16, 96, k_first, outer_first>();
  check_tile<mo::fp16, 128, outer_first, outer_first>();
  check_tile<mo::fp16, 192, k_first, outer_first>();
  check_tile<mo::fp16, 256, k_first, k_first>();
}

TEST_CASE("products of e4m3") {
  if (!testing::on_sm90()) return;
  check_tile_of_e4m3<32>();
  check_tile_of_e4m3<64>();
  check_tile_of_e4m3<96>();
  check_tile_of_e4m3<128>();
  check_tile_of_e4m3<192>();
  check_tile_of_e4m3<256>();
}

TEST_CASE("a group of products is done while the next is under way") {
  if (!testing::on_sm90()) return;
  auto const left = [](int outer, int k) { return (outer * 7 + k * 3) % 11 - 5; };
  auto const right = [](int outer, int k) { return (outer * 5 + k * 13 + outer * k) % 15 - 7; };
  device_values<std::uint16_t> const a(tile_of<mo::bf16>(k_first, 64, left)), b(tile_of<mo::bf16>(k_first, 128, right));
  device_values<float> out(64 * 128);
  testing::launch_block(&two_groups, 128, 3 * gpu::panel_bytes + testing::slack, a.data(), b.data(), out.data());
  auto const got = out.host();
  int wrong = 0;
  for (int row = 0; row < 64; ++row)
    for (int col = 0; col < 128; ++col) {
      int sum = 0;
      for (int k = 0; k < 64; ++k) sum += left(row, k) * right(col, k);
      wrong += got[static_cast<std::size_t>(row * 128 + col)] != static_cast<float>(sum);
    }
  CHECK(wrong == 0);
}

TEST_CASE("copies and products pass the stages of a ring to and fro") {
  if (!testing::on_sm90()) return;
  std::mt19937 random(11);
  constexpr int rows = 128, groups = 2, columns = 96, longest = 7 * 64;
  std::vector<std::uint16_t> a(rows * longest), b(groups * columns * longest);
  auto const value = [&] { return mo::bf16(static_cast<float>(static_cast<int>(random() % 9) - 4)).bits; };
  for (auto& bits : a) bits = value();
  for (auto& bits : b) bits = value();
  device_values<std::uint16_t> const a_there(a), b_there(b);
  auto const number = [](std::uint16_t bits) {
    mo::bf16 of;
    of.bits = bits;
    return static_cast<float>(of);
  };
  for (int const k : {1, 64, 129, 7 * 64}) {  // the last step is filled up with zeros
    device_values<float> out(rows * columns);
    auto const a_map = make_tensor_map(mapped_rows{a_there.data(), rows, k, longest, rows});
    auto const b_map =
        make_tensor_map(mapped_groups{b_there.data(), groups, columns, k, columns * longest, longest, columns});
    testing::launch_block(&ring, 384, 2 * (rows + columns) * 128 + 4 * 8 + testing::slack, a_map, b_map, (k + 63) / 64,
                          out.data());
    auto const got = out.host();
    int wrong = 0;
    for (int row = 0; row < rows; ++row)
      for (int col = 0; col < columns; ++col) {
        float sum = 0;
        for (int i = 0; i < k; ++i)
          sum += number(a[static_cast<std::size_t>(row * longest + i)]) *
                 number(b[static_cast<std::size_t>((columns + col) * longest + i)]);
        wrong += got[static_cast<std::size_t>(row * columns + col)] != sum;
      }
    INFO("k ", k);
    CHECK(wrong == 0);
  }
}
