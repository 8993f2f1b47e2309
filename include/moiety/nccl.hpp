// SPDX-License-Identifier: Apache-2.0
// The transport whose ranks have a CUDA device each, through NCCL 2.28.7 or newer: include it beside <moiety/moiety.hpp> or
// <moiety/cuda.cuh>, and link moiety::nccl.
//
//   auto ranks = mo::nccl_communicator::world();      what it can do: backend/transport/nccl.hpp
#pragma once

#include <moiety/backend/transport/nccl.hpp>
