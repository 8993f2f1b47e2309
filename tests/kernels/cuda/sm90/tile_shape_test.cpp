// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/sm90/tile_shape.hpp>

#include <doctest/doctest.h>

#include <initializer_list>

using namespace moiety::kernels::sm90;

TEST_CASE("the registers of a block are shared out, and never more than it has") {
  CHECK(multiplying_registers(56) == 224);
  CHECK(multiplying_registers(40) == 232);
  CHECK(multiplying_registers(24) == 240);
  CHECK(multiplying_registers(starting_registers) == starting_registers);
  for (int copying = 24; copying <= starting_registers; copying += 8) {
    int const of_block = copying + multiplying_warpgroups * multiplying_registers(copying);
    CHECK(multiplying_registers(copying) % 8 == 0);
    CHECK(of_block <= (1 + multiplying_warpgroups) * starting_registers);
    CHECK(of_block > (1 + multiplying_warpgroups) * starting_registers - 16);
  }
}

TEST_CASE("a ring takes as many stages as shared memory holds") {
  CHECK(tile_shape<256>::stage_bytes == 48 << 10);
  CHECK(tile_shape<256>::stages == 4);
  CHECK(tile_shape<192>::stages == 5);
  CHECK(tile_shape<128>::stage_bytes == 32 << 10);
  CHECK(tile_shape<128>::stages == 7);
  CHECK(tile_shape<96>::stages == 8);
  CHECK(tile_shape<256>::shared_bytes + tile_shape<256>::stage_bytes > shared_limit);
  CHECK(tile_shape<128>::shared_bytes + tile_shape<128>::stage_bytes > shared_limit);
  // Wherever the block's memory begins, stages and control lie inside.
  for (int begin = 0; begin < tile_alignment; begin += 16) {
    int const first = (begin + tile_alignment - 1) / tile_alignment * tile_alignment;
    CHECK(first + tile_shape<256>::ring_bytes + control_bytes <= begin + tile_shape<256>::shared_bytes);
  }
}

TEST_CASE("a place goes round the ring, with the other parity each time") {
  for (int const stages : {3, 4, 7}) {
    ring_place at;
    for (int step = 0; step < 5 * stages; ++step) {
      CHECK(at == ring_place{step % stages, static_cast<unsigned>(step / stages % 2)});
      at.advance(stages);
    }
  }
}
