// SPDX-License-Identifier: Apache-2.0
// Makes tensor maps: make_tensor_map(of) of tensor_map.hpp's mapped_rows or mapped_groups. Host only, no CUDA call that
// waits, a microsecond or so. Throws config_error where it is not mappable, cuda_error where the driver is too old (it must
// know CUDA 12.0) or refuses. The driver is asked through the runtime, so programs need not be linked to it.
#pragma once

#include <moiety/backend/device_memory.cuh>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/kernels/cuda/sm90/tensor_map.hpp>

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace moiety::inline MOIETY_ABI::kernels::sm90 {

namespace driver {

using encode_tiled = decltype(&cuTensorMapEncodeTiled);

inline encode_tiled find_encode_tiled() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  moiety::detail::expect(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
      "asking the driver for tensor maps");
  moiety::detail::require<cuda_error>(result == cudaDriverEntryPointSuccess && found != nullptr,
                                      "the CUDA driver knows no tensor maps; it must be of CUDA 12.0 or newer.");
  return reinterpret_cast<encode_tiled>(found);
}

/// Extents and strides from the innermost dimension on; strides in bytes, of all but that one.
template <unsigned Rank>
tensor_map encode_map(void const* data, cuuint64_t const (&extents)[Rank], cuuint64_t const (&strides)[Rank],
                      int box_rows, int element_bytes) {
  static encode_tiled const encode = find_encode_tiled();
  cuuint32_t box[Rank], every[Rank];
  for (unsigned i = 0; i < Rank; ++i) {
    box[i] = i == 0   ? static_cast<cuuint32_t>(box_row_bytes / element_bytes)
             : i == 1 ? static_cast<cuuint32_t>(box_rows)
                      : 1;
    every[i] = 1;
  }
  CUtensorMap made{};
  // Of the type, only the size matters to a copy whose outside is zero.
  auto const type = element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16;
  CUresult const result =
      encode(&made, type, Rank, const_cast<void*>(data), extents, strides, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  moiety::detail::require<cuda_error>(result == CUDA_SUCCESS, "the driver refused a tensor map of ", extents[1],
                                      " rows of ", extents[0], " elements: CUresult ", static_cast<int>(result), '.');
  tensor_map map;
  static_assert(sizeof map == sizeof made);
  std::memcpy(&map, &made, sizeof map);
  return map;
}

constexpr cuuint64_t extent(std::int64_t elements) { return static_cast<cuuint64_t>(elements); }
constexpr cuuint64_t stride(std::int64_t elements, int element_bytes) {
  return static_cast<cuuint64_t>(elements * element_bytes);
}

}  // namespace driver

inline tensor_map make_tensor_map(mapped_rows const& of) {
  moiety::detail::require<config_error>(mappable(of), "a tensor map cannot describe ", of.rows, " rows of ", of.columns,
                                        " elements, ", of.stride, " apart, in boxes of ", of.box_rows, '.');
  return driver::encode_map<2>(of.data, {driver::extent(of.columns), driver::extent(of.rows)},
                               {driver::stride(of.stride, of.element_bytes), 0}, of.box_rows, of.element_bytes);
}

inline tensor_map make_tensor_map(mapped_groups const& of) {
  moiety::detail::require<config_error>(mappable(of), "a tensor map cannot describe ", of.groups, " groups, ",
                                        of.group_stride, " apart, of ", of.rows, " rows of ", of.columns, " elements, ",
                                        of.row_stride, " apart, in boxes of ", of.box_rows, '.');
  return driver::encode_map<3>(
      of.data, {driver::extent(of.columns), driver::extent(of.rows), driver::extent(of.groups)},
      {driver::stride(of.row_stride, of.element_bytes), driver::stride(of.group_stride, of.element_bytes), 0},
      of.box_rows, of.element_bytes);
}

}  // namespace moiety::inline MOIETY_ABI::kernels::sm90
