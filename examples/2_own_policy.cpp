// SPDX-License-Identifier: Apache-2.0
// The policies of own_policies.hpp, each checked with the rest of the layer in one line.
#include "own_policies.hpp"

#include <moiety/testing.hpp>

#include <iostream>

int main() {
  std::cout << moiety::describe<own::layer>();
  return moiety::testing::conforms<own::layer>() ? 0 : 1;
}
