// SPDX-License-Identifier: Apache-2.0
// A deployment says on what a layer runs and across what. Derive to change one role:
//
//   struct in_double : mo::deployment<> { using element = double; };
//
//   backend      mo::host, or mo::cuda of <moiety/cuda.cuh>
//   element      float, double, bf16 or fp16: activations and expert weights. Router weights, logits, gradients and sums
//                are sum_t<element>: double for double, else float
//   transport    mo::self: one rank; mo::threads: ranks are threads of this process; mo::mpi of <moiety/mpi.hpp>: processes.
//                mo::self for a layout of one rank, else mo::threads. On mo::cuda threads share a device, and mo::nccl of
//                <moiety/backend/transport/nccl_ranks.cuh> has one for each rank
//   dispatcher   mo::local: every expert on this rank; mo::all_to_all, where the layout spreads them. The default is what
//                the layout needs
//   weight_layout  mo::row_major: products read the weights as they lie; or mo::packed_forward, mo::packed, with mo::host
//   index_builder  mo::counting_sort: what builds permutations; or mo::radix_sort of CUB, with mo::cuda
//   expert_products  mo::grouped_products: what multiplies in experts; or mo::fp8_products and others of
//                <moiety/experts/fp8.hpp>; or mo::cublas_products, mo::tf32_products, with mo::cuda
//   router_products  mo::fma_products: what multiplies in routers; or mo::bf16x3_products of <moiety/router/bf16x3.cuh>, with
//                mo::cuda and bf16
//   numerics     mo::numerics::invariant: the order of a sum is a function of type, dims and policy, never of the batch; or
//                mo::numerics::fastest: sums over ranks in whatever order is fastest, see docs/determinism.md
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/backend/transport/self.hpp>
#include <moiety/backend/transport/threads.hpp>
#include <moiety/core/config.hpp>
#include <moiety/dispatcher/all_to_all.hpp>
#include <moiety/dispatcher/local.hpp>
#include <moiety/experts/apply.hpp>
#include <moiety/experts/weight_layout.hpp>
#include <moiety/kernels/permute.hpp>
#include <moiety/kernels/router_gemm.hpp>
#include <moiety/layer/parameter_set.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/mesh/context.hpp>
#include <moiety/mesh/layout.hpp>

#include <type_traits>

