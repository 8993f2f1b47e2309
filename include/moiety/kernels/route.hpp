// SPDX-License-Identifier: Apache-2.0
// Routing kernels: row policies applied to every token. A Router is anything with forward_row, probability_row and
// backward_row (see router/router.hpp); logits are [T × E] in the sum type.
//
//   route            logits → ids, weights, states. Rejected logits, and tokens to which the router gave no expert in
//                    range for some slot (id −1), throw data_error before anything is used.
//   accumulate       adds each unit's tokens to its statistics: counts, Σ probabilities, Σ lse², tokens, tokens by state,
//                    and tokens by group of experts where groups are asked for, whose number divides that of the experts
//   list_routed      the tokens that take part in losses and weights, ascending, and their number: offsets {0, number}
//   route_backward   gradients of weights [T × k] and of losses → gradient of the logits, overwritten or added to
//
// Tokens are independent of one another, and statistics are exact, so no result depends on the number of threads. Experts
// is the number of experts where it is a constant; a device then compiles one kernel of several. No kernel can throw: what
// would be an error makes its token unroutable, and the error comes from the next synchronize().
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/kernels/host/route.hpp>

namespace moiety::inline MOIETY_ABI::kernels {

template <class Router, class S, int Experts = 0>
void route(cuda_engine& engine, Router const& router, matrix_view<S const> logits, batch const& about,
           non_finite policy, routing_view<S> out, std::string_view name = {});

template <class Router, class S, int Experts = 0>
void accumulate(cuda_engine& engine, Router const& router, matrix_view<S const> logits, routing_view<S> routing,
                batch_statistics const& into);

void list_routed(cuda_engine& engine, token_state const* states, std::int64_t tokens, std::int32_t* routed,
                 std::int64_t* offsets);

template <class Router, class S, int Experts = 0, class AddLosses>
void route_backward(cuda_engine& engine, Router const& router, matrix_view<S const> logits, routing_view<S> routing,
                    S const* dweights, AddLosses const& add_losses, matrix_view<S> dlogits, bool accumulate);

}  // namespace moiety::inline MOIETY_ABI::kernels
