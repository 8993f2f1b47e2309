// SPDX-License-Identifier: Apache-2.0
// All values of a model's weights or gradients on every rank, by name, whatever the layout; for comparing and for fingerprints.
#pragma once

#include <moiety/moiety.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace lm {

namespace mo = moiety;

template <class Real> using named_values = std::map<std::string, std::vector<Real>>;

namespace detail {

/// Numbers and names one after another, as ranks tell them to each other.
class packed {
 public:
  packed() = default;
  explicit packed(std::vector<char> bytes) : bytes_(std::move(bytes)) {}

  template <class T> void put(std::span<T const> values) {
    auto const size = static_cast<std::int64_t>(values.size());
    append(&size, sizeof size), append(values.data(), values.size_bytes());
  }
  template <class T> std::vector<T> take() {
    std::int64_t size = 0;
    extract(&size, sizeof size);
    std::vector<T> values(static_cast<std::size_t>(size));
    extract(values.data(), values.size() * sizeof(T));
    return values;
  }
  bool empty() const { return next_ == bytes_.size(); }
  std::span<char const> bytes() const { return bytes_; }

 private:
  void append(void const* from, std::size_t bytes) {
    auto const* const first = static_cast<char const*>(from);
    bytes_.insert(bytes_.end(), first, first + bytes);
  }
  void extract(void* to, std::size_t bytes) {
    if (bytes > 0) std::memcpy(to, bytes_.data() + next_, bytes);
    next_ += bytes;
  }

  std::vector<char> bytes_;
  std::size_t next_ = 0;
};

}  // namespace detail

/// A collective of the run; `all` is whatever has for_each(f) as weights have.
template <class Context, class Set> auto gathered(Context& ctx, Set& all) {
  using real = typename Context::element;
  detail::packed mine;
  all.for_each([&](mo::parameter const& p, auto values) {
    mine.put<char>(p.name);
    std::int64_t size = 1;
    for (std::int64_t const extent : p.shape) size *= extent;
    std::vector<std::int64_t> pieces{size};
    p.for_each_piece([&](std::int64_t first, std::int64_t length) { pieces.insert(pieces.end(), {first, length}); });
    mine.put<std::int64_t>(pieces);
    mine.put<real>(values);
  });
  detail::packed told(ctx.world().template all_gather_v<char>(mine.bytes()));
  named_values<real> result;
  while (!told.empty()) {
    std::vector<char> const name = told.take<char>();
    std::vector<std::int64_t> const pieces = told.take<std::int64_t>();
    std::vector<real> const values = told.take<real>();
    std::vector<real>& whole = result[std::string(name.begin(), name.end())];
    whole.resize(static_cast<std::size_t>(pieces[0]));
    auto from = values.begin();
    for (std::size_t i = 1; i < pieces.size(); i += 2) {
      std::copy_n(from, pieces[i + 1], whole.begin() + pieces[i]);
      from += pieces[i + 1];
    }
  }
  return result;
}

/// FNV-1a over the bits of all values, in order of names.
template <class Real> std::uint64_t fingerprint(named_values<Real> const& all) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (auto const& [name, values] : all)
    for (std::byte const b : std::as_bytes(std::span(values)))
      hash = (hash ^ static_cast<std::uint64_t>(b)) * 0x100000001b3u;
  return hash;
}

template <class Real> std::int64_t count(named_values<Real> const& all) {
  std::int64_t sum = 0;
  for (auto const& [name, values] : all) sum += std::ssize(values);
  return sum;
}

}  // namespace lm