namespace moiety::inline MOIETY_ABI {

namespace numerics {
struct invariant {};
struct fastest {};
}  // namespace numerics

template <layout Layout = layout{}> struct deployment {
  static_assert(check_layout<Layout>());
  static constexpr layout shape = fault_of(Layout) == layout_fault::none || Layout.is_dynamic() ? Layout : layout{};
  using backend = host;
  using element = float;
  using transport = std::conditional_t<shape.world() == 1, self, threads>;
  using dispatcher = std::conditional_t<shape.expert_group() == 1, local, all_to_all>;
  using weight_layout = row_major;
  using index_builder = counting_sort;
  using expert_products = grouped_products;
  using router_products = fma_products;
  using numerics = moiety::numerics::invariant;
};

template <class Deployment = deployment<>> class context;

namespace detail {

/// A policy, or after the sentence about one that cannot be used, another that keeps the compiler quiet.
template <class Policy, class Backend, class Instead> struct policy_of {
  static constexpr bool known = complete<Policy>;
  static_assert(known,
                "this deployment names a policy with a header of its own: include <moiety/experts/fp8.hpp> for "
                "mo::fp8_products, or, compiled by nvcc, <moiety/kernels/cuda/radix_sort.cuh> for mo::radix_sort, "
                "<moiety/experts/cublas.cuh> for mo::cublas_products, <moiety/experts/tf32.cuh> for "
                "mo::tf32_products, <moiety/router/bf16x3.cuh> for mo::bf16x3_products.");
  static constexpr bool runs() {
    if constexpr (known)
      return Policy::template runs_on<Backend>;
    else
      return true;
  }
  static_assert(runs(),
                "mo::radix_sort, mo::cublas_products, mo::tf32_products and mo::bf16x3_products need 'using backend = "
                "mo::cuda' in the deployment; mo::fp8_products on mo::cuda need <moiety/experts/fp8.cuh>.");
  using type = std::conditional_t<known && runs(), Policy, Instead>;
};

/// Whether only forward knows how many rows the experts of a rank have: rows travel, or a capacity is of all ranks' tokens.
template <class Spec, class Deployment>
inline constexpr bool counts_rows = has_ranks<Deployment> &&
                                    (Deployment::dispatcher::travels || spec_of<Spec>::capacity_type::drops);

/// Whether messages between ranks have one size, which a capacity bounds.
template <class Deployment> inline constexpr bool pads_rows = requires { Deployment::dispatcher::most_tokens; };
template <class Spec, class Deployment> consteval bool check_padding() {
  static_assert(
      !pads_rows<Deployment> || spec_of<Spec>::capacity_type::drops,
      "mo::padded_all_to_all needs a spec with 'using capacity = mo::capacity<...>', which bounds the rows of an "
      "expert.");
  return true;
}

/// How many rows an expert gets at most, where that is known.
template <class Spec, class Deployment> constexpr auto padded_limits(layout const& shape) {
  using spec = spec_of<Spec>;
  return Deployment::dispatcher::template limits<typename spec::capacity_type>(
      spec::slots, spec::experts, shape.stage(), shape.expert_group(), shape.tensor * shape.context);
}

/// Whether a dispatcher moves rows of device memory.
template <class Dispatcher>
concept of_devices = requires {
  requires Dispatcher::on_devices;
};

template <class Deployment>
inline constexpr bool sums_fastest = std::is_same_v<typename Deployment::numerics, numerics::fastest>;
template <class Deployment> consteval bool check_numerics() {
  static_assert(sums_fastest<Deployment> || std::is_same_v<typename Deployment::numerics, numerics::invariant>,
                "'using numerics' in a deployment must name mo::numerics::invariant or mo::numerics::fastest.");
  return true;
}

/// The exchange of a dispatcher; where sums may be the fastest, that which adds rows before they come home, if there is one.
template <class Dispatcher, bool Fastest> struct exchange_for { using type = typename Dispatcher::exchange; };
template <class Dispatcher>
requires requires { typename Dispatcher::summing; }
struct exchange_for<Dispatcher, true> {
  using type = typename Dispatcher::summing;
};

template <class Deployment> consteval bool check_ranks() {
  static_assert(!ranks_on_device<Deployment> || of_devices<typename Deployment::dispatcher>,
                "this dispatcher moves rows of mo::host; those of mo::cuda say 'on_devices = true'.");
  return true;
}

/// What a rank holds of a spec's experts: its place in the expert axis chooses experts, that in the expert_tensor axis units.
template <class Spec, class Deployment> expert_share share_of(layout const& shape, int expert, int expert_tensor) {
  using read = spec_of<Spec>;
  using mlp = typename read::experts_type;
  require<config_error>(Deployment::dispatcher::travels || shape.expert_group() == 1,
                        "mo::", Deployment::dispatcher::name, " needs every expert on every rank, but the layout with ",
                        shape, " spreads them.");
  constexpr std::int64_t experts = read::mlp_experts, ffn = read::ffn;
  require<config_error>(experts % shape.expert == 0, "an expert axis of ", shape.expert, " ranks does not divide ",
                        experts, " experts.");
  require<config_error>(ffn % shape.expert_tensor == 0, "an expert_tensor axis of ", shape.expert_tensor,
                        " ranks does not divide an ffn of ", ffn, '.');
  constexpr bool splits = !has_biases<mlp> && !(storage_of<mlp>::type::joined && !storage_of<mlp>::type::paired);
  require<config_error>(splits || shape.expert_tensor == 1,
                        "experts with biases, or with concatenated inputs, are not split over an expert_tensor axis.");
  std::int64_t const count = experts / shape.expert, units = ffn / shape.expert_tensor;
  return {{count * expert, count}, {units * expert_tensor, units}};
}

/// How the weights of a layer lie: as products bring it with them, or as the deployment says. Packed weights are for the host's
/// products: after the sentence, weights as they lie keep the compiler quiet.
template <class Deployment> struct weight_layout_of {
  using named = typename Deployment::weight_layout;
  using backend = typename Deployment::backend;
  static constexpr bool as_they_lie = std::is_same_v<named, row_major>,
                        fits = std::is_same_v<backend, host> || as_they_lie;
  static_assert(fits, "a packed 'using weight_layout' is for mo::host: mo::cuda reads the weights as they lie.");
  using type = std::conditional_t<fits, named, row_major>;
};
template <class Deployment>
requires requires { typename Deployment::expert_products::template weight_layout<typename Deployment::backend>; }
struct weight_layout_of<Deployment> {
  static_assert(std::is_same_v<typename Deployment::weight_layout, row_major>,
                "products of 8 bits read copies of their own: leave 'using weight_layout' at mo::row_major.");
  using type = typename Deployment::expert_products::template weight_layout<typename Deployment::backend>;
};
template <class Deployment> using weight_layout_t = typename weight_layout_of<Deployment>::type;

}  // namespace detail

}  // namespace moiety
