// SPDX-License-Identifier: Apache-2.0
// Arrays in device memory for tests: copied from a vector or poisoned, and read back.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>
#include <vector>

inline void check_cuda(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

template <class T> class device_array {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  /// Each byte is 0xff: NaN, or −1.
  explicit device_array(std::int64_t size) : size_(static_cast<std::size_t>(size)) {
    check_cuda(cudaMalloc(reinterpret_cast<void**>(&data_), bytes() + 1));
    check_cuda(cudaMemset(data_, 0xff, bytes() + 1));
    check_cuda(cudaDeviceSynchronize());
  }
  explicit device_array(std::vector<T> const& from) : device_array(static_cast<std::int64_t>(from.size())) {
    if (!from.empty()) check_cuda(cudaMemcpy(data_, from.data(), bytes(), cudaMemcpyHostToDevice));
  }
  device_array(device_array const&) = delete;
  device_array& operator=(device_array const&) = delete;
  ~device_array() { cudaFree(data_); }

  T* data() const { return data_; }
  std::int64_t size() const { return static_cast<std::int64_t>(size_); }

  /// What is there once all work that was queued is done.
  std::vector<T> host() const {
    check_cuda(cudaDeviceSynchronize());
    std::vector<T> values(size_);
    if (size_ != 0) check_cuda(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  std::size_t bytes() const { return size_ * sizeof(T); }

  T* data_ = nullptr;
  std::size_t size_;
};

/// Equality of bits: a NaN equals itself, and 0 is not −0.
template <class T> bool same_bits(std::vector<T> const& a, std::vector<T> const& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}
