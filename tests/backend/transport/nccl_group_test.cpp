// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/nccl_group.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

namespace detail = moiety::detail;

// What needs a device is tested by nccl/device.cpp.
static_assert(std::is_nothrow_move_constructible_v<detail::nccl_request>);
static_assert(!std::is_copy_constructible_v<detail::nccl_request> && !std::is_move_assignable_v<detail::nccl_request>);
static_assert(!std::is_move_constructible_v<detail::nccl_group>);

TEST_CASE("of calls that are one operation the first result that is no success is kept") {
  detail::nccl_calls all{nullptr, nullptr};
  all.keep(ncclSuccess);
  CHECK(all.first == ncclSuccess);
  all.keep(ncclInProgress);
  all.keep(ncclSystemError);
  CHECK(all.first == ncclInProgress);
}

TEST_CASE("blocks without bytes are no calls, and what NCCL refuses is kept") {
  detail::nccl_calls none{nullptr, nullptr};
  std::byte here{};
  none.send(0, &here, 0);
  none.receive(0, &here, 0);
  CHECK(none.first == ncclSuccess);
  detail::nccl_calls sends = none, receives = none;
  sends.send(0, &here, 1);
  receives.receive(0, &here, 1);
  CHECK(sends.first == ncclInvalidArgument);
  CHECK(receives.first == ncclInvalidArgument);
}

TEST_CASE("parts without values are no calls, and what NCCL refuses of others is kept") {
  std::array<float, 3> values{};
  detail::nccl_calls none{nullptr, nullptr};
  none.sum(std::span(values).first(0), std::array<std::int64_t, 2>{0, 0});
  CHECK(none.first == ncclSuccess);
  detail::nccl_calls parts = none, whole = none;
  parts.sum(std::span<float>(values), std::array<std::int64_t, 2>{0, 3});
  whole.sum(std::span<float>(values));
  CHECK(parts.first == ncclInvalidArgument);
  CHECK(whole.first == ncclInvalidArgument);
}
