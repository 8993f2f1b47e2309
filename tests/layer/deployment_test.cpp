// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/deployment.hpp>

#include <doctest/doctest.h>

#include <type_traits>

namespace mo = moiety;

TEST_CASE("the default deployment is host, float, one rank") {
  using plain = mo::deployment<>;
  CHECK(std::is_same_v<plain::backend, mo::host>);
  CHECK(std::is_same_v<plain::element, float>);
  CHECK(std::is_same_v<plain::transport, mo::self>);
  CHECK(std::is_same_v<plain::dispatcher, mo::local>);
  CHECK(std::is_same_v<plain::index_builder, mo::counting_sort>);
  CHECK(std::is_same_v<plain::expert_products, mo::grouped_products>);
  CHECK(std::is_same_v<plain::numerics, mo::numerics::invariant>);
  CHECK(plain::shape.world() == 1);
  CHECK(std::is_same_v<mo::context<>, mo::context<plain>>);
}

TEST_CASE("a derived deployment changes one role") {
  struct in_double : mo::deployment<> {
    using element = double;
  };
  mo::context<in_double> ctx;
  CHECK(std::is_same_v<decltype(ctx.matrix(1, 1)), mo::matrix<double>>);
  CHECK(ctx.data().size() == 1);
}
