// SPDX-License-Identifier: Apache-2.0
// Device memory for tests: made of host values or poisoned (0xff in every byte: NaN in every number type), and read back.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory_resource>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

namespace testing {

inline void succeed(cudaError_t result) {
  if (result != cudaSuccess) throw std::runtime_error(cudaGetErrorString(result));
}

/// What was put into the legacy stream is done: other streams do not wait for it.
inline void settle() { succeed(cudaStreamSynchronize(cudaStreamLegacy)); }

/// A value of 0xff in every byte.
template <class T> T poison() {
  T value;
  std::memset(static_cast<void*>(&value), 0xff, sizeof(T));
  return value;
}

template <class T> class device_values {
 public:
  explicit device_values(std::int64_t count) : count_(static_cast<std::size_t>(count)) {
    if (count_ == 0) return;
    succeed(cudaMalloc(reinterpret_cast<void**>(&data_), bytes()));
    succeed(cudaMemset(data_, 0xff, bytes()));
    settle();
  }
  explicit device_values(std::vector<T> const& values) : device_values(static_cast<std::int64_t>(values.size())) {
    if (count_ == 0) return;
    succeed(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice));
    settle();
  }
  device_values(device_values&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  device_values& operator=(device_values&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~device_values() {
    if (data_ != nullptr) static_cast<void>(cudaFree(data_));
  }

  T* data() { return data_; }
  T const* data() const { return data_; }
  /// Waits for the device.
  std::vector<T> host() const {
    succeed(cudaDeviceSynchronize());
    std::vector<T> values(count_);
    if (count_ != 0) succeed(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  std::size_t bytes() const { return count_ * sizeof(T); }

  T* data_ = nullptr;
  std::size_t count_;
};

/// Device memory that any thread asks for, counted: bytes that live, the most of them, and blocks asked for.
struct counted_device_memory final : std::pmr::memory_resource {
  std::atomic<std::int64_t> live{0}, most{0}, blocks{0};

  void* do_allocate(std::size_t bytes, std::size_t) override {
    void* block = nullptr;
    if (cudaMalloc(&block, bytes) != cudaSuccess) throw std::bad_alloc();
    std::int64_t const now = live += static_cast<std::int64_t>(bytes);
    for (std::int64_t seen = most; seen < now && !most.compare_exchange_weak(seen, now);) continue;
    ++blocks;
    return block;
  }
  void do_deallocate(void* block, std::size_t bytes, std::size_t) override {
    static_cast<void>(cudaDeviceSynchronize());
    static_cast<void>(cudaFree(block));
    live -= static_cast<std::int64_t>(bytes);
  }
  bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override { return this == &other; }
};

/// Bitwise equality: NaN equals itself, the zeros differ.
template <class T> bool same_bits(std::vector<T> const& a, std::vector<T> const& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace testing
