// SPDX-License-Identifier: Apache-2.0
// Stands before the driver's header of this name in the CPU run of the tests: emulator/tensor_map.hpp has what the library
// uses of it.
#pragma once

#include "cuda_runtime.h"
