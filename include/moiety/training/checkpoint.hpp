// SPDX-License-Identifier: Apache-2.0
// Checkpoints: logical tensors in one safetensors file, whatever the layout that wrote it or reads it.
//
//   mo::save_checkpoint(ranks, "step_1000.safetensors", slices, {{"step", "1000"}});
//   auto const metadata = mo::load_checkpoint(ranks, "step_1000.safetensors", slices);
//
// Both are collectives of a communicator, and fail on all its ranks or on none. The folder must be shared by the ranks.
// Values keep their bits; they are never converted.
//
// Saved, ranks that have a tensor must agree on its type and shape, and owners must have each value exactly once; a rank
// without any of a tensor need not list it. The file is written beside PATH, as PATH.partial-N, and takes its place when it
// is on the disk: at any moment PATH is the old file or the new one, whole. What fails before removes the partial file; only
// a process that is killed leaves it behind.
//
// Loaded, each slice must have the type and shape that the file has, and each tensor of the file be in a slice of some
// rank, unless other tensors are allowed. All that is checked on all ranks before a first value is written. The file must
// not be replaced meanwhile.
//
// Throws config_error for slices that make no sense or do not fit together, data_error for a file that cannot be read, is
// malformed or has other tensors, resource_error for a file that cannot be written; each names file or tensor, and on the other
// ranks the one that threw it.
#pragma once

#include <moiety/backend/transport/communicator.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/mesh/agreement.hpp>
#include <moiety/training/json.hpp>
#include <moiety/training/posix_file.hpp>
#include <moiety/training/rank_texts.hpp>
#include <moiety/training/safetensors.hpp>
#include <moiety/training/tensor_slice.hpp>
#include <moiety/training/united_header.hpp>

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// A new file beside `path`; it is gone with this object unless it took that place.
class partial_file {
 public:
  explicit partial_file(std::string const& path) : file_(posix_file::create(path + ".partial-")) {}
  partial_file(partial_file const&) = delete;
  partial_file& operator=(partial_file const&) = delete;
  ~partial_file() {
    if (pending_) ::unlink(file_.path().c_str());
  }

  std::string const& path() const { return file_.path(); }

  /// Gives the file its header and its size.
  void begin(safetensors_header header) {
    std::string const head = write_safetensors(header);
    file_.write(head.data(), static_cast<std::int64_t>(head.size()), 0);
    file_.resize(header.data + header.data_bytes());
    file_.sync();
  }

  void become(std::string const& path) {
    replace_file(file_.path(), path);
    pending_ = false;
  }

 private:
  posix_file file_;
  bool pending_ = true;
};

inline void check_stored(tensor_slice const& slice, safetensors_header const& header, std::string const& path) {
  auto const found = header.tensors.find(slice.name);
  require<data_error>(found != header.tensors.end(), path, " has no tensor ", shown(slice.name), '.');
  auto const& [name, stored] = *found;
  require<data_error>(stored.type == slice.type, tensor_words(path, name), " is of type ", name_of_type(stored.type),
                      ", but ", name_of_type(slice.type), " is to be loaded.");
  require<data_error>(stored.shape == slice.shape, tensor_words(path, name), " is of shape ", list_of(stored.shape),
                      ", but ", list_of(slice.shape), " is to be loaded.");
}

}  // namespace detail

/// `path` and `metadata` are those of rank 0.
template <communicator C>
void save_checkpoint(C& ranks, std::string const& path, std::span<tensor_slice const> slices,
                     text_map const& metadata = {}) {
  agree(ranks, [&] { std::for_each(slices.begin(), slices.end(), detail::check_slice); });
  auto const packed = detail::gather_texts(ranks, detail::packed_slices(slices));
  std::optional<detail::partial_file> partial;  // of rank 0
  agree(ranks, [&] {
    if (ranks.rank() != 0) return;
    safetensors_header header = detail::united_header(packed, metadata);
    partial.emplace(path).begin(std::move(header));
  });
  std::string place = partial ? partial->path() : "";
  detail::broadcast_text(ranks, place);
  agree(ranks, [&] {
    auto file = detail::posix_file::open_to_write(place);
    safetensors_header const header = read_safetensors(file);
    for (tensor_slice const& s : slices) {
      if (!s.owner) continue;
      std::int64_t const begin = header.data + header.tensors.at(s.name).first;
      detail::for_each_run(s, [&](std::int64_t in_tensor, std::int64_t in_box, std::int64_t length) {
        file.write(static_cast<std::byte const*>(s.values) + in_box, length, begin + in_tensor);
      });
    }
    file.sync();
  });
  agree(ranks, [&] {
    if (partial) partial->become(path);
  });
}

struct load_options {
  bool allow_others = false;  // tensors of the file that no rank asks for
};

/// The metadata of the file.
template <communicator C>
text_map load_checkpoint(C& ranks, std::string const& path, std::span<tensor_slice const> slices,
                         load_options const& options = {}) {
  std::optional<detail::posix_file> file;
  safetensors_header header;
  std::uint64_t seen = 0;
  agree(ranks, [&] {
    std::for_each(slices.begin(), slices.end(), detail::check_slice);
    file.emplace(detail::posix_file::open_to_read(path));
    std::string const text = detail::header_text(*file);
    header = parse_safetensors(text, file->size() - 8 - static_cast<std::int64_t>(text.size()), path);
    for (tensor_slice const& s : slices) detail::check_stored(s, header, path);
    seen = std::hash<std::string>{}(text);
  });
  std::vector<std::uint64_t> all(static_cast<std::size_t>(ranks.size()));
  ranks.template all_gather<std::uint64_t>({&seen, 1}, all);
  detail::require_together<data_error>(ranks, std::count(all.begin(), all.end(), all[0]) == ranks.size(), path,
                                       " is not the same file for all ranks.");
  if (!options.allow_others) {
    std::set<std::string_view> names;
    for (tensor_slice const& s : slices) names.insert(s.name);
    std::vector<std::int64_t> asked;
    for (auto const& [name, stored] : header.tensors) asked.push_back(names.contains(name));
    ranks.all_reduce(std::span(asked));
    auto entry = header.tensors.begin();
    for (std::size_t i = 0; i < asked.size(); ++i, ++entry)
      detail::require_together<data_error>(ranks, asked[i] > 0, detail::tensor_words(path, entry->first),
                                           " is not to be loaded.");
  }
  agree(ranks, [&] {
    for (tensor_slice const& s : slices) {
      std::int64_t const begin = header.data + header.tensors.at(s.name).first;
      detail::for_each_run(s, [&](std::int64_t in_tensor, std::int64_t in_box, std::int64_t length) {
        file->read(static_cast<std::byte*>(s.values) + in_box, length, begin + in_tensor);
      });
    }
  });
  return header.metadata;
}

}  // namespace moiety
