// SPDX-License-Identifier: Apache-2.0
// Routing by a selection that looks at all tokens at once (router/batch_selection.hpp).
//
//   route_together   logits → ids, weights, states, in three passes: what the selection sees of each token's scores, the
//                    selection, the weights of what it chose. Rejected logits throw data_error before anything is used; on a
//                    device the error comes from the next synchronize(), and their tokens take no part.
//   route_workspace  the bytes that it works in
//
// Experts is the number of experts where it is a constant; a device then compiles one kernel of several.
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/kernels/host/route_together.hpp>

namespace moiety::inline MOIETY_ABI::kernels {

template <class Router, class S, int Experts = 0>
void route_together(cuda_engine& engine, Router const& router, matrix_view<S const> logits, batch const& about,
                    non_finite policy, routing_view<S> out, void* workspace, std::string_view name = {});

}  // namespace moiety::inline MOIETY_ABI::kernels
