// SPDX-License-Identifier: Apache-2.0
// Device memory in the order of a stream, and the text of what goes wrong.
//
//   stream_memory   a std::pmr::memory_resource over cudaMallocAsync and cudaFreeAsync
//   device_arena    an arena of device memory. Stores of up to 128 KiB travel with kernels, so they neither wait nor break a
//                   capture; larger ones wait. A capture gets blocks that wait here, and none of the hook.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <cuda_runtime.h>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory_resource>

namespace moiety::inline MOIETY_ABI::detail {

/// Throws cuda_error, with what was tried, unless the call succeeded.
inline void expect(cudaError_t result, char const* what) {
  if (result == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // what can be forgotten is; what cannot comes back with the next call
  throw cuda_error(sentence(what, ": ", cudaGetErrorString(result), " (", cudaGetErrorName(result), ")."));
}

/// Makes a device the current one for a while.
class device_scope {
 public:
  explicit device_scope(int device) {
    expect(cudaGetDevice(&before_), "no CUDA device");
    if (device != before_) expect(cudaSetDevice(device), "the CUDA device cannot be used");
    changed_ = device != before_;
  }
  device_scope(device_scope const&) = delete;
  device_scope& operator=(device_scope const&) = delete;
  ~device_scope() {
    if (changed_) static_cast<void>(cudaSetDevice(before_));
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

/// Values that travel with a launch: no copy, so no wait, and a graph keeps them.
struct carried_values {
  static constexpr std::int64_t most = 2048;
  unsigned char bytes[most];
};

template <int = 0> __global__ void store_carried(unsigned char* to, carried_values values, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) to[i] = values.bytes[i];
}

/// Device memory in the order of a stream.
class stream_memory final : public std::pmr::memory_resource {
 public:
  stream_memory(int device, cudaStream_t stream) : device_(device), stream_(stream) {}

 private:
  void* do_allocate(std::size_t bytes, std::size_t) override {
    device_scope const scope(device_);
    void* block = nullptr;
    cudaError_t const result = cudaMallocAsync(&block, bytes, stream_);
    if (result == cudaErrorMemoryAllocation)
      expect(result, sentence("out of memory: ", bytes, " bytes of device memory could not be allocated").c_str());
    expect(result, "allocating device memory");
    return block;
  }
  void do_deallocate(void* block, std::size_t, std::size_t) override {
    int before = 0;
    static_cast<void>(cudaGetDevice(&before));
    static_cast<void>(cudaSetDevice(device_));
    if (cudaFreeAsync(block, stream_) != cudaSuccess) static_cast<void>(cudaGetLastError());
    static_cast<void>(cudaSetDevice(before));
  }
  bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override { return this == &other; }

  int device_;
  cudaStream_t stream_;
};

/// An arena of device memory: the stream orders its blocks, so one that was freed serves the next call at once.
class device_arena final : public arena {
 public:
  device_arena(std::pmr::memory_resource& hook, int device, cudaStream_t stream)
      : arena(hook), device_(device), stream_(stream) {}
  ~device_arena() override { give_back_all(); }

  void zero(void* to, std::int64_t bytes) override {
    device_scope const scope(device_);
    if (bytes > 0) expect(cudaMemsetAsync(to, 0, static_cast<std::size_t>(bytes), stream_), "zeroing memory");
  }

  void store(void* to, void const* from, std::int64_t bytes) override {
    device_scope const scope(device_);
    if (bytes > most_carried) {
      require<cuda_error>(!records(), "a copy of ", bytes, " bytes from the host cannot be captured into a graph.");
      auto const size = static_cast<std::size_t>(bytes);
      expect(cudaMemcpyAsync(to, from, size, cudaMemcpyHostToDevice, stream_), "a copy to the device");
      return expect(cudaStreamSynchronize(stream_), "a copy to the device");
    }
    auto const* source = static_cast<unsigned char const*>(from);
    auto* target = static_cast<unsigned char*>(to);
    for (std::int64_t done = 0; done < bytes; done += carried_values::most) {
      int const count = static_cast<int>(std::min(bytes - done, carried_values::most));
      carried_values values{};
      std::copy_n(source + done, count, values.bytes);
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(1), config.blockDim = dim3(128), config.stream = stream_;
      expect(cudaLaunchKernelEx(&config, store_carried<>, target + done, values, count), "a copy to the device");
    }
  }

  void load(void* to, void const* from, std::int64_t bytes) override {
    device_scope const scope(device_);
    if (bytes == 0) return;
    auto const size = static_cast<std::size_t>(bytes);
    expect(cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToHost, stream_), "a copy to the host");
    expect(cudaStreamSynchronize(stream_), "a copy to the host");
  }

  bool of_host() const override { return false; }

 protected:
  bool records() const override {
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    expect(cudaStreamIsCapturing(stream_, &capture), "asking for a stream's state");
    return capture != cudaStreamCaptureStatusNone;
  }
  void refuse_in_recording(std::size_t bytes) const override {
    throw cuda_error(sentence("a call that is captured into a graph asked for ", bytes,
                              " bytes of device memory: make the call once before it is captured."));
  }
  std::size_t alignment_of(std::size_t) const override { return 256; }
  void taken_from_hook(void*, std::size_t) override {}

  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    device_scope const scope(device_);
    return arena::do_allocate(bytes, alignment);
  }

 private:
  static constexpr std::int64_t most_carried = 64 * carried_values::most;

  int device_;
  cudaStream_t stream_;
};

}  // namespace moiety::inline MOIETY_ABI::detail
