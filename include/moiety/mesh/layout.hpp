// SPDX-License-Identifier: Apache-2.0
// Across how many ranks a layer is spread, axis by axis. Tokens are disjoint over data · context · tensor; the expert
// axes are cut out of those same ranks.
#pragma once

#include <moiety/core/config.hpp>

namespace moiety::inline MOIETY_ABI {

struct layout {
  int data = 1;
  int tensor = 1;
  int context = 1;
  int pipeline = 1;
  int expert = 1;
  int expert_tensor = 1;

  constexpr int world() const { return data * tensor * context * pipeline; }
  friend constexpr bool operator==(layout const&, layout const&) = default;
};

}  // namespace moiety
