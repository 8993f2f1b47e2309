// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/sm90/tensor_map.cuh>

#include <moiety/core/errors.hpp>
#include <moiety/kernels/cuda/fragments.hpp>
#include <moiety/kernels/cuda/sm90/instructions.cuh>

#include <kernels/cuda/sm90/cases.hpp>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace mo = moiety;
using namespace moiety::kernels;
using namespace moiety::kernels::sm90;
using testing::device_values;

namespace {

struct corner {
  int x, y, z;
};

/// Copies one box into shared memory, and all of that out.
template <int Rank>
__global__ void copy_box(tensor_map const __grid_constant__ map, corner at, unsigned bytes, unsigned char* out) {
  std::byte* const tile = testing::tiles();
  barrier* const arrived = reinterpret_cast<barrier*>(tile + bytes);
  if (threadIdx.x == 0) {
    init_barrier(arrived, 1);
    publish_barriers();
    arrive_expecting(arrived, bytes);
    if constexpr (Rank == 2) load_box(tile, map, arrived, at.x, at.y);
    if constexpr (Rank == 3) load_box(tile, map, arrived, at.x, at.y, at.z);
  }
  __syncthreads();
  wait_phase(arrived, 0);
  for (unsigned i = threadIdx.x; i < bytes; i += blockDim.x) out[i] = static_cast<unsigned char>(tile[i]);
}

struct matrices {
  int groups, rows, columns, padding;  // elements behind each row; as many rows behind each group

  int row_stride() const { return columns + padding; }
  int group_stride() const { return (rows + padding) * row_stride(); }
};

/// Every box of some around the edges must have the elements where fragments.hpp has those of a k-first tile.
template <int Rank, class Element = std::uint16_t>
void check_boxes(matrices const& of, int box_rows, std::vector<corner> const& corners) {
  constexpr int size = static_cast<int>(sizeof(Element));
  std::vector<Element> elements(static_cast<std::size_t>(of.groups * of.group_stride()));
  std::mt19937 random(7);
  for (auto& element : elements) element = static_cast<Element>(random() % ((1u << (8 * size)) - 1) + 1);
  device_values<Element> const there(elements);
  mapped_rows const rows{there.data(), of.rows, of.columns, of.row_stride(), box_rows, size};
  mapped_groups const groups{there.data(),      of.groups,       of.rows,  of.columns,
                             of.group_stride(), of.row_stride(), box_rows, size};
  tensor_map const map = Rank == 2 ? make_tensor_map(rows) : make_tensor_map(groups);
  unsigned const bytes = Rank == 2 ? box_bytes(rows) : box_bytes(groups);
  for (corner const& at : corners) {
    device_values<unsigned char> out(bytes);
    testing::launch_block(&copy_box<Rank>, 64, static_cast<int>(bytes) + testing::slack + 8, map, at, bytes,
                          out.data());
    auto const got = out.host();
    int wrong = 0;
    for (int row = 0; row < box_rows; ++row)
      for (int col = 0; col < box_row_bytes / size; ++col) {
        int const x = at.x + col, y = at.y + row;
        bool const inside = x >= 0 && x < of.columns && y >= 0 && y < of.rows && at.z >= 0 && at.z < of.groups;
        int const from = at.z * of.group_stride() + y * of.row_stride() + x;
        int const pair = gpu::element_offset<tile_order::k_first>(row, col * size / 2);
        auto const offset = static_cast<std::size_t>(pair + col * size % 2);
        int const value = size == 1 ? got[offset] : got[offset] + 256 * got[offset + 1];
        wrong += value != (inside ? elements[static_cast<std::size_t>(from)] : 0);
      }
    INFO("box at ", at.x, ", ", at.y, ", ", at.z);
    CHECK(wrong == 0);
  }
}

}  // namespace

TEST_CASE("boxes of rows come swizzled, with zeros outside") {
  if (!testing::on_sm90()) return;
  std::vector<corner> const corners{{0, 0, 0},    {64, 3, 0},  {128, 40, 0}, {-8, -7, 0},
                                    {104, 96, 0}, {256, 0, 0}, {0, -64, 0}};
  check_boxes<2>({1, 100, 136, 0}, 64, corners);
  check_boxes<2>({1, 100, 131, 5}, 64, corners);
  check_boxes<2>({1, 300, 64, 0}, 256, {{0, 0, 0}, {0, 44, 0}, {0, 45, 0}});
  check_boxes<2>({1, 1, 1, 7}, 1, {{0, 0, 0}, {8, 0, 0}});
}

TEST_CASE("boxes of groups end with their group") {
  if (!testing::on_sm90()) return;
  std::vector<corner> const corners{{0, 0, 0}, {64, 30, 2}, {0, 69, 1}, {0, -1, 1}, {-64, 0, 1}, {0, 0, 3}, {0, 0, -1}};
  check_boxes<3>({3, 70, 72, 0}, 64, corners);
  check_boxes<3>({3, 70, 77, 3}, 128, corners);
  check_boxes<3>({1, 9, 64, 0}, 8, {{0, 0, 0}, {0, 4, 0}, {0, 0, 1}});
}

TEST_CASE("boxes of bytes are 128 columns wide") {
  if (!testing::on_sm90()) return;
  check_boxes<2, std::uint8_t>({1, 100, 272, 0}, 64,
                               {{0, 0, 0}, {128, 40, 0}, {-16, -7, 0}, {176, 96, 0}, {256, 0, 0}});
  check_boxes<2, std::uint8_t>({1, 100, 267, 5}, 64, {{0, 3, 0}, {128, 40, 0}, {256, 50, 0}});
  check_boxes<2, std::uint8_t>({1, 1, 1, 15}, 1, {{0, 0, 0}, {16, 0, 0}});
  check_boxes<3, std::uint8_t>({3, 70, 141, 3}, 128, {{0, 0, 0}, {128, 30, 2}, {0, 69, 1}, {0, 0, 3}});
}

TEST_CASE("what cannot be mapped is refused") {
  device_values<std::uint16_t> const there(256);
  CHECK_THROWS_WITH_AS(static_cast<void>(make_tensor_map(mapped_rows{there.data(), 4, 60, 60, 64})),
                       "a tensor map cannot describe 4 rows of 60 elements, 60 apart, in boxes of 64.",
                       mo::config_error);
  CHECK_THROWS_AS(static_cast<void>(make_tensor_map(mapped_groups{there.data(), 2, 4, 16, 60, 16, 64})),
                  mo::config_error);
}

#if defined(CUDA_ON_CPU)
TEST_CASE("a driver without tensor maps is told of") {
  cuda_on_cpu::knobs.driver_version = 11080;
  CHECK_THROWS_WITH_AS(static_cast<void>(driver::find_encode_tiled()),
                       "the CUDA driver knows no tensor maps; it must be of CUDA 12.0 or newer.", mo::cuda_error);
  cuda_on_cpu::reset();
}
#endif
