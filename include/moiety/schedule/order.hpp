// SPDX-License-Identifier: Apache-2.0
// An order says, for each rank, what it does and when. A user's own order is a type like this:
//
//   struct forward_then_backward {
//     static constexpr std::string_view name = "forward_then_backward";
//     static constexpr auto placed = mo::placement::loop;
//     static constexpr auto gradients = mo::gradient_order::ascending;
//     static constexpr mo::shape_fault fault(mo::pipeline_shape const& shape) { return mo::shape_fault::none; }
//     static constexpr void generate(mo::pipeline_shape const& shape, int rank, mo::rank_actions& actions) {
//       for (int i = 0; i < shape.microbatches; ++i) actions.forward(rank, i);
//       for (int i = 0; i < shape.microbatches; ++i) actions.backward(rank, i);
//     }
//   };
//
// Faults of any shape (no rank, no micro-batch) are found before fault() is asked; generate() is called for shapes
// without a fault. An order need not be right: verify() tells.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/action.hpp>
#include <moiety/schedule/shape.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

/// On which rank a stage lives.
///   loop           stage mod ranks
///   v              as loop for the first chunk, mirrored for the second: a rank holds stages r and 2·ranks − 1 − r
///   bidirectional  stage s on rank s for the first half of the micro-batches, on rank ranks − 1 − s for the second
enum class placement : std::uint8_t { loop, v, bidirectional };

/// In which order a stage's weight gradients are added. Ascending orders give the same bits for the same micro-batches.
enum class gradient_order : std::uint8_t { ascending, descending, ascending_per_direction };

constexpr int stages_of(placement where, pipeline_shape const& shape) {
  return where == placement::bidirectional ? shape.ranks : shape.ranks * shape.chunks;
}

/// The rank of a stage, for the micro-batches of the first half.
constexpr int rank_of_stage(placement where, pipeline_shape const& shape, int stage) {
  int const chunk = stage / shape.ranks, place = stage % shape.ranks;
  return where == placement::v && chunk % 2 == 1 ? shape.ranks - 1 - place : place;
}

namespace detail {

/// An array of a size known at run time, usable while compiling.
template <class T> class table {
 public:
  constexpr explicit table(std::int64_t size) : data_(new T[static_cast<std::size_t>(size)]{}) {}
  table(table const&) = delete;
  table& operator=(table const&) = delete;
  constexpr ~table() { delete[] data_; }
  constexpr T& operator[](std::int64_t i) { return data_[i]; }
  constexpr T const& operator[](std::int64_t i) const { return data_[i]; }
  constexpr T* data() { return data_; }

 private:
  T* data_;
};

}  // namespace detail

/// The list that an order fills for one rank.
class rank_actions {
 public:
  /// Room for every forward, input gradient and weight gradient of a rank.
  static constexpr std::int64_t most(pipeline_shape const& shape) {
    return std::int64_t{3} * shape.chunks * shape.microbatches;
  }

  constexpr rank_actions(action* to, std::int64_t capacity) : begin_(to), end_(to), limit_(to + capacity) {}

  constexpr void forward(int stage, int microbatch) { add({stage, microbatch, computation::forward}); }
  constexpr void backward(int stage, int microbatch) { add({stage, microbatch, computation::backward}); }
  constexpr void input_gradient(int stage, int microbatch) { add({stage, microbatch, computation::input_gradient}); }
  constexpr void weight_gradient(int stage, int microbatch) { add({stage, microbatch, computation::weight_gradient}); }

  /// A forward and a backward as one step.
  constexpr void overlap(int forward_stage, int forward_microbatch, int backward_stage, int backward_microbatch) {
    forward(forward_stage, forward_microbatch);
    add({backward_stage, backward_microbatch, computation::backward, true});
  }

  /// The weight gradient of the oldest input gradient that still lacks one, if there is any; nothing else may call
  /// weight_gradient() then.
  constexpr bool next_weight_gradient() {
    while (oldest_ != end_ - begin_ && begin_[oldest_].type != computation::input_gradient) ++oldest_;
    if (oldest_ == end_ - begin_) return false;
    action const input = begin_[oldest_++];
    weight_gradient(input.stage, input.microbatch);
    return true;
  }

  constexpr std::int64_t size() const { return end_ - begin_; }

 private:
  constexpr void add(action next) {
    if (end_ == limit_) throw schedule_error("an order made more actions than its shape has.");
    *end_++ = next;
  }

  action *begin_, *end_, *limit_;
  std::int64_t oldest_ = 0;  // index behind the last input gradient whose weight gradient is in the list
};

template <class O>
concept pipeline_order = requires(pipeline_shape const& shape, rank_actions& actions) {
  { O::name } -> std::convertible_to<std::string_view>;
  { O::placed } -> std::convertible_to<placement>;
  { O::gradients } -> std::convertible_to<gradient_order>;
  { O::fault(shape) } -> std::same_as<shape_fault>;
  O::generate(shape, 0, actions);
};

/// Why an order refuses a shape, or none.
template <pipeline_order Order> constexpr shape_fault fault_of(pipeline_shape const& shape) {
  shape_fault const any = fault_of_sizes(shape);
  return any == shape_fault::none ? Order::fault(shape) : any;
}

}  // namespace moiety
