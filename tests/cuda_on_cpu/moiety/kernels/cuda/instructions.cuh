// SPDX-License-Identifier: Apache-2.0
// Stands before the library's header of this name in the CPU run of the tests: the same functions, made of what the
// lanes of a warp bring together. Stricter than the instructions: an asynchronous copy leaves NaN until it is waited
// for, and addresses must be aligned. mma adds 16 exact products (of tf32 8, of e4m3 32) and the sum so far in double,
// and rounds once.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/e4m3.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/fragments.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace moiety::inline MOIETY_ABI::kernels {

namespace emulated {

inline constexpr unsigned whole_warp = 0xffffffffu;

inline void require_aligned(void const* address, char const* what) {
  if (reinterpret_cast<std::uintptr_t>(address) % 16 != 0) cuda_on_cpu::fail(cuda_on_cpu::block::running.self(), what);
}

/// All values of a type of 16 or 8 bits: looking one up is faster than asking it, where the compiler does not optimise.
template <class T> float value_of(std::uint16_t bits) {
  constexpr unsigned count = 1u << (8 * sizeof(T));
  struct table {
    float values[count];
    table() {
      for (unsigned i = 0; i < count; ++i) {
        T value;
        value.bits = static_cast<decltype(value.bits)>(i);
        values[i] = value;
      }
    }
  };
  static table const all;
  return all.values[bits];
}

template <class T> float half_of(std::uint32_t bits, int half) {
  return value_of<T>(static_cast<std::uint16_t>(bits >> (16 * half)));
}

/// What a lane brings to mma.
struct products {
  float* c;
  std::uint32_t const* a;
  std::uint32_t b[2];
};

/// Where the elements of operands lie: [lane][register and half].
struct places {
  gpu::element a[32][8], b[32][4], c[32][4];
};
inline constexpr places places_of_mma = [] {
  places all{};
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i) all.a[lane][i] = gpu::a_element(lane, i / 2, i % 2);
    for (int i = 0; i < 4; ++i) all.b[lane][i] = gpu::b_element(lane, i / 2, i % 2);
    for (int i = 0; i < 4; ++i) all.c[lane][i] = gpu::c_element(lane, i);
  }
  return all;
}();

using row_of_8 = double __attribute__((vector_size(64)));  // fast also where the compiler does not optimise

template <class T> void multiply(products* const (&lanes)[32]) {
  double a[16][16];
  row_of_8 b[16], c[16];
  for (int lane = 0; lane < 32; ++lane) {
    auto const& at_a = places_of_mma.a[lane];
    auto const &at_b = places_of_mma.b[lane], &at_c = places_of_mma.c[lane];
    products const& of = *lanes[lane];
    for (int i = 0; i < 8; ++i) a[at_a[i].row][at_a[i].col] = half_of<T>(of.a[i / 2], i % 2);
    for (int i = 0; i < 4; ++i) {
      b[at_b[i].row][at_b[i].col] = half_of<T>(of.b[i / 2], i % 2);
      c[at_c[i].row][at_c[i].col] = of.c[i];
    }
  }
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k) c[i] += a[i][k] * b[k];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      gpu::element const at = places_of_mma.c[lane][i];
      lanes[lane]->c[i] = static_cast<float>(c[at.row][at.col]);
    }
}

/// The same of 8 products of tf32, whose lower bits must be 0.
inline void multiply_tf32(products* const (&lanes)[32]) {
  double a[16][8];
  row_of_8 b[8], c[16];
  auto const value = [](std::uint32_t bits) {
    if ((bits & 0x1fffu) != 0) cuda_on_cpu::fail(cuda_on_cpu::block::running.self(), "it gives mma what is no tf32");
    float number;
    std::memcpy(&number, &bits, sizeof(number));
    return static_cast<double>(number);
  };
  for (int lane = 0; lane < 32; ++lane) {
    products const& of = *lanes[lane];
    for (int i = 0; i < 4; ++i) {
      gpu::element const at_a = gpu::tf32_a_element(lane, i), at_c = places_of_mma.c[lane][i];
      a[at_a.row][at_a.col] = value(of.a[i]);
      c[at_c.row][at_c.col] = of.c[i];
    }
    for (int i = 0; i < 2; ++i) {
      gpu::element const at = gpu::tf32_b_element(lane, i);
      b[at.row][at.col] = value(of.b[i]);
    }
  }
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 8; ++k) c[i] += a[i][k] * b[k];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      gpu::element const at = places_of_mma.c[lane][i];
      lanes[lane]->c[i] = static_cast<float>(c[at.row][at.col]);
    }
}

