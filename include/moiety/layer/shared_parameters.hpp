// SPDX-License-Identifier: Apache-2.0
// Parameters that several places of a model hold: an embedding whose matrix is the head's too, or the whole of a stage that a
// schedule keeps twice. They say parameter::tied, and those of one name are one logical parameter.
//
//   mo::shared_parameters const shared{ctx.pipeline(), gradients, ctx.memory()};
//   shared.sum(gradients)     every holder's gradient becomes ((g₀ + g₁) + g₂) + … of all holders, in ascending order of their
//                             layers, then of ranks: the same bits whatever rank holds what, and if one rank holds several
//   shared.counts(i)          whether the i-th parameter of this rank is the one of its name that counts: in a norm, and in a
//                             checkpoint. The first holder's is; one that is not tied always is
//
// Weights and gradients are what has for_each(f) as those of a layer have, with parameter::layer where there are several layers;
// a rank may have none. Both calls above are collectives of the ranks given: those that hold different layers. The memory
// may be left out if gradients lie in the host's; those of a device travel through it.
//
// A step sums after the last backward; reduce_gradients then treats a tied tensor as any other of its stage. global_norm(ctx,
// gradients) and the slices of training/layer_checkpoint.hpp ask counts themselves.
//
// Throws config_error on every rank where holders have different sizes; state_error for other gradients than those listed.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/backend/transport/communicator.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/layer/parameters.hpp>
#include <moiety/mesh/agreement.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

namespace moiety::inline MOIETY_ABI {

template <communicator C> class shared_parameters {
 public:
  template <class Parameters>
  shared_parameters(C& ranks, Parameters&& parameters, arena& memory)
      : shared_parameters(ranks, std::forward<Parameters>(parameters)) {
    if (!memory.of_host()) device_ = &memory;
  }
  template <class Parameters> shared_parameters(C& ranks, Parameters&& parameters) : ranks_(&ranks) {
    std::vector<holder> mine;
    std::string names;
    parameters.for_each([&](parameter const& p, auto values) {
      if (p.tied) {
        mine.push_back(
            {p.layer, ranks.rank(), static_cast<std::int64_t>(counts_.size()), std::ssize(values), std::ssize(p.name)});
        names += p.name;
      }
      counts_.push_back(true);
    });
    auto const all = ranks.template all_gather_v<holder>(mine);
    auto const text = ranks.template all_gather_v<char>(names);
    auto name = text.begin();
    for (holder const& h : all) {
      tensors_[std::string(name, name + h.name_length)].push_back(h);
      name += h.name_length;
    }
    for (auto& [of, holders] : tensors_) settle(of, holders);
  }

  bool counts(std::size_t index) const { return counts_.at(index); }

  template <class Gradients> void sum(Gradients& gradients) const {
    std::vector<detail::sum_span> mine;
    gradients.for_each([&](parameter const&, auto values) { mine.emplace_back(values); });
    detail::require<state_error>(mine.size() == counts_.size(), "gradients of ", mine.size(),
                                 " parameters were given to shared_parameters of ", counts_.size(), '.');
    for (auto const& tensor : tensors_) {
      auto const& holders = tensor.second;
      auto const own = std::find_if(holders.begin(), holders.end(), [&](holder const& h) { return here(h); });
      if (holders.size() == 1 || own == holders.end()) continue;
      std::visit([&]<class S>(std::span<S>) { add<S>(tensor.first, holders, mine); },
                 mine[static_cast<std::size_t>(own->index)]);
    }
  }

 private:
  struct holder {
    std::int64_t layer, rank, index, size, name_length;  // index: among all parameters of its rank
  };

  bool here(holder const& h) const { return h.rank == ranks_->rank(); }

  void settle(std::string const& name, std::vector<holder>& holders) {
    std::sort(holders.begin(), holders.end(), [](holder const& a, holder const& b) {
      return std::tie(a.layer, a.rank, a.index) < std::tie(b.layer, b.rank, b.index);
    });
    holder const& first = holders.front();
    for (holder const& h : holders) {
      detail::require_together<config_error>(*ranks_, h.size == first.size, "parameter ", name, " is tied, but has ",
                                             first.size, " values in layer ", first.layer, " on rank ", first.rank,
                                             " and ", h.size, " in layer ", h.layer, " on rank ", h.rank, '.');
      if (here(h) && &h != &first) counts_[static_cast<std::size_t>(h.index)] = false;
    }
  }

  /// The sum of one tensor, which each holder makes for itself.
  template <class S>
  void add(std::string const& name, std::vector<holder> const& holders,
           std::vector<detail::sum_span> const& mine) const {
    std::vector<std::span<S>> values;
    std::vector<std::vector<S>> come;
    come.reserve(holders.size());
    for (holder const& h : holders) {
      std::span<S> const own =
          here(h) ? std::get<std::span<S>>(mine[static_cast<std::size_t>(h.index)]) : std::span<S>();
      detail::require<state_error>(!here(h) || std::ssize(own) == h.size, "shared_parameters was given ", own.size(),
                                   " gradients of ", name, ", which has ", h.size, " values.");
      bool const in_place = here(h) && device_ == nullptr;
      values.push_back(in_place ? own : std::span<S>(come.emplace_back(static_cast<std::size_t>(h.size))));
      if (here(h) && !in_place) device_->load(values.back().data(), own.data(), std::ssize(own) * bytes_of<S>);
    }
    exchange<S>(holders, values);
    std::vector<S> sum(values[0].begin(), values[0].end());
    for (std::size_t i = 1; i < values.size(); ++i)
      for (std::size_t j = 0; j < sum.size(); ++j) sum[j] += values[i][j];
    for (holder const& h : holders) {
      if (!here(h)) continue;
      std::span<S> const own = std::get<std::span<S>>(mine[static_cast<std::size_t>(h.index)]);
      if (device_ != nullptr)
        device_->store(own.data(), sum.data(), std::ssize(own) * bytes_of<S>);
      else
        std::copy(sum.begin(), sum.end(), own.begin());
    }
  }

  /// Values of the holders here go to all ranks that hold the tensor, those of the others come.
  template <class S> void exchange(std::vector<holder> const& holders, std::vector<std::span<S>> const& values) const {
    std::vector<outgoing_message> sends;
    std::vector<incoming_message> receives;
    std::vector<std::int64_t> peers;
    for (holder const& h : holders)
      if (!here(h) && std::find(peers.begin(), peers.end(), h.rank) == peers.end()) peers.push_back(h.rank);
    for (std::size_t i = 0; i < holders.size(); ++i) {
      auto const bytes = static_cast<std::int64_t>(values[i].size_bytes());
      if (!here(holders[i]))
        receives.push_back({static_cast<int>(holders[i].rank), reinterpret_cast<std::byte*>(values[i].data()), bytes});
      else
        for (std::int64_t const peer : peers)
          sends.push_back({static_cast<int>(peer), reinterpret_cast<std::byte const*>(values[i].data()), bytes});
    }
    if (!peers.empty()) ranks_->send_recv(sends, receives);
  }

  template <class S> static constexpr auto bytes_of = static_cast<std::int64_t>(sizeof(S));

  C* ranks_;
  arena* device_ = nullptr;
  std::vector<bool> counts_;
  std::map<std::string, std::vector<holder>> tensors_;  // those that are tied, by name
};

template <communicator C, class Parameters> shared_parameters(C&, Parameters&&) -> shared_parameters<C>;
template <communicator C, class Parameters> shared_parameters(C&, Parameters&&, arena&) -> shared_parameters<C>;

}  // namespace moiety
