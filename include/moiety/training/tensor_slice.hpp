// SPDX-License-Identifier: Apache-2.0
// What a rank holds of a logical tensor: a box, that is a range of every axis, whose values lie row-major in one piece.
//
//   mo::tensor_slice{.name = "experts.up", .type = mo::tensor_type::bf16, .shape = {E, F, H},
//                    .first = {0, 2 * f, 0}, .count = {E, f, H}, .values = up.data()}
//
// Expert parallelism is a range of axis 0, expert tensor parallelism one of axis 1 or 2. A rank may hold several boxes of
// one tensor, each a slice of its own. Ranks that hold the same values are replicas: one of them is the owner.
#pragma once

#include <moiety/backend/transport/rows.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/training/json.hpp>
#include <moiety/training/safetensors.hpp>
#include <moiety/training/tensor_type.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

struct tensor_slice {
  std::string name{};
  tensor_type type = tensor_type::f32;
  tensor_shape shape{};           // of the logical tensor
  tensor_shape first{}, count{};  // this rank's box
  void* values = nullptr;         // of the box; only loading changes them
  bool owner = true;              // writes the box when it is saved

  std::int64_t bytes() const { return detail::bytes_of_shape(count, type); }
};

/// All of a tensor.
template <class T>
tensor_slice whole_tensor(std::string name, tensor_shape shape, std::span<T> values, bool owner = true) {
  static_assert(!std::is_const_v<T>, "a slice is loaded too: its values are not const.");
  tensor_slice all{.name = std::move(name), .type = type_of_values<T>, .shape = std::move(shape)};
  detail::require<config_error>(
      detail::bytes_of_shape(all.shape, all.type) == static_cast<std::int64_t>(values.size_bytes()), "tensor ",
      detail::shown(all.name), " of shape ", detail::list_of(all.shape), " was given ", values.size(), " values.");
  all.first.resize(all.shape.size());
  all.count = all.shape;
  all.values = values.data();
  all.owner = owner;
  return all;
}

namespace detail {

inline std::string box_words(tensor_slice const& slice) {
  return sentence("the box of ", list_of(slice.count), " from ", list_of(slice.first));
}

/// Throws config_error unless the slice makes sense by itself.
inline void check_slice(tensor_slice const& slice) {
  require<config_error>(slice.name != metadata_name && is_utf8(slice.name), "no tensor can be called ",
                        shown(slice.name), '.');
  auto const fits = [&](bool condition, auto const&... parts) {
    require<config_error>(condition, "tensor ", shown(slice.name), " of shape ", list_of(slice.shape), parts..., '.');
  };
  bool const positive = std::all_of(slice.shape.begin(), slice.shape.end(), [](auto extent) { return extent >= 0; });
  fits(positive && bytes_of_shape(slice.shape, slice.type) >= 0, " has too many values, or fewer than none");
  std::size_t const axes = slice.shape.size();
  fits(slice.first.size() == axes && slice.count.size() == axes, " has another number of axes than ", box_words(slice));
  for (std::size_t a = 0; a < axes; ++a)
    fits(slice.first[a] >= 0 && slice.count[a] >= 0 && slice.count[a] <= slice.shape[a] - slice.first[a],
         " does not have ", box_words(slice));
  fits(slice.values != nullptr || slice.bytes() == 0, " has no values");
}

/// f(place in the tensor, place in the box, length), all in bytes, for each piece of the box that is one of the tensor too,
/// in ascending order of both places.
template <class F> void for_each_run(tensor_slice const& slice, F const& f) {
  std::int64_t const bytes = slice.bytes();
  if (bytes == 0) return;
  std::size_t outer = slice.shape.size();  // axes from here on make one run
  std::int64_t length = bytes_of_type(slice.type), stride = length, begin = 0;
  for (bool whole = true; outer > 0 && whole; whole = slice.count[outer] == slice.shape[outer]) {
    --outer;
    begin += slice.first[outer] * stride;
    stride *= slice.shape[outer];
    length *= slice.count[outer];
  }
  std::vector<std::int64_t> strides(outer), index(outer);
  for (std::size_t a = outer; a-- > 0; stride *= slice.shape[a]) {
    strides[a] = stride;
    begin += slice.first[a] * stride;
  }
  for (std::int64_t done = 0; done < bytes; done += length) {
    std::int64_t place = begin;
    for (std::size_t a = 0; a < outer; ++a) place += index[a] * strides[a];
    f(place, done, length);
    for (std::size_t a = outer; a-- > 0 && ++index[a] == slice.count[a];) index[a] = 0;
  }
}

/// Consecutive values of a box, counted row-major, as boxes of their own: at most 2 · axes − 1. They lie at `values` one after
/// another.
inline std::vector<tensor_slice> boxes_of(tensor_slice const& box, range_of which, void* values) {
  std::vector<tensor_slice> all;
  auto* place = static_cast<std::byte*>(values);
  for (std::int64_t at = which.first, end = which.first + which.count; at < end;) {
    tensor_slice& piece = all.emplace_back(box);
    piece.values = place;
    std::int64_t rest = at, inner = 1;  // inner: values of one index of the axis
    bool whole = true;                  // later axes are taken whole, so that this one may have several indices
    for (std::size_t axis = box.shape.size(); axis-- > 0; rest /= box.count[axis]) {
      std::int64_t const index = rest % box.count[axis];
      std::int64_t const most = whole ? std::min((end - at) / inner, box.count[axis] - index) : 1;
      piece.first[axis] += index;
      piece.count[axis] = most;
      whole = whole && most == box.count[axis];
      inner *= box.count[axis];
    }
    std::int64_t const bytes = piece.bytes();
    place += bytes;
    at += bytes / bytes_of_type(box.type);
  }
  return all;
}

/// Whether boxes of one tensor share a value.
inline bool overlap(tensor_slice const& a, tensor_slice const& b) {
  for (std::size_t axis = 0; axis < a.shape.size(); ++axis)
    if (a.first[axis] >= b.first[axis] + b.count[axis] || b.first[axis] >= a.first[axis] + a.count[axis]) return false;
  return a.bytes() > 0 && b.bytes() > 0;
}

}  // namespace detail

}  // namespace moiety
