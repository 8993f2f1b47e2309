// SPDX-License-Identifier: Apache-2.0
// The CUDA back end: one device, one stream, memory in the order of that stream.
//
//   mo::context<one_gpu> ctx;                             device 0 and a stream of its own
//   mo::context<one_gpu> ctx{mo::cuda{device, stream}};   the caller's stream, which outlives the context
//
// device   its number; compute capability 8.0 or newer
// stream   null makes a stream; cudaStreamLegacy is the default stream
// memory   the hook that every block of the context comes from: device memory, which goes back while work of the stream may
//          still use it, so the hook hands it out again only behind that work; null is cudaMallocAsync on the stream
// portable only kernels that run on every device, even where this program has others for this one (docs/cuda.md)
// few_rows rows of a group, on average, up to which products take tiles of few rows; results do not depend on it
//
// Calls return when their work is in the stream; nothing waits for the device but synchronize(), what copies to the host,
// copies of more than 128 KiB from it, and layers of several ranks where these exchange something (transport/device_ranks.cuh).
// A call of a layer of one rank without a report may be captured into a CUDA graph. A fault is
// a cuda_error that holds the text of CUDA and the name of what failed; one that only the device can see comes out of the
// next synchronize(), and then y, dx and gradients were written.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/backend/backend.hpp>
#include <moiety/backend/device_matrix.hpp>
#include <moiety/backend/device_memory.cuh>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>

#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory_resource>

namespace moiety::inline MOIETY_ABI {

template <class Communicator> class device_ranks;

struct cuda {
  int device = 0;
  cudaStream_t stream = nullptr;
  std::pmr::memory_resource* memory = nullptr;
  bool portable = false;
  std::int64_t few_rows = 32;

