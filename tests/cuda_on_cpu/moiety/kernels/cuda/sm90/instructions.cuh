// SPDX-License-Identifier: Apache-2.0
// Stands before the library's header of this name in the CPU run of the tests. Stricter than the instructions:
//
//   copies     arrive late (emulator/tensor_map.hpp) and leave NaN until then
//   products   are made at the wait that covers them, warp by warp, of operands that are found by decoding the descriptors
//              and must not have changed since the product was asked for; the sums are NaN until then, and must not have
//              been touched. A warp knows of its own 16 of the 64 rows only: what other warps read may be overwritten once
//              they have waited too. 16 exact products (of e4m3 32) and the sum so far are added in double, and
//              rounded once
//   registers  are not counted
//
// Not seen: plain stores into operands that were not published (those of cp.async are seen).
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/e4m3.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/instructions.cuh>
#include <moiety/kernels/cuda/sm90/matrices.hpp>
#include <moiety/kernels/cuda/sm90/tensor_map.hpp>

#include <cuda_runtime.h>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <deque>
#include <list>
#include <vector>

namespace moiety::inline MOIETY_ABI::kernels::sm90 {

namespace emulated {

using cuda_on_cpu::block;
using kernels::emulated::value_of;
using kernels::emulated::whole_warp;

[[noreturn]] inline void fail(char const* sentence) { cuda_on_cpu::fail(block::running.self(), sentence); }

/// The sums of the lanes of a warp while products on them are under way.
struct sums_in_flight {
  float* lanes[32];
  int count;                  // of each lane
  std::vector<float> values;  // [lane][register]
  int products = 0;

  float& at(int row, int col) {
    int const lane = row % 8 * 4 + col % 8 / 2, reg = col / 8 * 4 + row / 8 * 2 + col % 2;
    return values[static_cast<std::size_t>(lane * count + reg)];
  }
};

/// Rows of 16 k of both operands: a warp's 16 rows of A, then N columns of B. Of e4m3, two k in 16 bits.
using operand_rows = std::vector<std::uint16_t>;

/// A product as a lane asks for it.
struct request {
  std::uint64_t a, b;
  bool add;
  float* sums;
};

struct product {
  std::uint64_t a, b;
  bool add;
  int columns;
  operand_rows operands;  // as they were when it was asked for
  sums_in_flight* sums;
  operand_rows (*read)(std::uint64_t a, std::uint64_t b);
  int depth;
  float (*value)(std::uint16_t const* row, int k);
};

/// Element k of a row of operand_rows.
template <class T> float element_of(std::uint16_t const* row, int k) {
  if constexpr (sizeof(T) == 1)
    return value_of<T>(static_cast<std::uint16_t>(row[k / 2] >> (k % 2 * 8) & 0xff));
  else
    return value_of<T>(row[k]);
}

template <tile_order Order> void read_rows(std::uint64_t bits, unsigned first, unsigned count, std::uint16_t* to) {
  descriptor const of = decode(bits);
  if (of.swizzle != 1 || of.base_offset != 0) fail("a descriptor is not of a tile that is swizzled by 128 bytes");
  constexpr bool k_first = Order == tile_order::k_first;
  for (unsigned i = 0; i < count * 2; ++i) {  // chunks of 8 elements
    unsigned const outer = k_first ? i / 2 : i / 16 * 8, k = k_first ? i % 2 * 8 : i % 16;
    std::byte const* const chunk = block::running.shared_at(element_address<Order>(of, first + outer, k), 16);
    if (chunk == nullptr) fail("a descriptor leads out of shared memory");
    cuda_on_cpu::check_async_read(chunk);
    std::uint16_t elements[8];
    std::memcpy(elements, chunk, 16);
    for (unsigned e = 0; e < 8; ++e) to[k_first ? outer * 16 + k + e : (outer + e) * 16 + k] = elements[e];
  }
}

template <int N, tile_order A, tile_order B> operand_rows read_operands(std::uint64_t a, std::uint64_t b) {
  unsigned const warp = block::running.self().number / 32 % 4;
  operand_rows rows(16 * (16 + N));
  read_rows<A>(a, warp * 16, 16, rows.data());
  read_rows<B>(b, 0, N, rows.data() + 16 * 16);
  return rows;
}

inline void multiply(product const& of) {
  double b[32][256], c[256];
  auto const row_at = [&](int row) { return &of.operands[static_cast<std::size_t>(row * 16)]; };
  for (int col = 0; col < of.columns; ++col)
    for (int k = 0; k < of.depth; ++k) b[k][col] = of.value(row_at(16 + col), k);
  for (int row = 0; row < 16; ++row) {
    for (int col = 0; col < of.columns; ++col) c[col] = of.add ? of.sums->at(row, col) : 0.0;
    for (int k = 0; k < of.depth; ++k) {
      double const a = of.value(row_at(row), k);
      for (int col = 0; col < of.columns; ++col) c[col] += a * b[k][col];
    }
    for (int col = 0; col < of.columns; ++col) of.sums->at(row, col) = static_cast<float>(c[col]);
  }
}

/// What a warp has asked for and not waited for.
class warp_products {
 public:
  static warp_products& of_warp() {
    static warp_products all[cuda_on_cpu::block_limit / 32];
    block& running = block::running;
    unsigned const warp = running.self().number / 32;
    if (all[warp].block_ == running.number()) return all[warp];
    all[warp] = {};
    all[warp].block_ = running.number();
    running.at_end.emplace_back([warp] { check_end(warp, all); });
    return all[warp];
  }

