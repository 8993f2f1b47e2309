// SPDX-License-Identifier: Apache-2.0
// Routing kernels: row policies applied to every token. A Router is anything with forward_row, probability_row and
// backward_row (see router/router.hpp); logits are [T × E] in the sum type.
//
//   route            logits → ids, weights, states. Rejected logits, and tokens to which the router gave no expert in
//                    range for some slot (id −1), throw data_error before anything is used.
//   accumulate       adds each unit's tokens to its statistics: counts, Σ probabilities, Σ lse², tokens
//   route_backward   gradients of weights [T × k] and of losses → gradient of the logits, overwritten or added to
//
// Tokens are independent of one another, and statistics are exact, so no result depends on the number of threads.
#pragma once

#include <moiety/kernels/host/route.hpp>
