// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/backend.hpp>

#include <moiety/backend/host.hpp>

#include <doctest/doctest.h>

namespace mo = moiety;

namespace {
struct no_engine : mo::host {
  using engine = void;
};
}  // namespace

TEST_CASE("a back end is options, an engine, matrices and a policy for logits that are not finite") {
  CHECK(mo::backend<mo::host>);
  CHECK_FALSE(mo::backend<no_engine>);
  CHECK_FALSE(mo::backend<int>);
}

TEST_CASE("a back end whose header is missing is incomplete") {
  CHECK(mo::detail::complete<mo::host_engine>);
  CHECK_FALSE(mo::detail::complete<mo::cuda>);
}
