// SPDX-License-Identifier: Apache-2.0
// Building a permutation from a routing: a counting sort by expert that keeps token order (stable by construction).
//
//   build_permutation(engine, routing, out)   offsets, source tokens and positions; slots without an expert get row −1
//   permute(ctx, routing)                     the same, into memory of its own, of a routing that may be anyone's
//
// A deployment names what its layers build permutations with; all give the same one:
//
//   counting_sort   build_permutation
//   radix_sort      CUB's on a CUDA device, see kernels/cuda/radix_sort.cuh
//
// Throws data_error where tokens · k does not fit a row index of 32 bits. Only permute checks the routing (routing::check).
#pragma once

#include <moiety/batch/permutation.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/core/config.hpp>
#include <moiety/kernels/host/permute.hpp>

#include <string_view>

namespace moiety::inline MOIETY_ABI {

namespace kernels {
template <class S>
void build_permutation(cuda_engine& engine, routing_view<S> const& routes, permutation_view const& out);
}  // namespace kernels

struct counting_sort {
  static constexpr std::string_view name = "counting_sort";
  template <class Backend> static constexpr bool runs_on = true;

  template <class S, class Engine>
  static void build(Engine& engine, routing_view<S> const& routes, permutation_view const& out) {
    kernels::build_permutation<S>(engine, routes, out);
  }
};
struct radix_sort;

template <class Context> permutation permute(Context& ctx, routing_view<typename Context::sum> const& routes) {
  static_assert(detail::check_host<Context>());
  routes.check();
  permutation result(routes.tokens, routes.experts, routes.slots, ctx.memory());
  kernels::build_permutation(ctx.engine(), routes, result.view());
  return result;
}

}  // namespace moiety
