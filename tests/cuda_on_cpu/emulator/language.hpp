// SPDX-License-Identifier: Apache-2.0
// The keywords, vector types and bit functions of CUDA C++.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

// The standard library writes __attribute__((__noinline__)), so that name can only be empty.
#define __noinline__
#define __forceinline__ inline
#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
// One block runs at a time, so its memory is the process's. Not `static thread_local`: sanitizers watch globals closer.
#define __shared__ static

// clang-format off
struct int2 { alignas(8) int x; int y; };
struct int3 { int x, y, z; };
struct int4 { alignas(16) int x; int y, z, w; };
struct uint2 { alignas(8) unsigned x; unsigned y; };
struct uint3 { unsigned x, y, z; };
struct uint4 { alignas(16) unsigned x; unsigned y, z, w; };
struct float2 { alignas(8) float x; float y; };
struct float3 { float x, y, z; };
struct float4 { alignas(16) float x; float y, z, w; };
struct double2 { alignas(16) double x; double y; };
struct longlong2 { alignas(16) long long x; long long y; };
struct ulonglong2 { alignas(16) unsigned long long x; unsigned long long y; };
// clang-format on

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

constexpr int2 make_int2(int x, int y) { return {x, y}; }
constexpr int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
constexpr uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
constexpr uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
constexpr uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
constexpr float2 make_float2(float x, float y) { return {x, y}; }
constexpr float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
constexpr double2 make_double2(double x, double y) { return {x, y}; }

constexpr int __popc(unsigned v) { return std::popcount(v); }
constexpr int __popcll(unsigned long long v) { return std::popcount(v); }
constexpr int __ffs(int v) { return __builtin_ffs(v); }
constexpr int __ffsll(long long v) { return __builtin_ffsll(v); }
constexpr int __clz(int v) { return std::countl_zero(static_cast<unsigned>(v)); }
constexpr int __clzll(long long v) { return std::countl_zero(static_cast<unsigned long long>(v)); }
constexpr unsigned __brev(unsigned v) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (v >> bit & 1u) << (31 - bit);
  return reversed;
}

constexpr unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
constexpr int __float_as_int(float v) { return std::bit_cast<int>(v); }
constexpr float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
constexpr float __int_as_float(int v) { return std::bit_cast<float>(v); }
constexpr long long __double_as_longlong(double v) { return std::bit_cast<long long>(v); }
constexpr double __longlong_as_double(long long v) { return std::bit_cast<double>(v); }

// Single operations that the compiler may not contract; the CPU run is compiled with -ffp-contract=off.
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
constexpr float __fmul_rn(float a, float b) { return a * b; }
constexpr float __fadd_rn(float a, float b) { return a + b; }
constexpr float __fsub_rn(float a, float b) { return a - b; }
constexpr float __fdiv_rn(float a, float b) { return a / b; }
constexpr double __dmul_rn(double a, double b) { return a * b; }
constexpr double __dadd_rn(double a, double b) { return a + b; }

template <class T> T __ldg(T const* p) { return *p; }
template <class T> T __ldcg(T const* p) { return *p; }
template <class T> T __ldcs(T const* p) { return *p; }
template <class T> void __stcg(T* p, T v) { *p = v; }
template <class T> void __stcs(T* p, T v) { *p = v; }

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
