// SPDX-License-Identifier: Apache-2.0
// 1F1B: after a warm-up, one forward and one backward in turn (PipeDream-flush; Narayanan et al. 2021).
//
//   rank r      w = min(p−1−r, m) forwards; then F, B in turn; the last w backwards
//   bubble      (p−1)(F+B)
//   memory      min(p−r, m) activations
//   shapes      one chunk a rank; m < p is legal
//   gradients   ascending
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/shape.hpp>

#include <algorithm>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

struct one_f_one_b {
  static constexpr std::string_view name = "one_f_one_b";
  static constexpr auto placed = placement::loop;
  static constexpr auto gradients = gradient_order::ascending;
  static constexpr shape_fault fault(pipeline_shape const& shape) { return detail::plain_shape(shape); }

  static constexpr void generate(pipeline_shape const& shape, int rank, rank_actions& actions) {
    int const m = shape.microbatches, warm_up = std::min(shape.ranks - 1 - rank, m);
    for (int i = 0; i < warm_up; ++i) actions.forward(rank, i);
    for (int i = warm_up; i < m; ++i) {
      actions.forward(rank, i);
      actions.backward(rank, i - warm_up);
    }
    for (int i = m - warm_up; i < m; ++i) actions.backward(rank, i);
  }
};

}  // namespace moiety
