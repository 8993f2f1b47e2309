// SPDX-License-Identifier: Apache-2.0
// A deployment says on what a layer runs and across what. Derive to change one role:
//
//   struct in_double : mo::deployment<> { using element = double; };
//
//   backend      mo::host
//   element      float, double, bf16 or fp16: activations and expert weights. Router weights, logits, gradients and sums
//                are sum_t<element>: double for double, else float
//   transport    mo::self: one rank
//   dispatcher   mo::local: every expert on this rank
//   weight_layout  mo::row_major: products read the weights as they lie; or mo::packed_forward, mo::packed
//   numerics     mo::numerics::invariant: the order of a sum is a function of type, dims and policy, never of the batch
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/backend/transport/self.hpp>
#include <moiety/core/config.hpp>
#include <moiety/dispatcher/local.hpp>
#include <moiety/experts/weight_layout.hpp>
#include <moiety/mesh/context.hpp>
#include <moiety/mesh/layout.hpp>

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
  using numerics = moiety::numerics::invariant;
};

template <class Deployment = deployment<>> class context;

}  // namespace moiety
