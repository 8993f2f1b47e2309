// SPDX-License-Identifier: Apache-2.0
// Across how many ranks a layer is spread, axis by axis, and in which order the ranks are numbered.
//
//   mo::layout{.data = 4, .expert = 4}                               4 ranks, each with a fourth of tokens and experts
//   mo::layout{.data = 2, .tensor = 2, .pipeline = 2, .expert = 4}   8 ranks, 4 in a stage
//
// The same ranks form two grids, here fastest axis first:
//
//   dense    tensor x context x data x pipeline               for tokens, disjoint over the first three axes
//   expert   expert_tensor x expert x expert_data x pipeline  for the weights of experts
//
// A stage is data · context · tensor ranks in a row, and as many by the expert grid: expert_data is what its other axes
// leave. Pipeline is outermost in both. `order` is that of the dense grid inside a stage, fastest first:
//
//   mo::layout{.data = 4, .tensor = 2, .order = {mo::axis::data, mo::axis::tensor, mo::axis::context}}
//
// A constant layout is checked by check_layout<Layout>(), another by check_layout(layout), with the same sentences.
// check_world(layout, ranks) compares it with the ranks that there are. Both throw config_error and show both grids.
// mo::dynamic, as a constant, says that the layout is given at run time.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <ostream>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

enum class axis : std::uint8_t { tensor, context, data, pipeline, expert_tensor, expert, expert_data };

constexpr std::string_view axis_name(axis a) {
  constexpr std::array<std::string_view, 7> names{"tensor",        "context", "data",       "pipeline",
                                                  "expert_tensor", "expert",  "expert_data"};
  return names[static_cast<std::size_t>(a)];
}

enum class grid : std::uint8_t { dense, expert };

/// The axes of the dense grid inside a stage, fastest first.
struct axis_order {
  axis first = axis::tensor;
  axis second = axis::context;
  axis third = axis::data;

  constexpr bool has(axis a) const { return first == a || second == a || third == a; }
  friend constexpr bool operator==(axis_order const&, axis_order const&) = default;
};

namespace detail {

/// The product, or 2^31 − 1 where it would be larger.
constexpr int capped_product(std::initializer_list<int> sizes) {
  constexpr std::int64_t most = std::numeric_limits<int>::max();
  std::int64_t product = 1;
  for (int const n : sizes) {
    product *= n;
    product = product > most ? most : product < -most ? -most : product;
  }
  return static_cast<int>(product);
}

}  // namespace detail

struct layout {
  int data = 1;
  int tensor = 1;
  int context = 1;
  int pipeline = 1;
  int expert = 1;
  int expert_tensor = 1;
  axis_order order = {};

  /// Ranks in all, and of one pipeline stage.
  constexpr int world() const { return detail::capped_product({data, tensor, context, pipeline}); }
  constexpr int stage() const { return detail::capped_product({data, tensor, context}); }

  /// Ranks that hold all experts once between them, and how many such sets a stage has.
  constexpr int expert_group() const { return detail::capped_product({expert, expert_tensor}); }
  constexpr int expert_data() const { return expert_group() > 0 ? stage() / expert_group() : 0; }

  constexpr int size(axis a) const {
    switch (a) {
      case axis::tensor: return tensor;
      case axis::context: return context;
      case axis::data: return data;
      case axis::pipeline: return pipeline;
      case axis::expert_tensor: return expert_tensor;
      case axis::expert: return expert;
      case axis::expert_data: break;
    }
    return expert_data();
  }

  /// Whether this stands for a layout that is known at run time alone.
  constexpr bool is_dynamic() const { return *this == layout{0, 0, 0, 0, 0, 0}; }

  friend constexpr bool operator==(layout const&, layout const&) = default;
};

inline constexpr layout dynamic{0, 0, 0, 0, 0, 0};

/// The axes of a grid, fastest first.
constexpr std::array<axis, 4> axes_of(layout const& l, grid g) {
  if (g == grid::expert) return {axis::expert_tensor, axis::expert, axis::expert_data, axis::pipeline};
  return {l.order.first, l.order.second, l.order.third, axis::pipeline};
}

