// SPDX-License-Identifier: Apache-2.0
#include <moiety/dispatcher/row_exchange.hpp>

#include "dispatcher/exchanges.hpp"

#include <doctest/doctest.h>

TEST_CASE("rows go straight to their experts and back") {
  exchanges::check_exchange<mo::row_exchange>(exchanges::all_shapes);
}

TEST_CASE("what copies return is added in the order of ranks") { exchanges::check_order_of_copies<mo::row_exchange>(); }
