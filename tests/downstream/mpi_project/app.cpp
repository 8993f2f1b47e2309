// SPDX-License-Identifier: Apache-2.0
#include <moiety/moiety.hpp>
#include <moiety/mpi.hpp>

#include <iostream>
#include <span>

namespace mo = moiety;

// A job of one process, as nobody launches it.
int main() {
  auto ranks = mo::mpi_communicator::world();
  int count = 1;
  ranks.all_reduce(std::span(&count, 1));
  std::cout << count << " of " << ranks.size() << " ranks\n";
  return count == ranks.size() ? 0 : 1;
}
