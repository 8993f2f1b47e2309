// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/sinkhorn.cuh>

#include <moiety/moiety.hpp>

#include "router/together_cases.hpp"

#include <doctest/doctest.h>

namespace mo = moiety;
using together_cases::compare_all;

TEST_CASE("the plan of a device gives the experts of the host") {
  compare_all<mo::router<mo::softmax, mo::sinkhorn<2>>>();
  compare_all<mo::router<mo::sigmoid, mo::sinkhorn<1, 3>>, double>();
}
