// SPDX-License-Identifier: Apache-2.0
// Named ranges of the host's time line, counted: no profiler looks at the CPU run.
#pragma once

namespace cuda_on_cpu {
inline int open_ranges = 0;
}  // namespace cuda_on_cpu

inline int nvtxRangePushA(char const*) { return cuda_on_cpu::open_ranges++; }
inline int nvtxRangePop() { return --cuda_on_cpu::open_ranges; }