/// The same of 32 products of e4m3.
inline void multiply_e4m3(products* const (&lanes)[32]) {
  double a[16][32];
  row_of_8 b[32], c[16];
  auto const value = [](std::uint32_t bits, int byte) { return value_of<e4m3>(bits >> (8 * byte) & 0xffu); };
  for (int lane = 0; lane < 32; ++lane) {
    products const& of = *lanes[lane];
    for (int i = 0; i < 16; ++i) {
      gpu::element const at = gpu::e4m3_a_element(lane, i / 4, i % 4);
      a[at.row][at.col] = value(of.a[i / 4], i % 4);
    }
    for (int i = 0; i < 8; ++i) {
      gpu::element const at = gpu::e4m3_b_element(lane, i / 4, i % 4);
      b[at.row][at.col] = value(of.b[i / 4], i % 4);
    }
    for (int i = 0; i < 4; ++i) {
      gpu::element const at = places_of_mma.c[lane][i];
      c[at.row][at.col] = of.c[i];
    }
  }
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 32; ++k) c[i] += a[i][k] * b[k];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      gpu::element const at = places_of_mma.c[lane][i];
      lanes[lane]->c[i] = static_cast<float>(c[at.row][at.col]);
    }
}

/// What a lane brings to ldmatrix: an address, and where its registers are.
struct matrix_load {
  std::byte const* from;
  std::uint32_t* to;
};

template <bool Transposed> void load_matrices(std::uint32_t* to, void const* shared) {
  require_aligned(shared, "it gives ldmatrix an address that is no multiple of 16 bytes");
  matrix_load mine{static_cast<std::byte const*>(shared), to};
  cuda_on_cpu::warp_together(whole_warp, mine, [](auto const& lanes) {
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 8; ++i) {
        gpu::element const at = gpu::loaded_element(lane, i % 2, Transposed);
        std::uint16_t value;
        std::memcpy(&value, lanes[i / 2 * 8 + at.row]->from + at.col * 2, 2);
        std::uint32_t& reg = lanes[lane]->to[i / 2];
        reg = i % 2 == 0 ? value : reg | std::uint32_t{value} << 16;
      }
  });
}

/// The copies that a thread has not waited for.
struct pending_copies {
  struct one {
    void* to;
    std::byte bytes[16];
    std::int64_t group;
  };
  std::vector<one> copies;
  std::int64_t group = 0;  // that is open
  void const* launch = nullptr;
  unsigned block = 0;

  static pending_copies& of_thread() {
    static pending_copies all[cuda_on_cpu::block_limit];
    auto& running = cuda_on_cpu::block::running;
    pending_copies& mine = all[running.self().number];
    bool const same = mine.launch == &running.launch() && mine.block == blockIdx.x;
    if (!same && !mine.copies.empty())
      cuda_on_cpu::fail(running.self(), "a thread of this number ended before its asynchronous copies");
    mine.launch = &running.launch();
    mine.block = blockIdx.x;
    return mine;
  }
  void wait(std::int64_t youngest) {
    std::size_t kept = 0;
    for (one const& copy : copies)
      if (copy.group < group - youngest) {
        std::memcpy(copy.to, copy.bytes, 16);
        cuda_on_cpu::unpublished_chunks::of_block().add(copy.to);
      } else {
        copies[kept++] = copy;
      }
    copies.resize(kept);
  }
};

}  // namespace emulated

template <class T> void mma(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  emulated::products mine{c, a, {b0, b1}};
  cuda_on_cpu::warp_together(emulated::whole_warp, mine, [](auto const& lanes) {
    if constexpr (sizeof(T) == 4)
      emulated::multiply_tf32(lanes);
    else if constexpr (sizeof(T) == 1)
      emulated::multiply_e4m3(lanes);
    else
      emulated::multiply<T>(lanes);
  });
}

inline std::uint32_t rounded_to_tf32(std::uint32_t bits) {
  bool const number = (bits & 0x7f800000u) != 0x7f800000u, infinite = (bits & 0x7fffffffu) == 0x7f800000u;
  return number || infinite ? (bits + 0x1000u) & ~0x1fffu : 0x7fc00000u;
}

inline void ldmatrix_x4(std::uint32_t (&to)[4], void const* shared) { emulated::load_matrices<false>(to, shared); }
inline void ldmatrix_x4_trans(std::uint32_t (&to)[4], void const* shared) { emulated::load_matrices<true>(to, shared); }

inline void copy_async_16(void* shared, void const* global, int bytes) {
  emulated::require_aligned(shared, "it copies to an address that is no multiple of 16 bytes");
  emulated::require_aligned(global, "it copies from an address that is no multiple of 16 bytes");
  if (bytes < 0 || bytes > 16) cuda_on_cpu::fail(cuda_on_cpu::block::running.self(), "it copies not 0 to 16 bytes");
  auto& mine = emulated::pending_copies::of_thread();
  emulated::pending_copies::one copy{shared, {}, mine.group};
  if (bytes != 0) std::memcpy(copy.bytes, global, static_cast<std::size_t>(bytes));
  std::memset(shared, 0xff, 16);
  mine.copies.push_back(copy);
}
inline void commit_copies() { ++emulated::pending_copies::of_thread().group; }
template <int N> void wait_copies() { emulated::pending_copies::of_thread().wait(N); }

inline unsigned shared_address(void const* shared) { return cuda_on_cpu::block::running.shared_address(shared); }
inline std::byte* dynamic_shared() { return cuda_on_cpu::block::running.shared(); }

}  // namespace moiety::inline MOIETY_ABI::kernels
