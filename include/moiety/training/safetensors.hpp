// SPDX-License-Identifier: Apache-2.0
// The header of a safetensors file: which tensors it holds, of what type and shape, and where.
//
//   8 bytes                 length of the header, little-endian; at most 100 MB
//   {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …, "__metadata__": {"KEY": "text", …}}
//   the data                row-major values, little-endian; offsets count from its begin
//
// What is read must be all of that: JSON without a name twice, an unknown field or a value of another kind; types of
// tensor_type; offsets that agree with type and shape, and tile the data, and so the file, without gaps or overlaps.
// Otherwise data_error, which names the file, the tensor and what was expected.
//
//   auto const file = mo::read_safetensors("model.safetensors");
//   for (auto const& [name, tensor] : file.tensors) …
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/training/json.hpp>
#include <moiety/training/posix_file.hpp>
#include <moiety/training/tensor_type.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

using text_map = std::map<std::string, std::string>;

/// A tensor of a file. Its bytes begin at `first` of the data.
struct stored_tensor {
  tensor_type type = tensor_type::f32;
  tensor_shape shape{};
  std::int64_t first = 0, bytes = 0;

  friend bool operator==(stored_tensor const&, stored_tensor const&) = default;
};

struct safetensors_header {
  std::map<std::string, stored_tensor> tensors{};
  text_map metadata{};
  std::int64_t data = 0;  // where the data begins in the file

  std::int64_t data_bytes() const {
    std::int64_t bytes = 0;
    for (auto const& [name, tensor] : tensors) bytes += tensor.bytes;
    return bytes;
  }
};

namespace detail {

inline constexpr std::int64_t largest_header = 100'000'000;
inline constexpr char const* metadata_name = "__metadata__";

inline tensor_type parse_type(std::string const& name, std::string const& of) {
  for (std::size_t i = 0; i < type_rows.size(); ++i)
    if (type_rows[i].name == name) return static_cast<tensor_type>(i);
  throw data_error(sentence(of, " is of type ", shown(name), ", not F64, F32, F16, BF16, I64, U64, I32 or U8."));
}

inline std::vector<std::int64_t> parse_numbers(json_reader& in) {
  std::vector<std::int64_t> numbers;
  in.list([&] { numbers.push_back(in.whole_number()); });
  return numbers;
}

/// `of` is the tensor, in words.
inline stored_tensor parse_tensor(json_reader& in, std::string const& of) {
  stored_tensor tensor;
  std::vector<std::int64_t> offsets;
  int fields = 0;
  in.object([&](std::string const& field) {
    ++fields;
    if (field == "dtype")
      tensor.type = parse_type(in.string(), of);
    else if (field == "shape")
      tensor.shape = parse_numbers(in);
    else if (field == "data_offsets")
      offsets = parse_numbers(in);
    else
      throw data_error(sentence(of, " has a field ", shown(field), ", not only dtype, shape and data_offsets."));
  });
  require<data_error>(fields == 3, of, " must have dtype, shape and data_offsets, each once.");
  require<data_error>(offsets.size() == 2 && offsets[0] <= offsets[1], of, " has data_offsets ", list_of(offsets),
                      ", not a begin and an end.");
  tensor.first = offsets[0];
  tensor.bytes = offsets[1] - offsets[0];
  std::int64_t const bytes = bytes_of_shape(tensor.shape, tensor.type);
  require<data_error>(bytes >= 0, of, " has a shape of too many values.");
  require<data_error>(bytes == tensor.bytes, of, " takes ", tensor.bytes, " bytes of the file, but its shape and type ",
                      bytes, '.');
  return tensor;
}

inline std::string tensor_words(std::string const& file, std::string_view name) {
  return sentence(file, ": tensor ", shown(name));
}

/// The tensors must lie one after another, in any order, from the begin of the data to its end.
inline void check_tiles(safetensors_header const& header, std::int64_t data_bytes, std::string const& file) {
  std::vector<std::pair<std::string const, stored_tensor> const*> order;
  for (auto const& entry : header.tensors) order.push_back(&entry);
  auto const place = [](auto const* entry) { return std::pair(entry->second.first, entry->second.bytes); };
  std::sort(order.begin(), order.end(), [&](auto const* a, auto const* b) { return place(a) < place(b); });
  std::int64_t end = 0;
  for (auto const* entry : order) {
    auto const& [name, tensor] = *entry;
    require<data_error>(tensor.first == end, tensor_words(file, name), " begins at byte ", tensor.first,
                        " of the data, but the tensors before it end at byte ", end, '.');
    end += tensor.bytes;
  }
  require<data_error>(end == data_bytes, file, ": the tensors take ", end, " bytes, but ", data_bytes,
                      " follow the header.");
}

}  // namespace detail

