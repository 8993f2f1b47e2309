// SPDX-License-Identifier: Apache-2.0
// One header for the slices of all ranks, which must fit together.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/training/json.hpp>
#include <moiety/training/safetensors.hpp>
#include <moiety/training/tensor_slice.hpp>
#include <moiety/training/tensor_type.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI::detail {

/// Slices without their values, as ranks of one program tell them to each other.
inline std::string packed_slices(std::span<tensor_slice const> slices) {
  std::string out;
  auto const put = [&](auto n) {
    auto const wide = static_cast<std::int64_t>(n);
    out.append(reinterpret_cast<char const*>(&wide), sizeof wide);
  };
  for (tensor_slice const& s : slices) {
    for (auto const n : {s.name.size(), s.shape.size(), static_cast<std::size_t>(s.type), std::size_t{s.owner}}) put(n);
    for (auto const* numbers : {&s.shape, &s.first, &s.count})
      for (std::int64_t const n : *numbers) put(n);
    out += s.name;
  }
  return out;
}

inline std::vector<tensor_slice> unpacked_slices(std::string_view text) {
  std::vector<tensor_slice> slices;
  auto const take = [&] {
    std::int64_t n = 0;
    std::memcpy(&n, text.data(), sizeof n);
    text.remove_prefix(sizeof n);
    return n;
  };
  while (!text.empty()) {
    tensor_slice& s = slices.emplace_back();
    auto const length = static_cast<std::size_t>(take()), axes = static_cast<std::size_t>(take());
    s.type = static_cast<tensor_type>(take());
    s.owner = take() != 0;
    for (auto* numbers : {&s.shape, &s.first, &s.count}) {
      numbers->resize(axes);
      for (std::int64_t& n : *numbers) n = take();
    }
    s.name = text.substr(0, length);
    text.remove_prefix(length);
  }
  return slices;
}

struct slice_of_rank {
  tensor_slice slice;
  int rank;
};

/// The slices have one type and shape, and those of owners each value exactly once.
inline void check_cover(std::string const& name, std::vector<slice_of_rank> slices) {
  auto const& [model, model_rank] = slices.front();
  for (auto const& [s, rank] : slices) {
    require<config_error>(s.type == model.type, "tensor ", shown(name), " is of type ", name_of_type(s.type),
                          " on rank ", rank, ", but ", name_of_type(model.type), " on rank ", model_rank, '.');
    require<config_error>(s.shape == model.shape, "tensor ", shown(name), " is of shape ", list_of(s.shape),
                          " on rank ", rank, ", but ", list_of(model.shape), " on rank ", model_rank, '.');
  }
  std::int64_t const bytes = bytes_of_shape(model.shape, model.type);
  std::erase_if(slices, [](auto const& s) { return !s.slice.owner || s.slice.bytes() == 0; });
  std::sort(slices.begin(), slices.end(), [](auto const& a, auto const& b) { return a.slice.first < b.slice.first; });
  std::int64_t owned = 0;
  for (auto a = slices.begin(); a != slices.end(); ++a) {
    owned += a->slice.bytes();
    for (auto b = a + 1; b != slices.end(); ++b) {
      // In this order of boxes, none that begins behind this one along axis 0 can meet it.
      if (!a->slice.shape.empty() && b->slice.first[0] >= a->slice.first[0] + a->slice.count[0]) break;
      require<config_error>(!overlap(a->slice, b->slice), "tensor ", shown(name), ": ", box_words(a->slice),
                            " of rank ", a->rank, " and ", box_words(b->slice), " of rank ", b->rank,
                            " overlap, and both are owners.");
    }
  }
  require<config_error>(owned == bytes, "tensor ", shown(name), ": the boxes of its owners have ", owned, " of its ",
                        bytes, " bytes.");
}

/// The header of the file that ranks' packed slices make.
inline safetensors_header united_header(std::vector<std::string> const& packed, text_map const& metadata) {
  std::map<std::string, std::vector<slice_of_rank>> tensors;
  for (std::size_t r = 0; r < packed.size(); ++r)
    for (tensor_slice& s : unpacked_slices(packed[r])) {
      std::string const name = s.name;
      tensors[name].push_back({std::move(s), static_cast<int>(r)});
    }
  safetensors_header header{.metadata = metadata};
  for (auto const& [key, value] : metadata)
    require<config_error>(is_utf8(key) && is_utf8(value), "metadata ", shown(key), " are not UTF-8.");
  for (auto& [name, slices] : tensors) {
    header.tensors[name] = {.type = slices[0].slice.type, .shape = slices[0].slice.shape};
    check_cover(name, std::move(slices));
  }
  return header;
}

}  // namespace moiety::inline MOIETY_ABI::detail
