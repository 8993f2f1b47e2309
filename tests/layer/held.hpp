// SPDX-License-Identifier: Apache-2.0
// Parameters without a layer: what has for_each(f), for tests of what works on the parameters of any model.
#pragma once

#include <moiety/backend/transport/rows.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/core/random.hpp>
#include <moiety/layer/parameter_set.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace held {

template <class S> class parts {
 public:
  /// One of `size` values that are drawn by key, name and layer.
  void add(std::string name, int layer, std::int64_t size, bool tied, std::uint64_t key = 0) {
    moiety::parameter p{
        .name = std::move(name), .shape = {size}, .part = {{0, size}}, .fan_in = 1, .type = moiety::name_of<S>};
    p.tied = tied, p.layer = layer;
    values_.emplace_back();
    for (std::int64_t i = 0; i < size; ++i)
      values_.back().push_back(
          static_cast<S>(moiety::normal(moiety::seed{key + 100 * static_cast<std::uint64_t>(layer)},
                                        moiety::stream_of(p.name), static_cast<std::uint64_t>(i))));
    names_.push_back(std::move(p));
  }

  std::size_t size() const { return names_.size(); }
  moiety::parameter const& name(std::size_t i) const { return names_[i]; }
  std::vector<S>& operator[](std::size_t i) { return values_[i]; }

  template <class F> void for_each(F&& f) {
    for (std::size_t i = 0; i < size(); ++i) f(std::as_const(names_[i]), std::span<S>(values_[i]));
  }
  template <class F> void for_each(F&& f) const {
    for (std::size_t i = 0; i < size(); ++i) f(names_[i], std::span<S const>(values_[i]));
  }

 private:
  std::vector<moiety::parameter> names_;
  std::vector<std::vector<S>> values_;
};

}  // namespace held
