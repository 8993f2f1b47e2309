// SPDX-License-Identifier: Apache-2.0
// 77 where there is no device.
#include <moiety/moiety.hpp>
#include <moiety/nccl.hpp>

#include <iostream>
#include <span>

namespace mo = moiety;

// A job of one process, as nobody launches it.
int main() try {
  auto ranks = mo::nccl_communicator::world();
  int const mine = 7;
  int all = 0;
  ranks.all_gather_on_host<int>(std::span(&mine, 1), std::span(&all, 1));
  std::cout << all << " from " << ranks.size() << " ranks\n";
  return all == mine ? 0 : 1;
} catch (mo::cuda_error const& e) {
  std::cerr << e.what() << '\n';
  return 77;
}