/// The header that a text is, of a file with so many bytes of data.
inline safetensors_header parse_safetensors(std::string_view text, std::int64_t data_bytes, std::string const& file) {
  safetensors_header header;
  header.data = 8 + static_cast<std::int64_t>(text.size());
  detail::require<data_error>(text.starts_with('{'), file, ": the header does not begin with '{'.");
  detail::json_reader in(text, file);
  in.object([&](std::string const& name) {
    if (name == detail::metadata_name)
      return in.object([&](std::string const& key) { header.metadata[key] = in.string(); });
    header.tensors[name] = detail::parse_tensor(in, detail::tensor_words(file, name));
  });
  in.end();
  detail::check_tiles(header, data_bytes, file);
  return header;
}

namespace detail {

/// The header of a file as it stands there.
inline std::string header_text(posix_file const& file) {
  std::int64_t const bytes = file.size();
  std::uint64_t length = 0;
  require<data_error>(bytes >= 8, file.path(), " has ", bytes, " bytes: too few for a safetensors file.");
  file.read(&length, 8, 0);
  require<data_error>(length <= largest_header, file.path(), " has a header of ", length,
                      " bytes, or is no safetensors file: at most ", largest_header, " are allowed.");
  auto const taken = static_cast<std::int64_t>(length);
  require<data_error>(taken <= bytes - 8, file.path(), " is cut off: its header takes ", taken, " bytes, but ",
                      bytes - 8, " are there.");
  std::string text(static_cast<std::size_t>(taken), '\0');
  file.read(text.data(), taken, 8);
  return text;
}

}  // namespace detail

inline safetensors_header read_safetensors(detail::posix_file const& file) {
  std::string const text = detail::header_text(file);
  return parse_safetensors(text, file.size() - 8 - static_cast<std::int64_t>(text.size()), file.path());
}
inline safetensors_header read_safetensors(std::string const& path) {
  return read_safetensors(detail::posix_file::open_to_read(path));
}

/// The first bytes of a file, to where its data begins, at a multiple of 8 bytes. Types and shapes are taken; places are
/// given: tensors of the widest types first, which aligns each, then by name. Names and metadata must be UTF-8. Throws
/// config_error where header or data would be too large.
inline std::string write_safetensors(safetensors_header& header) {
  std::string text = "{";
  auto const member = [&](std::string const& name) {
    text += (text.size() > 1 ? "," : "") + detail::json_quoted(name) + ':';
  };
  if (!header.metadata.empty()) {
    std::string values;
    for (auto const& [key, value] : header.metadata)
      values += (values.empty() ? "" : ",") + detail::json_quoted(key) + ':' + detail::json_quoted(value);
    member(detail::metadata_name);
    text += '{' + values + '}';
  }
  std::int64_t end = 0;
  for (std::int64_t const width : {8, 4, 2, 1})
    for (auto& [name, tensor] : header.tensors) {
      if (bytes_of_type(tensor.type) != width) continue;
      tensor.bytes = detail::bytes_of_shape(tensor.shape, tensor.type);
      detail::require<config_error>(
          tensor.bytes >= 0 && tensor.bytes <= std::numeric_limits<std::int64_t>::max() / 2 - end, "tensor ",
          detail::shown(name), " makes a file of too many bytes.");
      tensor.first = std::exchange(end, end + tensor.bytes);
      member(name);
      text +=
          detail::sentence("{\"dtype\":\"", name_of_type(tensor.type), "\",\"shape\":", detail::list_of(tensor.shape),
                           ",\"data_offsets\":", detail::list_of(std::array{tensor.first, end}), '}');
    }
  text += '}';
  text.append((8 - text.size() % 8) % 8, ' ');
  header.data = 8 + static_cast<std::int64_t>(text.size());
  auto const length = static_cast<std::int64_t>(text.size());
  detail::require<config_error>(length <= detail::largest_header, "a file of ", header.tensors.size(),
                                " tensors has a header of ", length, " bytes, above ", detail::largest_header, '.');
  return std::string(reinterpret_cast<char const*>(&length), 8) + text;
}

}  // namespace moiety
