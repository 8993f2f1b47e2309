// SPDX-License-Identifier: Apache-2.0
// Weights or gradients as the training room takes them, in memory of the host, whatever the back end holds them in:
//
//   mo::host_copy weights_here(ctx, weights);
//   mo::host_copy gradients_here(ctx, gradients);
//   …                                                     forward and backward
//   gradients_here.load();                                 waits for the back end
//   auto const list = mo::gradients_of<float>(mo::parameters_of(weights_here, gradients_here));
//   …                                                     sums over ranks, clipping, the optimiser's step
//   weights_here.store();                                  what the next forward reads
//
// for_each(f) is that of what was copied: a layer's, a stack's, or of whatever has one as these have. On mo::cuda the copy has
// memory of its own, as much as the original, and is empty until it is loaded; an optimiser beside it keeps its states on the
// host too. On mo::host it is the original: load and store do nothing.
//
// The original lives longer, and its parameters stay where they are.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/backend/host.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/layer/parameters.hpp>
#include <moiety/mesh/context.hpp>

#include <cstdint>
#include <memory_resource>
#include <span>
#include <type_traits>
#include <unordered_map>

namespace moiety::inline MOIETY_ABI {

template <class Set> class host_copy {
 public:
  template <class Deployment> host_copy(context<Deployment>& ctx, Set& of) : of_(&of), memory_(&ctx.memory()) {
    if (memory_->of_host()) return;
    of.for_each([&](parameter const&, auto values) {
      auto const bytes = static_cast<std::int64_t>(values.size_bytes());
      copies_.emplace(values.data(), buffer(bytes, *std::pmr::new_delete_resource()));
    });
  }

  /// From the back end, after all work before it.
  void load() {
    each_copy([this](buffer const& here, auto values) { memory_->load(here.data(), values.data(), here.bytes()); });
  }
  /// To the back end, before all work after it.
  void store() {
    each_copy([this](buffer const& here, auto values) { memory_->store(values.data(), here.data(), here.bytes()); });
  }

  /// f(parameter, span of its values here) for each parameter.
  template <class F> void for_each(F&& f) const {
    of_->for_each([&](parameter const& p, auto values) { f(p, here(values)); });
  }
  /// The same without states.
  template <class F> void for_each_trained(F&& f) const {
    detail::for_each_trained(*of_, [&](parameter const& p, auto values) { f(p, here(values)); });
  }

 private:
  template <class V> std::span<V> here(std::span<V> values) const {
    if (memory_->of_host()) return values;
    return {static_cast<V*>(copies_.at(values.data()).data()), values.size()};
  }
  template <class F> void each_copy(F const& f) const {
    if (memory_->of_host()) return;
    of_->for_each([&](parameter const&, auto values) { f(copies_.at(values.data()), values); });
  }

  Set* of_;
  arena* memory_;
  std::unordered_map<void const*, buffer> copies_;  // by where the original lies
};

namespace detail {

template <class Set> inline constexpr bool is_host_copy = false;
template <class Set> inline constexpr bool is_host_copy<host_copy<Set>> = true;

/// Whether host code reads and writes what for_each of a set shows.
template <class Deployment, class Set> consteval bool check_of_host() {
  static_assert(std::is_same_v<typename context<Deployment>::backend, host> || is_host_copy<std::remove_const_t<Set>>,
                "the training room works on memory of the host: give it weights and gradients of mo::cuda as "
                "mo::host_copy, of <moiety/training/host_copy.hpp>.");
  return true;
}

}  // namespace detail

}  // namespace moiety