/// Both grids: dense grid tensor 2 x context 1 x data 3 x pipeline 1, expert grid expert_tensor 1 x expert 4 x …
inline std::ostream& operator<<(std::ostream& out, layout const& l) {
  for (grid const g : {grid::dense, grid::expert}) {
    out << (g == grid::dense ? "dense grid" : ", expert grid");
    char const* between = " ";
    for (axis const a : axes_of(l, g)) {
      out << between << axis_name(a) << ' ';
      if (a == axis::expert_data && (l.expert_group() < 1 || l.stage() % l.expert_group() != 0))
        out << l.stage() << '/' << l.expert_group();
      else
        out << l.size(a);
      between = " x ";
    }
  }
  return out;
}

// clang-format off
#define MOIETY_LAYOUT_FAULTS(fault)                                                                            \
  fault(not_given, "mo::dynamic stands for a layout that is given at run time, and none was given")            \
  fault(axis_below_one, "every axis of a layout needs at least one rank")                                      \
  fault(too_large, "a layout must have fewer than 2^31 - 1 ranks")                                             \
  fault(order_incomplete, "the order of a layout must name tensor, context and data, each once")               \
  fault(experts_do_not_divide,                                                                                 \
        "the expert axes of a layout need expert * expert_tensor to divide data * context * tensor")
// clang-format on

/// Why a layout is refused.
enum class layout_fault : std::uint8_t {
  none,
#define MOIETY_FAULT(name, text) name,
  MOIETY_LAYOUT_FAULTS(MOIETY_FAULT)
#undef MOIETY_FAULT
};

constexpr std::string_view sentence_of(layout_fault fault) {
  switch (fault) {
#define MOIETY_FAULT(name, text) \
  case layout_fault::name: return text;
    MOIETY_LAYOUT_FAULTS(MOIETY_FAULT)
#undef MOIETY_FAULT
    case layout_fault::none: break;
  }
  return {};
}

constexpr layout_fault fault_of(layout const& l) {
  if (l.is_dynamic()) return layout_fault::not_given;
  for (int const ranks : {l.data, l.tensor, l.context, l.pipeline, l.expert, l.expert_tensor})
    if (ranks < 1) return layout_fault::axis_below_one;
  if (l.world() == std::numeric_limits<int>::max()) return layout_fault::too_large;
  if (!l.order.has(axis::tensor) || !l.order.has(axis::context) || !l.order.has(axis::data))
    return layout_fault::order_incomplete;
  if (l.stage() % l.expert_group() != 0) return layout_fault::experts_do_not_divide;
  return layout_fault::none;
}

namespace detail {

template <layout_fault Fault> consteval bool accept_layout() {
#define MOIETY_FAULT(name, text) static_assert(Fault != layout_fault::name, text ".");
  MOIETY_LAYOUT_FAULTS(MOIETY_FAULT)
#undef MOIETY_FAULT
  return true;
}

[[noreturn]] inline void refuse(layout const& l, layout_fault fault) {
  throw config_error(sentence("the layout with ", l, ": ", sentence_of(fault), '.'));
}

}  // namespace detail

/// A constant layout; mo::dynamic passes, as the layout given in its place is checked when it comes.
template <layout Layout> consteval bool check_layout() {
  return detail::accept_layout < Layout.is_dynamic() ? layout_fault::none : fault_of(Layout) > ();
}

constexpr void check_layout(layout const& l) {
  if (layout_fault const fault = fault_of(l); fault != layout_fault::none) detail::refuse(l, fault);
}

/// A layout and the number of ranks that there are for it.
inline void check_world(layout const& l, std::int64_t ranks) {
  check_layout(l);
  detail::require<config_error>(l.world() == ranks, "the layout with ", l, " needs ", l.world(),
                                " ranks, and there are ", ranks, '.');
}

}  // namespace moiety
