// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/device_matrix.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <memory_resource>

namespace mo = moiety;

TEST_CASE("a device matrix is zeroed, assigned and copied as a whole") {
  mo::arena memory(*std::pmr::new_delete_resource());
  mo::device_matrix<float> x(3, 4, memory);
  CHECK(x.size() == 12);
  for (float const v : x.host()) CHECK(v == 0);
  mo::matrix<float> values(3, 8);
  for (std::int64_t i = 0; i < 3; ++i)
    for (std::int64_t j = 0; j < 8; ++j) values(i, j) = static_cast<float>(10 * i + j);
  x.assign({values.data() + 2, 3, 4, 8});
  mo::matrix<float> const copy = x.host();
  CHECK(copy(2, 3) == 25);
  CHECK(copy(0, 0) == 2);
  x.assign(copy);
  CHECK(x.host()(1, 1) == 13);
  CHECK(x.rows(1, 2).row(0) == x.data() + 4);
}

TEST_CASE("shapes that cannot be are data errors; no row is fine") {
  mo::arena memory(*std::pmr::new_delete_resource());
  mo::device_matrix<double> x(0, 4, memory);
  CHECK(x.host().rows() == 0);
  CHECK_THROWS_AS(mo::device_matrix<double>(-1, 4, memory), mo::data_error);
  CHECK_THROWS_WITH_AS(x.assign(mo::matrix_view<double const>(nullptr, 1, 4)),
                       "a matrix of the shape [0 x 4] cannot be assigned [1 x 4].", mo::data_error);
}
