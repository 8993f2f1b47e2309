// SPDX-License-Identifier: Apache-2.0
// Looped breadth-first (Lamy-Poirier 2023): every chunk sees all micro-batches before the next chunk begins.
//
//   rank r      chunks ascending, each F 0 … m−1; then chunks descending, each B m−1 … 0
//   bubble      (p−1)(F+B) in units of a chunk, that is divided by v
//   memory      m·v chunks on every rank
//   shapes      any
//   gradients   descending
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/shape.hpp>

#include <string_view>

namespace moiety::inline MOIETY_ABI {

struct looped_bfs {
  static constexpr std::string_view name = "looped_bfs";
  static constexpr auto placed = placement::loop;
  static constexpr auto gradients = gradient_order::descending;
  static constexpr shape_fault fault(pipeline_shape const& shape) {
    return detail::unless(shape.group == 0, shape_fault::group_unused);
  }

  static constexpr void generate(pipeline_shape const& shape, int rank, rank_actions& actions) {
    for (int chunk = 0; chunk < shape.chunks; ++chunk)
      for (int i = 0; i < shape.microbatches; ++i) actions.forward(chunk * shape.ranks + rank, i);
    for (int chunk = shape.chunks; chunk > 0; --chunk)
      for (int i = shape.microbatches; i > 0; --i) actions.backward((chunk - 1) * shape.ranks + rank, i - 1);
  }
};

}  // namespace moiety
