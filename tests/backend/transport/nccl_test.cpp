// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/nccl.hpp>

#include <moiety/backend/transport/self.hpp>

#include <doctest/doctest.h>

#include <span>
#include <string>
#include <utility>

namespace mo = moiety;
using ranks = mo::nccl_communicator;

// What needs a device is tested by nccl/device.cpp.
static_assert(mo::communicator<mo::nccl::communicator> && !mo::nccl::single_rank);

namespace {

template <class C>
concept sums_on_host = requires(C& c, std::span<float> values) {
  c.all_reduce(values);
}
|| requires(C& c, std::span<float> values) { c.reduce_scatter(values); }
|| requires(C& c, std::span<float const> values) { c.template all_gather_v<float>(values); };

}  // namespace

// Those of the other transports read memory by the host.
static_assert(!sums_on_host<ranks> && sums_on_host<mo::self_communicator>);

TEST_CASE("a rank is one of those that there are") {
  for (auto const& [rank, size] : {std::pair{0, 0}, {2, 2}, {-1, 2}, {0, -1}})
    CHECK_THROWS_AS(ranks::join(rank, size, 0, ncclUniqueId{}), mo::config_error);
}

TEST_CASE("without a device, the error says so") {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) {
    MESSAGE("skipped: there is a CUDA device, see nccl/device.cpp");
    return;
  }
  try {
    ranks::world();
    FAIL("there is no device");
  } catch (mo::cuda_error const& e) {
    CHECK(std::string(e.what()).find("no CUDA device") == 0);
  }
  mo::self_communicator alone;
  CHECK_THROWS_AS(ranks::over(alone, 0), mo::cuda_error);
}
