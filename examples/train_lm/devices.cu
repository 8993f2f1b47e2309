// SPDX-License-Identifier: Apache-2.0
// What ranks.hpp declares for a device, in a file of its own, as nvcc compiles it.
#include "devices.cuh"
#include "ranks.hpp"

namespace lm {

summary train_on_devices(text const& corpus, options const& o) { return train_on<of_devices>(corpus, o); }
trace trace_on_devices(text const& corpus, options const& o) { return trace_on<of_devices>(corpus, o); }

}  // namespace lm
