// SPDX-License-Identifier: Apache-2.0
// What one rank has that dispatches: tokens, their routing, and room for what experts give.
#pragma once

#include "measure.hpp"

#include <moiety/batch/batch.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/dispatcher/all_gather.hpp>
#include <moiety/dispatcher/all_to_all.hpp>
#include <moiety/dispatcher/two_level.hpp>
#include <moiety/kernels/permute.hpp>
#include <moiety/kernels/route.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/mesh/context.hpp>
#include <moiety/router/router.hpp>

#include <algorithm>
#include <cstdint>
#include <memory_resource>
#include <span>
#include <string>
#include <type_traits>

namespace bench {

template <class T, class Dispatcher, class Transport> struct spread : moiety::deployment<moiety::dynamic> {
  using element = T;
  using dispatcher = Dispatcher;
  using transport = Transport;
};

/// Tokens of each rank, and by how much the logit of the first expert is above that of the last.
struct dispatch_case {
  std::int64_t tokens;
  float skew = 0;

  std::string name() const {
    return (skew > 0 ? "skewed" : "random") + std::string("/tokens:") + std::to_string(tokens);
  }
};

/// How many processors copy rows: ranks on one processor take turns.
inline int copying_threads(int ranks) { return std::min(ranks, moiety::available_processors()); }

/// Rows of 4 KB by `Slots` experts a token. It is made, and moves rows, on all ranks at once.
template <class Deployment, int Slots> class dispatched {
  using T = typename Deployment::element;
  using exchange = typename Deployment::dispatcher::exchange;
  using context = moiety::context<Deployment>;
  using links = typename exchange::template links<typename context::communicator>;
  using router = moiety::router<moiety::softmax, moiety::top_k<Slots>, moiety::renormalised>;

 public:
  static constexpr std::int64_t experts = 64, row_bytes = 4096, hidden = row_bytes / sizeof(T);

  dispatched(context& ctx, dispatch_case const& of)
      : memory_(&ctx.memory()),
        through_(ctx.expert_group()),
        order_(of.tokens, experts, Slots, *memory_),
        rows_(through_, routed(ctx, of), experts, 1, *memory_),
        x_(of.tokens, hidden, *memory_),
        results_(rows_.rows(), hidden, *memory_),
        own_(rows_.own_rows(), hidden, *memory_) {
    fill(x_.data(), of.tokens * hidden, 2);
    fill(results_.data(), rows_.rows() * hidden, 3);
    bring_and_give_back();  // the arena holds what a step needs before a clock starts
  }

  void bring_and_give_back() {
    moiety::buffer room;
    rows_.bring(through_, moiety::kernels::rows_of<T>{x_.data(), hidden, order_.source_tokens}, hidden, room, *memory_);
    rows_.give_back(through_, static_cast<T const*>(results_.data()), hidden, own_.data(), *memory_);
  }

  /// What all ranks must read and write: every row on its way there, or every token once for each rank, and every row back.
  double bytes() {
    constexpr bool whole_tokens = std::is_same_v<exchange, moiety::token_exchange>;
    double rows = static_cast<double>(rows_.own_rows() +
                                      (whole_tokens ? order_.tokens * through_.group->size() : rows_.own_rows()));
    through_.group->all_reduce(std::span(&rows, 1));
    return 2 * rows * static_cast<double>(row_bytes);
  }

 private:
  moiety::permutation_view routed(context& ctx, dispatch_case const& of) {
    moiety::matrix<float> logits(of.tokens, experts, *memory_);
    moiety::routing<float> routes(of.tokens, experts, Slots, *memory_);
    fill(logits.data(), of.tokens * experts, static_cast<std::uint64_t>(10 + through_.group->rank()));
    for (std::int64_t i = 0; i < of.tokens * experts; ++i)
      logits.data()[i] -= of.skew * static_cast<float>(i % experts) / static_cast<float>(experts);
    moiety::kernels::route(ctx.engine(), router{}, moiety::matrix_view<float const>(logits.data(), of.tokens, experts),
                           moiety::batch{}, moiety::non_finite::reject, routes.view());
    moiety::kernels::build_permutation(ctx.engine(), routes.view(), order_.view());
    return order_.view();
  }

  moiety::arena* memory_;
  links through_;
  moiety::permutation order_;
  exchange rows_;
  moiety::matrix<T> x_, results_, own_;
};

}  // namespace bench
