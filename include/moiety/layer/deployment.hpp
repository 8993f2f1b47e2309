// SPDX-License-Identifier: Apache-2.0
// A deployment says on what a layer runs and across what. Derive to change one role:
//
//   struct in_double : mo::deployment<> { using element = double; };
//
//   backend      mo::host, or mo::cuda of <moiety/cuda.cuh>
//   element      float, double, bf16 or fp16: activations and expert weights. Router weights, logits, gradients and sums
//                are sum_t<element>: double for double, else float
//   transport    mo::self: one rank
//   dispatcher   mo::local: every expert on this rank
//   weight_layout  mo::row_major: products read the weights as they lie; or mo::packed_forward, mo::packed, with mo::host
//   index_builder  mo::counting_sort: what builds permutations; or mo::radix_sort of CUB, with mo::cuda
//   expert_products  mo::grouped_products: what multiplies in experts; or mo::cublas_products, with mo::cuda
//   numerics     mo::numerics::invariant: the order of a sum is a function of type, dims and policy, never of the batch
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/backend/transport/self.hpp>
#include <moiety/core/config.hpp>
#include <moiety/dispatcher/local.hpp>
#include <moiety/experts/apply.hpp>
#include <moiety/experts/weight_layout.hpp>
#include <moiety/kernels/permute.hpp>
#include <moiety/mesh/context.hpp>
#include <moiety/mesh/layout.hpp>

#include <type_traits>

namespace moiety::inline MOIETY_ABI {

namespace numerics {
struct invariant {};
}  // namespace numerics

template <layout Layout = layout{}> struct deployment {
  static constexpr layout shape = Layout;
  using backend = host;
  using element = float;
  using transport = self;
  using dispatcher = local;
  using weight_layout = row_major;
  using index_builder = counting_sort;
  using expert_products = grouped_products;
  using numerics = moiety::numerics::invariant;
};

template <class Deployment = deployment<>> class context;

namespace detail {

/// A policy, or after the sentence about one that cannot be used, another that keeps the compiler quiet.
template <class Policy, class Backend, class Instead> struct policy_of {
  static constexpr bool known = complete<Policy>;
  static_assert(known,
                "this deployment names mo::radix_sort or mo::cublas_products: include "
                "<moiety/kernels/cuda/radix_sort.cuh> or <moiety/experts/cublas.cuh>, compiled by nvcc.");
  static constexpr bool runs() {
    if constexpr (known)
      return Policy::template runs_on<Backend>;
    else
      return true;
  }
  static_assert(runs(), "mo::radix_sort and mo::cublas_products need 'using backend = mo::cuda' in the deployment.");
  using type = std::conditional_t<known && runs(), Policy, Instead>;
};

/// Packed weights are for the host's products: after the sentence, weights as they lie keep the compiler quiet.
template <class Layout, class Backend> struct weight_layout_of {
  static constexpr bool fits = std::is_same_v<Backend, host> || std::is_same_v<Layout, row_major>;
  static_assert(fits, "a packed 'using weight_layout' is for mo::host: mo::cuda reads the weights as they lie.");
  using type = std::conditional_t<fits, Layout, row_major>;
};

}  // namespace detail

}  // namespace moiety
