// SPDX-License-Identifier: Apache-2.0
// Weight layouts: what the products of the experts read. A deployment names one.
//
//   row_major        the matrices as they lie (the default)
//   packed_forward   copies in the order in which forward and infer read them
//   packed           those, and copies in the order in which the input gradient does
//
// A copy takes the memory of the weights once more for each direction, and a pass over them, layer.pack(weights), after
// every change; it pays where a few rows an expert meet many calls between changes. No layout changes a bit of a result.
#pragma once

#include <moiety/core/config.hpp>

#include <concepts>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <class L>
concept weight_layout = requires {
  { L::name } -> std::convertible_to<std::string_view>;
  { L::packs_forward } -> std::convertible_to<bool>;
  { L::packs_backward } -> std::convertible_to<bool>;
};

struct row_major {
  static constexpr std::string_view name = "row_major";
  static constexpr bool packs_forward = false, packs_backward = false;
};
struct packed_forward {
  static constexpr std::string_view name = "packed_forward";
  static constexpr bool packs_forward = true, packs_backward = false;
};
struct packed {
  static constexpr std::string_view name = "packed";
  static constexpr bool packs_forward = true, packs_backward = true;
};

static_assert(weight_layout<row_major> && weight_layout<packed_forward> && weight_layout<packed>);

}  // namespace moiety
