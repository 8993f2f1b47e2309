// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/sm90/tile_shape.hpp>

#include <doctest/doctest.h>

#include <initializer_list>

using namespace moiety::kernels::sm90;

namespace {

template <int HandingWarps> void check_registers(int least) {
  using block = block_shape<HandingWarps>;
  CHECK(block::first_handing_thread + HandingWarps * 32 <= block::threads);
  CHECK(block::threads * block::starting_registers <= block_registers);
  for (int copying = least; copying <= block::starting_registers; copying += 8) {
    int const multiplying = block::multiplying_registers(copying);
    CHECK(multiplying % 8 == 0);
    CHECK(multiplying <= 256);
    int const all = block::first_registers(copying) + multiplying_warpgroups * multiplying +
                    block::handing_warpgroups * block::handing_registers;
    CHECK(all <= block::warpgroups * block::starting_registers);
    CHECK(all > block::warpgroups * block::starting_registers - 16);
  }
}

template <int Columns, int SumBytes> void check_room() {
  using shape = tile_shape<Columns, SumBytes>;
  CHECK(shape::shared_bytes + shape::stage_bytes > shared_limit);
  // Wherever the block's memory begins, stages, sums and control lie inside.
  for (int begin = 0; begin < tile_alignment; begin += 16) {
    int const first = (begin + tile_alignment - 1) / tile_alignment * tile_alignment;
    CHECK(first + shape::ring_bytes + shape::staged_bytes + control_bytes <= begin + shape::shared_bytes);
  }
}

}  // namespace

TEST_CASE("the registers of a block are shared out, and never more than it has") {
  CHECK(block_shape<0>::multiplying_registers(56) == 224);
  CHECK(block_shape<3>::multiplying_registers(56) == 192);
  CHECK(block_shape<4>::multiplying_registers(56) == 168);
  CHECK(block_shape<8>::multiplying_registers(56) == 104);
  check_registers<0>(24);
  check_registers<3>(24);
  check_registers<4>(24);
  check_registers<8>(24);
}

TEST_CASE("a ring takes as many stages as shared memory holds beside staged sums") {
  CHECK(tile_shape<256, 0>::stage_bytes == 48 << 10);
  CHECK(tile_shape<256, 0>::stages == 4);
  CHECK(tile_shape<256, 2>::stages == 3);
  CHECK(tile_shape<128, 4>::stage_bytes == 32 << 10);
  CHECK(tile_shape<128, 4>::stages == 5);
  CHECK(tile_shape<256, 2>::staged_bytes == 64 << 10);
  CHECK(tile_shape<128, 4>::staged_bytes == 64 << 10);
  check_room<256, 0>();
  check_room<256, 2>();
  check_room<128, 4>();
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
