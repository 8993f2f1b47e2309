// SPDX-License-Identifier: Apache-2.0
// The sizes of a pipeline, and every reason why an order may refuse them.
//
// A model is cut into ranks · chunks stages (bidirectional orders: into as many stages as ranks, each on two ranks).
// Sizes that are constant are refused by static_assert, others by schedule_error, with the same sentence.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <cstdint>
#include <stdexcept>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

struct pipeline_shape {
  int ranks = 1;
  int chunks = 1;        // stages that a rank holds
  int microbatches = 1;  // of one step
  int group = 0;         // micro-batches that pass a chunk before the next chunk begins; 0: the order chooses

  friend constexpr bool operator==(pipeline_shape const&, pipeline_shape const&) = default;
};

/// A shape, an order or a table of actions that cannot work.
struct schedule_error : std::logic_error {
  using std::logic_error::logic_error;
};

// clang-format off
#define MOIETY_SHAPE_FAULTS(fault)                                                                                    \
  fault(no_ranks, "a pipeline needs at least one rank")                                                               \
  fault(no_chunks, "a rank needs at least one chunk")                                                                 \
  fault(no_microbatches, "a step needs at least one micro-batch")                                                     \
  fault(negative_group, "group size must not be negative")                                                            \
  fault(too_large, "ranks * chunks * microbatches must be below 2^28")                                                \
  fault(group_unused, "this order has no groups")                                                                     \
  fault(more_than_one_chunk, "this order needs exactly one chunk a rank")                                             \
  fault(fewer_than_two_chunks, "this order needs at least two chunks a rank")                                         \
  fault(not_two_chunks, "this order needs exactly two chunks a rank")                                                 \
  fault(group_below_ranks, "group size must be at least the number of ranks")                                         \
  fault(group_above_microbatches, "group size must be at most the number of micro-batches")                           \
  fault(short_last_group, "the last group must be full or hold at least as many micro-batches as there are ranks")    \
  fault(microbatches_below_twice_ranks, "this order needs at least 2 * ranks micro-batches")                          \
  fault(uneven_rounds, "microbatches must be divisible by their number of rounds, microbatches / ranks rounded down") \
  fault(odd_ranks, "this order needs an even number of ranks")                                                        \
  fault(odd_microbatches, "this order needs an even number of micro-batches")
// clang-format on

/// Why a shape is refused.
enum class shape_fault : std::uint8_t {
  none,
#define MOIETY_FAULT(name, text) name,
  MOIETY_SHAPE_FAULTS(MOIETY_FAULT)
#undef MOIETY_FAULT
};

constexpr std::string_view sentence_of(shape_fault fault) {
  switch (fault) {
#define MOIETY_FAULT(name, text) \
  case shape_fault::name: return text;
    MOIETY_SHAPE_FAULTS(MOIETY_FAULT)
#undef MOIETY_FAULT
    case shape_fault::none: break;
  }
  return {};
}

/// What no order accepts.
constexpr shape_fault fault_of_sizes(pipeline_shape const& shape) {
  if (shape.ranks < 1) return shape_fault::no_ranks;
  if (shape.chunks < 1) return shape_fault::no_chunks;
  if (shape.microbatches < 1) return shape_fault::no_microbatches;
  if (shape.group < 0) return shape_fault::negative_group;
  constexpr std::int64_t limit = std::int64_t{1} << 28;
  std::int64_t const stages = std::int64_t{shape.ranks} * shape.chunks;
  if (stages >= limit || stages * shape.microbatches >= limit) return shape_fault::too_large;
  return shape_fault::none;
}

namespace detail {

/// Fault if the condition fails, else none: for lists of requirements in order.
constexpr shape_fault unless(bool condition, shape_fault fault) { return condition ? shape_fault::none : fault; }

/// The first fault of a list.
template <class... Faults> constexpr shape_fault first_of(Faults... faults) {
  shape_fault first = shape_fault::none;
  ((first = first == shape_fault::none ? faults : first), ...);
  return first;
}

/// An order of one chunk a rank and no groups.
constexpr shape_fault plain_shape(pipeline_shape const& shape) {
  return first_of(unless(shape.chunks == 1, shape_fault::more_than_one_chunk),
                  unless(shape.group == 0, shape_fault::group_unused));
}

}  // namespace detail

}  // namespace moiety
