// SPDX-License-Identifier: Apache-2.0
// One unit of code, built for one instruction set, and what a processor must have to run it.
#pragma once

struct unit {
  char const* name;
  bool fused;  // a multiply-add rounds once
  bool avx2, avx512, avx512_bf16;
};

extern unit const built;

/// Checks the promises inside this build, on one to four threads. False, with lines on stdout, where one is broken.
bool promises_hold();

/// Prints a line for each step: its name, and a hash of everything that it computes.
void print_hashes();
