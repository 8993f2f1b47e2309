// SPDX-License-Identifier: Apache-2.0
// GPipe: all forwards, then all backwards (Huang et al. 2019).
//
//   rank r      F 0 … m−1, B 0 … m−1; gpipe_lifo runs the backwards from m−1 down to 0, as the paper does
//   bubble      (p−1)(F+B)
//   memory      m activations on every rank
//   shapes      one chunk a rank
//   gradients   gpipe ascending, gpipe_lifo descending
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/shape.hpp>

#include <string_view>

namespace moiety::inline MOIETY_ABI {

struct gpipe {
  static constexpr std::string_view name = "gpipe";
  static constexpr auto placed = placement::loop;
  static constexpr auto gradients = gradient_order::ascending;
  static constexpr shape_fault fault(pipeline_shape const& shape) { return detail::plain_shape(shape); }

  static constexpr void generate(pipeline_shape const& shape, int rank, rank_actions& actions) {
    for (int i = 0; i < shape.microbatches; ++i) actions.forward(rank, i);
    for (int i = 0; i < shape.microbatches; ++i) actions.backward(rank, i);
  }
};

struct gpipe_lifo {
  static constexpr std::string_view name = "gpipe_lifo";
  static constexpr auto placed = placement::loop;
  static constexpr auto gradients = gradient_order::descending;
  static constexpr shape_fault fault(pipeline_shape const& shape) { return detail::plain_shape(shape); }

  static constexpr void generate(pipeline_shape const& shape, int rank, rank_actions& actions) {
    for (int i = 0; i < shape.microbatches; ++i) actions.forward(rank, i);
    for (int i = shape.microbatches; i > 0; --i) actions.backward(rank, i - 1);
  }
};

}  // namespace moiety
