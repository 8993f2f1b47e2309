// SPDX-License-Identifier: Apache-2.0
// What a library beside ours offers to the benchmarks: the products of one expert, on one thread a call. Each peer is a
// module that is loaded at run time, so that libraries with the same symbols stand side by side, and none is linked.
//
//   nt   out[rows x n] = a[rows x k] W^T
//   nn   out[rows x k] = a[rows x n] W
//   tn   out[n x k]    = a[rows x n]^T b[rows x k]
//
// W [n x k]; all matrices are row-major and dense; operands are float or bf16 (16 bits), outputs float.
#pragma once

#include <cstdint>

namespace bench {

enum class product { nt, nn, tn };
enum class element { f32, bf16 };

/// What all calls of one plan have in common.
struct problem {
  product kind;
  element type;
  std::int64_t experts, rows, n, k;
  void const* weights;  // [experts x n x k]

  void const* weights_of(std::int64_t expert) const {
    std::int64_t const bytes = type == element::f32 ? 4 : 2;
    return static_cast<char const*>(weights) + expert * n * k * bytes;
  }
};

struct peer {
  char const* name;
  char const* about;  // version, and what the library chose for this processor
  bool (*has)(product, element);
  /// Whatever may be done once for the weights and sizes of a problem; null where the library cannot.
  void* (*prepare)(problem const&);
  /// One expert: a of nt and nn; a and b of tn. Called from any thread, for an expert by one at a time.
  void (*run)(void* plan, std::int64_t expert, void const* a, void const* b, float* out);
  void (*release)(void* plan);
};

/// What a module exports: its peers, of which there are `count`.
using peers_function = peer const*(int* count);

}  // namespace bench

extern "C" bench::peers_function moiety_bench_peers;
