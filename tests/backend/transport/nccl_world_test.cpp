// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/nccl_world.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <cstdint>
#include <string>

namespace mo = moiety;
namespace detail = moiety::detail;
using namespace std::chrono_literals;

namespace {

bool has_device() {
  int devices = 0;
  bool const has = cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
  static_cast<void>(cudaGetLastError());
  return has;
}

}  // namespace

TEST_CASE("what NCCL says is in its own words") {
  CHECK(detail::nccl_text(ncclInvalidUsage).find(ncclGetErrorString(ncclInvalidUsage)) == 0);
  CHECK(detail::nccl_world::reached(ncclSuccess));
  CHECK(detail::nccl_world::reached(ncclInProgress));
  CHECK(!detail::nccl_world::reached(ncclRemoteError));
  CHECK(detail::nccl_world::state_of(nullptr) == ncclInvalidArgument);
}

TEST_CASE("what CUDA says comes with what was tried") {
  CHECK_NOTHROW(detail::expect_cuda(cudaSuccess, "nothing"));
  try {
    detail::expect_cuda(cudaErrorInvalidValue, "a copy");
    FAIL("no error");
  } catch (mo::cuda_error const& e) {
    CHECK(std::string(e.what()) == "a copy: invalid argument (cudaErrorInvalidValue).");
  }
}

TEST_CASE("a world needs a deadline, and a device") {
  CHECK_THROWS_AS(detail::nccl_world({.deadline = 0ms}, 0), mo::config_error);
  if (!has_device()) {
    CHECK_THROWS_AS(detail::nccl_world({}, 0), mo::cuda_error);
    CHECK_THROWS_AS(detail::device_of(0), mo::cuda_error);
    return;
  }
  int devices = 0;
  CHECK(cudaGetDeviceCount(&devices) == cudaSuccess);
  CHECK(detail::device_of(devices) == 0);
  CHECK_THROWS_AS(detail::nccl_world({}, devices), mo::cuda_error);
}

TEST_CASE("only the first failure of a world counts") {
  if (!has_device()) {
    MESSAGE("skipped: there is no CUDA device");
    return;
  }
  detail::nccl_world world({}, 0);
  CHECK(!world.failed());
  world.fail({mo::comm_fault::remote, "first", 3, 7, "the first."});
  world.fail({mo::comm_fault::timeout, "second", 1, 8, "the second."});
  CHECK(world.failed());
  try {
    world.rethrow();
  } catch (mo::comm_error const& e) {
    CHECK(e.fault == mo::comm_fault::remote);
    CHECK(e.operation == "first");
    CHECK(e.rank == 3);
    CHECK(e.step == 7);
  }
}
