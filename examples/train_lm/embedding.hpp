// SPDX-License-Identifier: Apache-2.0
// Byte embedding: y_t = table[byte_t], table [256 × H]. Backward adds dy_t to the gradient's row of byte_t.
#pragma once

#include "parameter.hpp"
#include "text.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

namespace lm {

template <class Context> class embedding {
 public:
  using real = typename Context::element;

  embedding(Context& ctx, std::string name, std::int64_t hidden, mo::seed seed)
      : ctx_(&ctx), table_(normal_parameter(ctx, std::move(name), vocabulary, hidden, 1.0, seed)) {}

  void forward(std::span<byte const> bytes, view<Context> y) const {
    for (std::int64_t t = 0; byte const b : bytes) std::copy_n(table_.value.row(b), y.cols(), y.row(t++));
  }

  /// Columns are shared out, so each sum over tokens has one order.
  void backward(std::span<byte const> bytes, const_view<Context> dy) {
    ctx_->engine().for_blocks(dy.cols(), 16, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t t = 0; byte const b : bytes) {
        real* const row = table_.gradient.row(b);
        for (std::int64_t h = first; h < last; ++h) row[h] += dy(t, h);
        ++t;
      }
    });
  }

  template <class Function> void for_each_parameter(Function&& f) { f(table_, /*decayed=*/false); }

 private:
  Context* ctx_;
  parameter<real> table_;
};

}  // namespace lm
