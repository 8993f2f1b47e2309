// SPDX-License-Identifier: Apache-2.0
#include <moiety/batch/permutation.hpp>

#include <doctest/doctest.h>

#include <memory_resource>
#include <utility>

namespace mo = moiety;

TEST_CASE("a permutation gives offsets, the token of a row and the row of a slot; it moves with its memory") {
  mo::permutation p(2, 3, 2, *std::pmr::new_delete_resource());
  p.starts[1] = 1, p.starts[2] = 1, p.starts[3] = 4;
  p.source_tokens[2] = 1;
  p.positions[3] = 2;
  mo::permutation const moved = std::move(p);
  CHECK(moved.rows() == 4);
  CHECK(moved.offsets()[1] == 1);
  CHECK(moved.source_token(2) == 1);
  CHECK(moved.row_of(1, 1) == 2);
  CHECK(moved.view().rows() == 4);
}
