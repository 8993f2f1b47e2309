// SPDX-License-Identifier: Apache-2.0
// The three products as one row-major product out[rows x cols] = op(a) op(b), for peers that read weights in place.
#pragma once

#include "peer.hpp"

namespace bench {

struct in_place {
  problem of;
  std::int64_t rows, cols, depth;   // of the product
  std::int64_t a_stride, b_stride;  // as stored
  bool transposed_a, transposed_b;

  explicit in_place(problem const& p) : of(p), a_stride(p.n), b_stride(p.k), transposed_a(false), transposed_b(false) {
    switch (p.kind) {
      case product::nt: rows = p.rows, cols = p.n, depth = p.k, a_stride = p.k, transposed_b = true; break;
      case product::nn: rows = p.rows, cols = p.k, depth = p.n; break;
      case product::tn: rows = p.n, cols = p.k, depth = p.rows, transposed_a = true; break;
    }
  }
  void const* right(std::int64_t expert, void const* b) const {
    return of.kind == product::tn ? b : of.weights_of(expert);
  }
};

inline void* prepare_in_place(problem const& p) { return new in_place(p); }
inline void release_in_place(void* plan) { delete static_cast<in_place*>(plan); }
inline bool float_only(product, element type) { return type == element::f32; }

}  // namespace bench
