// SPDX-License-Identifier: Apache-2.0
// What a rank of a pipeline does, one after the other.
//
//   0F3   forward of stage 0 for micro-batch 3
//   0B3   its backward: input gradient and weight gradient
//   0I3   its input gradient alone, which the stage before waits for
//   0W3   its weight gradient alone, which nobody waits for
//   (0F4;2B3)OVERLAP_F_B   a forward and a backward as one step: both inputs are needed at its start, both results are
//                          there at its end
//
// The text is that of torch.distributed.pipelining. A fused step is two actions, the second one with `joined` set.
#pragma once

#include <moiety/core/config.hpp>

#include <cstdint>
#include <ostream>

namespace moiety::inline MOIETY_ABI {

enum class computation : std::uint8_t { forward, backward, input_gradient, weight_gradient };

/// The letter of a computation.
constexpr char letter(computation of) {
  constexpr char letters[] = {'F', 'B', 'I', 'W'};
  return letters[static_cast<int>(of)];
}

struct action {
  int stage = 0;
  int microbatch = 0;
  computation type = computation::forward;
  bool joined = false;  // one step with the action before it

  friend constexpr bool operator==(action const&, action const&) = default;
};

/// Hands a gradient to the stage before: B or I.
constexpr bool sends_gradient(computation type) {
  return type == computation::backward || type == computation::input_gradient;
}

/// The action without regard to joining.
inline std::ostream& operator<<(std::ostream& out, action const& a) {
  return out << a.stage << letter(a.type) << a.microbatch;
}

}  // namespace moiety