  using engine = cuda_engine;
  template <class T> using matrix = device_matrix<T>;
  template <class Communicator> using ranks = device_ranks<Communicator>;
  static constexpr non_finite default_non_finite = non_finite::sanitise;
};

/// Threads and memory of a kernel: blocks lie on the x axis of the grid.
struct launch_shape {
  std::int64_t blocks;
  int threads;
  std::int64_t shared_bytes = 0;
};

/// The faults that only the device can see, of tokens the first one by index; in device memory.
struct cuda_faults {
  static constexpr long long none = std::numeric_limits<long long>::max();
  long long rejected_token;  // logits are not all finite, and that was to be an error
  long long short_token;     // fewer experts than slots
  long long excess_rows;     // more rows of an expert than blocks between ranks have room for
};

namespace detail {

template <int = 0> __global__ void reset_faults(cuda_faults* faults) {
  *faults = {cuda_faults::none, cuda_faults::none, cuda_faults::none};
}

/// 90 for a device of compute capability 9.0.
inline int compute_capability(int device) {
  int major = 0, minor = 0;
  expect(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for a device's kind");
  expect(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "asking for a device's kind");
  return 10 * major + minor;
}

/// The stream that was given, or one of its own.
class stream_of_context {
 public:
  explicit stream_of_context(cuda const& options) : stream_(options.stream), owned_(options.stream == nullptr) {
    check(options.device);
    device_scope const scope(options.device);
    if (owned_) expect(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a CUDA stream");
  }
  stream_of_context(stream_of_context const&) = delete;
  stream_of_context& operator=(stream_of_context const&) = delete;
  ~stream_of_context() {
    if (owned_) static_cast<void>(cudaStreamDestroy(stream_));
  }
  cudaStream_t get() const { return stream_; }

 private:
  static void check(int device) {
    int devices = 0;
    expect(cudaGetDeviceCount(&devices), "no CUDA device");
    require<cuda_error>(device >= 0 && device < devices, "there is no CUDA device ", device, " among ", devices, '.');
    int const capability = compute_capability(device);
    require<cuda_error>(capability >= 80, "CUDA device ", device, " has compute capability ", capability / 10, '.',
                        capability % 10, ", and mo::cuda needs 8.0 or newer.");
  }

  cudaStream_t stream_;
  bool owned_;
};

}  // namespace detail

/// A CUDA back end at run time. Kernels of the library are launched through it; so may be a user's own.
class cuda_engine {
 public:
  /// Device memory for the tables of kernels that build an index, used in the order of the stream.
  static constexpr std::int64_t scratch_bytes = std::int64_t{4} << 20;

  explicit cuda_engine(cuda const& options)
      : device_(options.device),
        portable_(options.portable),
        few_rows_(options.few_rows),
        stream_(options),
        hook_(device_, stream_.get()),
        arena_(options.memory != nullptr ? *options.memory : hook_, device_, stream_.get()),
        scratch_(scratch_bytes + static_cast<std::int64_t>(sizeof(cuda_faults)), arena_) {
    int count = 0;
    detail::expect(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device_), "asking for processors");
    multiprocessors_ = count;
    compute_capability_ = detail::compute_capability(device_);
    check_place("mo::cuda", "a block of its hook", scratch());
    launch("the first kernel (is the program compiled for this device?)", detail::reset_faults<>, {1, 1}, faults());
  }

  int device() const { return device_; }
  cudaStream_t stream() const { return stream_.get(); }
  int multiprocessors() const { return multiprocessors_; }
  /// Blocks that take so many pieces of work in turn.
  std::int64_t blocks_in_turn(std::int64_t pieces) const {
    return std::min(pieces, std::int64_t{32} * multiprocessors_);
  }
  /// 90 for 9.0.
  int compute_capability() const { return compute_capability_; }
  bool portable() const { return portable_; }
  std::int64_t few_rows() const { return few_rows_; }
  arena& memory() { return arena_; }
  std::byte* scratch() const { return static_cast<std::byte*>(scratch_.data()); }
  cuda_faults* faults() const { return reinterpret_cast<cuda_faults*>(scratch() + scratch_bytes); }

  /// Puts a kernel into the stream; without blocks, nothing. `name` says in an error what failed.
  template <class... Parameters, class... Arguments>
  void launch(char const* name, void (*kernel)(Parameters...), launch_shape const& shape,
              Arguments const&... arguments) {
    if (shape.blocks == 0) return;
    detail::require<cuda_error>(shape.blocks <= std::numeric_limits<std::int32_t>::max(), name, " needs ", shape.blocks,
                                " blocks, more than a launch can have.");
    detail::device_scope const scope(device_);
    constexpr std::int64_t without_asking = 48 << 10;
    if (shape.shared_bytes > without_asking)
      detail::expect(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(shape.shared_bytes)),
                     name);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = static_cast<std::size_t>(shape.shared_bytes);
    config.stream = stream();
    detail::expect(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
  }

  /// Waits for all work of the context. Throws what only the device could see: cuda_error, or data_error about a token.
  void synchronize() {
    detail::device_scope const scope(device_);
    cuda_faults seen{};
    arena_.load(&seen, faults(), sizeof(seen));
    constexpr long long none = cuda_faults::none;
    if (seen.rejected_token == none && seen.short_token == none && seen.excess_rows == none) return;
    launch("clearing faults", detail::reset_faults<>, {1, 1}, faults());
    detail::require<data_error>(seen.rejected_token == none, "the router logits of token ", seen.rejected_token,
                                " were not all finite.");
    detail::require<data_error>(seen.short_token == none, "the router gave token ", seen.short_token,
                                " fewer experts than it has slots.");
    throw data_error(detail::sentence("an expert was given ", seen.excess_rows,
                                      " rows, where blocks between ranks have room for fewer."));
  }

  /// Waits for all work of the context, and says nothing of what only the device could see.
  void settle() {
    detail::device_scope const scope(device_);
    detail::expect(cudaStreamSynchronize(stream()), "waiting for a stream");
  }

  /// Later work waits for an event of the caller; an event of the caller marks the work so far.
  void wait(cudaEvent_t event) {
    detail::device_scope const scope(device_);
    detail::expect(cudaStreamWaitEvent(stream(), event, 0), "waiting for an event");
  }
  void record(cudaEvent_t event) {
    detail::device_scope const scope(device_);
    detail::expect(cudaEventRecord(event, stream()), "recording an event");
  }

  /// Throws unless the device can read the memory, and every call before succeeded.
  void check_memory(char const* call, char const* name, void const* memory) const {
    if (cudaError_t const before = cudaPeekAtLastError(); before != cudaSuccess)
      detail::expect(before, detail::sentence(call, " came after a CUDA call that failed").c_str());
    if (memory != nullptr) check_place(call, name, memory);
  }

  /// A named range of the host's time line, as profilers show it.
  class range {
   public:
    explicit range(char const* name) { nvtxRangePushA(name); }
    range(range const&) = delete;
    range& operator=(range const&) = delete;
    ~range() { nvtxRangePop(); }
  };

 private:
  void check_place(char const* call, char const* name, void const* memory) const {
    cudaPointerAttributes about{};
    if (cudaError_t const result = cudaPointerGetAttributes(&about, memory); result != cudaSuccess)
      detail::expect(result, detail::sentence(call, " was given ", name).c_str());
    bool const of_host = about.type != cudaMemoryTypeDevice && about.type != cudaMemoryTypeManaged;
    detail::require<cuda_error>(!of_host, call, " was given ", name, " in host memory; mo::cuda needs device memory.");
    detail::require<cuda_error>(about.type == cudaMemoryTypeManaged || about.device == device_, call, " was given ",
                                name, " on CUDA device ", about.device, ", but runs on ", device_, '.');
  }

  int device_, multiprocessors_ = 0, compute_capability_ = 0;
  bool portable_;
  std::int64_t few_rows_;
  detail::stream_of_context stream_;
  detail::stream_memory hook_;
  detail::device_arena arena_;
  buffer scratch_;
};
static_assert(backend<cuda>);

}  // namespace moiety
