// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/nccl_calls.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <span>

namespace mo = moiety;

TEST_CASE("the first result that is no success is kept") {
  mo::detail::nccl_calls asked{nullptr, nullptr};
  asked.keep(ncclSuccess);
  CHECK(asked.first == ncclSuccess);
  asked.keep(ncclInvalidArgument);
  asked.keep(ncclInternalError);
  asked.keep(ncclSuccess);
  CHECK(asked.first == ncclInvalidArgument);
}

TEST_CASE("nothing is asked of NCCL for messages and parts without bytes") {
  mo::detail::nccl_calls asked{nullptr, nullptr};  // a call would be refused: there is no communicator
  asked.send(0, nullptr, 0);
  asked.receive(0, nullptr, 0);
  std::int64_t const none[2] = {0, 0};
  asked.sum(std::span<float>(), none);
  CHECK(asked.first == ncclSuccess);
}

TEST_CASE("sums are of the types that NCCL has") {
  CHECK(mo::detail::nccl_type<float>() == ncclFloat32);
  CHECK(mo::detail::nccl_type<double>() == ncclFloat64);
  CHECK(mo::detail::nccl_type<std::int64_t>() == ncclInt64);
}
