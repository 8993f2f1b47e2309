// SPDX-License-Identifier: Apache-2.0
// Stands before the toolkit's header of this name in the CPU run of the tests: g++ and clang++ (x86-64, Linux) compile
// kernels and the host code around them unchanged. What has no C++ spelling, as <<<>>> and inline PTX, is not here.
//
//   emulator/language.hpp       keywords, vector types, bits
//   emulator/block.hpp          the threads of a block as fibers, barriers, what warp functions are built on
//   emulator/warp.hpp           shuffles, votes, atomics
//   emulator/device.hpp         device memory, streams as queues, the knobs and counters that tests use
//   emulator/runtime.hpp        the cuda* functions
//   emulator/asynchronous.hpp   mbarriers, and what a block's copies bring while it runs
//   emulator/tensor_map.hpp     what the driver makes for the copies of boxes
//
// Stricter than a GPU: a thread that has ended is missed by barriers and warp functions, a shuffle must read a lane of
// its mask, launches and copies run only when somebody synchronises, and host code that touches device memory crashes.
// Not modelled: concurrent blocks (no block may wait for another), uninitialised static __shared__ memory, memory
// ordering, except that operands of sm_90a's products which cp.async filled must be published. One kernel runs at a time in
// the process. The thread sanitizer does not know these fibers.
#pragma once

#define CUDA_ON_CPU 1

#include "emulator/language.hpp"

#include "emulator/block.hpp"

#include "emulator/warp.hpp"

#include "emulator/device.hpp"

#include "emulator/runtime.hpp"

#include "emulator/asynchronous.hpp"

#include "emulator/tensor_map.hpp"
