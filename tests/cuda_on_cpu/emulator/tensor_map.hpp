// SPDX-License-Identifier: Apache-2.0
// Tensor maps of elements of 16 and 8 bits as the driver makes them, as strict as its documentation, and the copies of
// their boxes. A box arrives late, in rows of 128 bytes with the swizzle of the address where each chunk comes to lie.
#pragma once

#include <limits>
#include <string_view>

#include "asynchronous.hpp"
#include "runtime.hpp"

// clang-format off
using cuuint32_t = std::uint32_t;
using cuuint64_t = std::uint64_t;
enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1, CUDA_ERROR_NOT_SUPPORTED = 801 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_UINT8 = 0, CU_TENSOR_MAP_DATA_TYPE_UINT16 = 1,
                           CU_TENSOR_MAP_DATA_TYPE_FLOAT16 = 6, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_NONE = 0, CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_NONE = 0, CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2,
                              CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 };
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0, cudaDriverEntryPointSymbolNotFound = 1,
                                       cudaDriverEntryPointVersionNotSufficent = 2 };
enum : unsigned long long { cudaEnableDefault = 0 };
// clang-format on

struct CUtensorMap {
  alignas(128) cuuint64_t opaque[16];
};

namespace cuda_on_cpu {

/// What the 128 bytes of a tensor map are here. Strides in bytes, of all dimensions but the innermost.
struct encoded_map {
  std::uint64_t mark;
  std::byte const* data;
  std::uint64_t extents[3], strides[2];
  std::uint32_t rank, box[3], element_bytes;
};
static_assert(sizeof(encoded_map) <= sizeof(CUtensorMap));
inline constexpr std::uint64_t map_mark = 0x3a9b0c5;

struct box_place {
  std::int64_t x, y, z;
};

/// One row of a box, 128 bytes.
inline void copy_box_row(thread const& by, encoded_map const& map, box_place const& at, unsigned address) {
  std::byte row[128] = {};
  auto const size = static_cast<std::int64_t>(map.element_bytes);
  auto const extent = [&](int i) { return static_cast<std::int64_t>(map.extents[i]); };
  std::int64_t const first = std::max(at.x, std::int64_t{0}), last = std::min(at.x + 128 / size, extent(0));
  if (first < last && at.y >= 0 && at.y < extent(1) && at.z >= 0 && at.z < extent(2)) {
    auto const stride = [&](int i) { return static_cast<std::int64_t>(map.strides[i]); };
    std::byte const* const from = map.data + first * size + at.y * stride(0) + at.z * stride(1);
    auto const bytes = static_cast<std::size_t>((last - first) * size);
    if (the_device.memory.find(from, bytes) == nullptr) fail(by, "it copies a box of what is not device memory");
    std::memcpy(row + (first - at.x) * size, from, bytes);
  }
  for (unsigned chunk = 0; chunk < 8; ++chunk) {
    unsigned const unswizzled = address + chunk * 16;
    std::memcpy(block::running.shared_at(unswizzled ^ (unswizzled >> 3 & 0x70), 16), row + chunk * 16, 16);
  }
}

/// Asks for the box whose first element is (x, y, z).
inline void load_box(void* shared, void const* tensor_map, std::uint64_t* barrier, unsigned rank, box_place const& at) {
  block& b = block::running;
  thread const& me = b.self();
  encoded_map map;
  std::memcpy(&map, tensor_map, sizeof map);
  if (reinterpret_cast<std::uintptr_t>(tensor_map) % 64 != 0 || map.mark != map_mark)
    fail(me, "it copies a box of what is no tensor map at a multiple of 64 bytes");
  if (map.rank != rank) fail(me, "it gives another number of coordinates than the tensor map has");
  unsigned const address = b.shared_address(shared), bytes = map.box[1] * map.box[2] * 128;
  if (address % 1024 != 0) fail(me, "it copies a box to a shared address that is no multiple of 1024 bytes");
  if (b.shared_at(address, bytes) == nullptr) fail(me, "it copies a box beyond the end of its shared memory");
  auto const first = static_cast<std::byte*>(shared), last = first + bytes;
  for (arrival const& other : b.arriving)
    if (first < other.last && other.first < last) fail(me, "it copies a box to where another is still to arrive");
  mbarrier& counter = find_mbarrier(barrier);
  std::memset(first, 0xff, bytes);
  b.arriving.push_back(
      {&me, first, last, [=, &me, &counter] {
         for (unsigned row = 0; row < map.box[1] * map.box[2]; ++row)
           copy_box_row(me, map, {at.x, at.y + row % map.box[1], at.z + row / map.box[1]}, address + row * 128);
         unpublished_chunks::of_block().overwrite(first, last);
         change_bytes(me, counter, -std::int64_t{bytes});
         complete_phase(counter);
       }});
}

namespace api {

/// Refuses what the documentation of the driver does not allow, and what the CPU run does not know.
inline CUresult cuTensorMapEncodeTiled(CUtensorMap* made, CUtensorMapDataType type, cuuint32_t rank, void* data,
                                       cuuint64_t const* extents, cuuint64_t const* strides, cuuint32_t const* box,
                                       cuuint32_t const* every, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  std::uint32_t const size = type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 2;
  if (rank < 2 || rank > 3 || swizzle != CU_TENSOR_MAP_SWIZZLE_128B || box[0] * size != 128)
    return CUDA_ERROR_NOT_SUPPORTED;
  encoded_map map{map_mark, static_cast<std::byte const*>(data), {1, 1, 1}, {}, rank, {1, 1, 1}, size};
  bool valid = data != nullptr && reinterpret_cast<std::uintptr_t>(data) % 16 == 0 &&
               reinterpret_cast<std::uintptr_t>(made) % 64 == 0;
  for (unsigned i = 0; i < rank; ++i) {
    valid = valid && extents[i] >= 1 && extents[i] <= std::uint64_t{1} << 32;
    valid = valid && box[i] >= 1 && box[i] <= 256 && every[i] == 1;
    map.extents[i] = extents[i], map.box[i] = box[i];
  }
  for (unsigned i = 0; i + 1 < rank; ++i) {
    valid = valid && strides[i] % 16 == 0 && strides[i] < std::uint64_t{1} << 40 && strides[i] >= extents[i] * size;
    map.strides[i] = strides[i];
  }
  if (rank == 3) valid = valid && strides[1] % strides[0] == 0 && strides[1] / strides[0] >= extents[1];
  if (!valid) return CUDA_ERROR_INVALID_VALUE;
  *made = {};
  std::memcpy(made, &map, sizeof map);
  return CUDA_SUCCESS;
}

inline cudaError_t cudaGetDriverEntryPointByVersion(char const* symbol, void** function, unsigned version,
                                                    unsigned long long /*flags*/,
                                                    cudaDriverEntryPointQueryResult* result = nullptr) {
  return call([&] {
    bool const known = std::string_view(symbol) == "cuTensorMapEncodeTiled", enough = version <= knobs.driver_version;
    *function = known && enough ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
    if (result != nullptr)
      *result = !known   ? cudaDriverEntryPointSymbolNotFound
                : enough ? cudaDriverEntryPointSuccess
                         : cudaDriverEntryPointVersionNotSufficent;
    return cudaSuccess;
  });
}

}  // namespace api
}  // namespace cuda_on_cpu
