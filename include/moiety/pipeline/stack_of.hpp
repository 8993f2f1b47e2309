// SPDX-License-Identifier: Apache-2.0
// The weights, or the gradients, of the layers that a rank holds of a model, each with its number in the whole: stack_of<Parts...>
// has layers of several kinds, kind K keeping Parts[K].
//
//   all.for_each(f)                               f(parameter, values) for each of every layer: also by mo::for_each_parameter
//   all.reset()                                   of gradients: the next backward overwrites
//
// A parameter's name in the model is layers.N.name, but for one that is tied, which keeps its own. Where a pipeline holds each
// stage twice, all of them are tied.
//
// Gradients that were united have the sum over all holders on each. Before more is added, all holders but the first give it up,
// so that the next sum has it once.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/core/config.hpp>
#include <moiety/layer/parameters.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {
template <class Part>
concept resettable = requires(Part& part) {
  part.reset();
};
}  // namespace detail

template <class... Parts> class stack_of {
 public:
  explicit stack_of(bool held_twice = false) : held_twice_(held_twice) {}

  /// The part of a layer of kind K.
  template <std::size_t K, class Part> void add(int layer, Part part) {
    numbers_.push_back(layer);
    parts_.emplace_back(std::in_place_index<K>, std::move(part));
  }
  std::size_t size() const { return parts_.size(); }
  int number(std::size_t i) const { return numbers_[i]; }
  template <std::size_t K> auto& get(std::size_t i) { return std::get<K>(parts_[i]); }
  template <std::size_t K> auto const& get(std::size_t i) const { return std::get<K>(parts_[i]); }
  static std::string prefix(int layer) { return "layers." + std::to_string(layer) + '.'; }

  template <class F> void for_each(F&& f) { visit(*this, f, any); }
  template <class F> void for_each(F&& f) const { visit(*this, f, any); }
  template <class F> void for_each_trained(F&& f) { visit(*this, f, trained); }
  template <class F> void for_each_trained(F&& f) const { visit(*this, f, trained); }

  void reset() requires(detail::resettable<Parts>&&...) {
    for (auto& part : parts_) std::visit([](auto& of) { of.reset(); }, part);
    first_.clear();
  }

  /// Sums over all holders, see layer/shared_parameters.hpp.
  template <class Shared> void unite(Shared const& shared) {
    shared.sum(*this);
    std::vector<bool> first;
    for_each([&](parameter const&, auto) { first.push_back(shared.counts(first.size())); });
    if (std::find(first.begin(), first.end(), false) != first.end()) first_ = std::move(first);
  }
  /// In the memory that gradients lie in.
  void before_more(arena& memory) {
    if (first_.empty()) return;
    auto first = first_.begin();
    for_each([&](parameter const&, auto values) {
      if (!*first++) memory.zero(values.data(), static_cast<std::int64_t>(values.size_bytes()));
    });
    first_.clear();
  }

 private:
  static constexpr auto any = [](auto& part, auto const& f) { part.for_each(f); };
  static constexpr auto trained = [](auto& part, auto const& f) { detail::for_each_trained(part, f); };

  template <class Self, class F, class Which> static void visit(Self& self, F& f, Which const& which) {
    for (std::size_t i = 0; i < self.size(); ++i) {
      auto const named = [&](parameter p, auto values) {
        p.layer = self.numbers_[i];
        if (!p.tied) p.name = prefix(p.layer) + p.name;
        p.tied = p.tied || self.held_twice_;
        f(std::as_const(p), values);
      };
      std::visit([&](auto& part) { which(part, named); }, self.parts_[i]);
    }
  }

  bool held_twice_;
  std::vector<int> numbers_;
  std::vector<std::variant<Parts...>> parts_;
  std::vector<bool> first_;  // of each parameter, once gradients were united
};

}  // namespace moiety