  void begin() { begun_ = true; }

  template <class T, int N, tile_order A, tile_order B> void ask(request* const (&lanes)[32]) {
    request const& first = *lanes[0];
    if (!begun_) fail("it multiplies without begin_products, though its sums may have been touched");
    for (request const* lane : lanes)
      if (lane->a != first.a || lane->b != first.b || lane->add != first.add)
        fail("lanes of a warp ask for different products");
    sums_in_flight& sums = hold_sums(lanes, N / 2, first.add);
    ++sums.products;
    ++asked_;
    open_.push_back({first.a, first.b, first.add, N, read_operands<N, A, B>(first.a, first.b), &sums,
                     &read_operands<N, A, B>, 32 / static_cast<int>(sizeof(T)), &element_of<T>});
  }

  void commit() {
    groups_.push_back(std::move(open_));
    open_.clear();
  }

  void wait(std::size_t youngest) {
    for (; groups_.size() > youngest; groups_.pop_front())
      for (product const& next : groups_.front()) make(next);
    if (groups_.empty() && open_.empty()) begun_ = false;
  }

 private:
  std::uint64_t block_ = 0;
  bool begun_ = false;
  std::int64_t asked_ = 0;
  std::vector<product> open_;
  std::deque<std::vector<product>> groups_;
  std::list<sums_in_flight> sums_;

  sums_in_flight& hold_sums(request* const (&lanes)[32], int count, bool add) {
    for (sums_in_flight& held : sums_)
      if (held.lanes[0] == lanes[0]->sums) return held;
    sums_in_flight& held = sums_.emplace_back();
    held.count = count;
    held.values.resize(static_cast<std::size_t>(32 * count));
    auto const bytes = static_cast<std::size_t>(count) * sizeof(float);
    for (int lane = 0; lane < 32; ++lane) {
      held.lanes[lane] = lanes[lane]->sums;
      if (add) std::memcpy(&held.values[static_cast<std::size_t>(lane * count)], held.lanes[lane], bytes);
      std::memset(held.lanes[lane], 0xff, bytes);
    }
    return held;
  }

  void make(product const& next) {
    if (next.read(next.a, next.b) != next.operands) fail("an operand changed before its product was waited for");
    multiply(next);
    if (--next.sums->products != 0) return;
    give_back(*next.sums);
    sums_.remove_if([&](sums_in_flight const& held) { return &held == next.sums; });
  }

