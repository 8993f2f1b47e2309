// SPDX-License-Identifier: Apache-2.0
// The tensors of one rank as a training loop sees them, and the ranks that hold the same.
//
//   replicated::stage          every rank of the stage holds it: dense tensors under tensor parallelism of sequences, routers
//   replicated::data_context   the ranks of equal place on the tensor axis: pieces of a tensor-parallel layer
//   replicated::expert_data    the ranks that hold the same experts
//   replicated::tied           every rank of the first and of the last stage: an embedding that is the head's matrix too
//
// Ranks that hold the same tensor list it under the same name, in the same order among the tensors of its kind. Ranks of
// other groups may hold others, or none. Memory is the host's. All parameters are described by a function:
//
//   auto const parameters = [&](auto const& f) {
//     mo::for_each_parameter(weights, gradients, [&](mo::parameter const& p, auto w, auto g) {
//       f(mo::trained_tensor{p.name, w, g, p.name.starts_with("experts") ? mo::replicated::expert_data
//                                                                       : mo::replicated::stage});
//     });
//   };
//   auto const list = mo::gradients_of<float>(parameters);
#pragma once

#include <moiety/backend/transport/communicator.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/hash.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/mesh/agreement.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

enum class replicated { stage, data_context, expert_data, tied };
inline constexpr std::array replications{replicated::stage, replicated::data_context, replicated::expert_data,
                                         replicated::tied};

/// The communicators of one rank: of the run, and of the ranks that hold its tensors. A rank of a stage in the middle may
/// give any group of such ranks as `tied`, for one, itself alone. Sums over ranks have the fixed order, or what
/// mo::numerics::fastest asks for: the same on every rank.
template <communicator C> struct rank_groups {
  C& world;
  C& stage;
  C& data_context;
  C& expert_data;
  C& tied;
  bool fastest = false;

  C& of(replicated over) const {
    switch (over) {
      case replicated::data_context: return data_context;
      case replicated::expert_data: return expert_data;
      case replicated::tied: return tied;
      default: return stage;
    }
  }
};

/// This rank's gradient of one tensor.
template <std::floating_point S> struct gradient_slice {
  std::string name;
  std::span<S> values;
  replicated over = replicated::stage;
};
template <std::floating_point S> using gradient_list = std::vector<gradient_slice<S>>;

/// A tensor of this rank and its gradient; one that does not decay is left out of weight decay: norms, biases.
template <scalar T> struct trained_tensor {
  std::string name;
  std::span<T> weights;
  std::span<sum_t<T>> gradients;
  replicated over = replicated::stage;
  bool decays = true;
};
template <class T, class... Rest> trained_tensor(std::string, std::span<T>, Rest...) -> trained_tensor<T>;

/// The gradients of all parameters.
template <std::floating_point S, class Parameters> gradient_list<S> gradients_of(Parameters const& parameters) {
  gradient_list<S> all;
  parameters([&](auto const& t) { all.push_back({t.name, t.gradients, t.over}); });
  return all;
}

namespace detail {

/// Adds a tensor to the fingerprint of a list.
inline void add_tensor(fnv_1a& listed, std::string const& name, std::size_t size) {
  listed.add(std::uint64_t{name.size()});
  listed.add(name);
  listed.add(std::uint64_t{size});
}

/// A config_error on every rank of the group unless all list the same tensors.
template <communicator C> void expect_same_tensors(C& group, fnv_1a const& mine, char const* call) {
  std::uint64_t const value = mine.value();
  std::vector<std::uint64_t> all(static_cast<std::size_t>(group.size()));
  group.template all_gather<std::uint64_t>({&value, 1}, all);
  auto const other = std::find_if(all.begin(), all.end(), [&](std::uint64_t v) { return v != all[0]; });
  require_together<config_error>(group, other == all.end(), call, ": ranks 0 and ", other - all.begin(), " of ",
                                 all.size(), " that hold the same tensors list others, in name, size or order.");
}

/// Tensors that share memory would be summed twice.
template <class S> void expect_disjoint(gradient_list<S> const& gradients) {
  std::vector<gradient_slice<S> const*> by_place;
  for (auto const& g : gradients)
    if (!g.values.empty()) by_place.push_back(&g);
  std::sort(by_place.begin(), by_place.end(),
            [](auto const* a, auto const* b) { return std::less<>{}(a->values.data(), b->values.data()); });
  for (std::size_t i = 1; i < by_place.size(); ++i) {
    auto const &a = *by_place[i - 1], &b = *by_place[i];
    require<data_error>(!std::less<>{}(b.values.data(), a.values.data() + a.values.size()), "the gradients ", a.name,
                        " and ", b.name, " share memory; a tensor that is used twice is listed once.");
  }
}

/// f(first, last) for runs of tensors of at most `limit` bytes together, or of one tensor.
template <class Bytes, class F>
void for_each_bucket(std::size_t tensors, std::int64_t limit, Bytes const& bytes_of, F const& f) {
  std::int64_t bytes = 0;
  std::size_t first = 0;
  for (std::size_t i = 0; i < tensors; ++i) {
    if (i > first && bytes + bytes_of(i) > limit) {
      f(first, i);
      first = i;
      bytes = 0;
    }
    bytes += bytes_of(i);
  }
  if (first < tensors) f(first, tensors);
}

}  // namespace detail

}  // namespace moiety
