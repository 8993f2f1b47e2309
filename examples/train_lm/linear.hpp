// SPDX-License-Identifier: Apache-2.0
// A dense linear map, y = x Wᵀ, with x [T × inputs], W [outputs × inputs], y [T × outputs].
// Backward: dx = dy W (overwritten), dW += dyᵀ x.
#pragma once

#include "gemm.hpp"
#include "parameter.hpp"

#include <cstdint>
#include <string>
#include <utility>

namespace lm {

template <class Context> class linear {
 public:
  using real = typename Context::element;

  linear(Context& ctx, std::string name, std::int64_t inputs, std::int64_t outputs, double deviation, mo::seed seed)
      : ctx_(&ctx), weight_(normal_parameter(ctx, std::move(name), outputs, inputs, deviation, seed)) {}

  void forward(const_view<Context> x, view<Context> y) const { multiply_nt(*ctx_, one_group(x), x, weight_.value, y); }

  void backward(const_view<Context> x, const_view<Context> dy, view<Context> dx) {
    multiply_nn(*ctx_, one_group(x), dy, weight_.value, dx);
    multiply_tn(*ctx_, one_group(x), dy, x, weight_.gradient, /*accumulate=*/true);
  }

  template <class Function> void for_each_parameter(Function&& f) { f(weight_, /*decayed=*/true); }

 private:
  Context* ctx_;
  parameter<real> weight_;
};

}  // namespace lm