  static void give_back(sums_in_flight const& held) {
    auto const bytes = static_cast<std::size_t>(held.count) * sizeof(float);
    std::vector<unsigned char> const untouched(bytes, 0xff);
    for (int lane = 0; lane < 32; ++lane) {
      if (std::memcmp(held.lanes[lane], untouched.data(), bytes) != 0)
        cuda_on_cpu::fail(block::running.in_warp_of(block::running.self(), lane),
                          "it touched sums before their products were waited for");
      std::memcpy(held.lanes[lane], &held.values[static_cast<std::size_t>(lane * held.count)], bytes);
    }
  }

  static void check_end(unsigned warp, warp_products const* all) {
    cuda_on_cpu::thread const& lane = block::running.thread_of(warp * 32);
    warp_products const& mine = all[warp];
    if (!mine.open_.empty() || !mine.groups_.empty())
      cuda_on_cpu::fail(lane, "it ended before products that it did not wait for");
    for (unsigned other = warp / 4 * 4; other < warp / 4 * 4 + 4; ++other)
      if (all[other].block_ != mine.block_ || all[other].asked_ != mine.asked_)
        cuda_on_cpu::fail(lane, "the warps of its warpgroup asked for different numbers of products");
  }
};

/// All lanes of the warp meet, and f(its products) happens once.
template <class F> void together(F const& f) {
  char nothing = 0;
  cuda_on_cpu::warp_together(whole_warp, nothing, [&f](auto const&) { f(warp_products::of_warp()); });
}

}  // namespace emulated

using barrier = std::uint64_t;

inline void init_barrier(barrier* b, unsigned arrivals) { cuda_on_cpu::make_mbarrier(b, arrivals); }
inline void publish_barriers() { cuda_on_cpu::publish_mbarriers(); }
inline void arrive(barrier* b) { cuda_on_cpu::arrive_at(b, 0); }
inline void arrive_expecting(barrier* b, unsigned bytes) { cuda_on_cpu::arrive_at(b, bytes); }
inline void wait_phase(barrier* b, unsigned parity) { cuda_on_cpu::wait_for_phase(b, parity); }
inline void publish_writes() { cuda_on_cpu::unpublished_chunks::of_block().publish(); }

inline void load_box(void* shared, tensor_map const& map, barrier* b, int x, int y) {
  cuda_on_cpu::load_box(shared, &map, b, 2, {x, y, 0});
}
inline void load_box(void* shared, tensor_map const& map, barrier* b, int x, int y, int z) {
  cuda_on_cpu::load_box(shared, &map, b, 3, {x, y, z});
}

template <class T, int N, tile_order A, tile_order B>
void multiply_async(float (&sums)[N / 2], std::uint64_t a, std::uint64_t b, bool add) {
  static_assert(std::same_as<T, bf16> || std::same_as<T, fp16> ||
                (std::same_as<T, e4m3> && A == tile_order::k_first && B == tile_order::k_first));
  static_assert(N == 32 || N == 64 || N == 96 || N == 128 || N == 192 || N == 256);
  auto& running = cuda_on_cpu::block::running;
  if (running.self().number / 128 * 128 + 128 > running.threads())
    emulated::fail("it multiplies in no whole warpgroup");
  emulated::request mine{a, b, add, sums};
  cuda_on_cpu::warp_together(emulated::whole_warp, mine, [](auto const& lanes) {
    emulated::warp_products::of_warp().template ask<T, N, A, B>(lanes);
  });
}

inline void begin_products() {
  emulated::together([](auto& products) { products.begin(); });
}
inline void commit_products() {
  emulated::together([](auto& products) { products.commit(); });
}
template <int N> void wait_products() {
  emulated::together([](auto& products) { products.wait(N); });
}
template <int N> void hold(float (&)[N]) {}

template <int N> void give_registers() { static_assert(N % 8 == 0 && N >= 24 && N <= 256); }
template <int N> void take_registers() { static_assert(N % 8 == 0 && N >= 24 && N <= 256); }

inline void wait_for_previous_kernel() {}
inline void let_next_kernel_start() {}

}  // namespace moiety::inline MOIETY_ABI::kernels::sm90
