// SPDX-License-Identifier: Apache-2.0
// Routing by a selection that looks at all tokens at once (router/batch_selection.hpp), on the host.
//
//   route_together   logits → ids, weights, states, in three passes: what the selection sees of each token's scores, the
//                    selection, the weights of what it chose. Rejected logits throw data_error before anything is used.
//   route_workspace  the bytes that it works in
#pragma once

#include <moiety/kernels/host/route_together.hpp>
