// SPDX-License-Identifier: Apache-2.0
// The part of the CUDA runtime API that the library calls, with the toolkit's names, types and values.
#pragma once

#include <tuple>

#include "device.hpp"

#define CUDART_VERSION 13000
#define CUDA_ON_CPU_ERRORS(X)                                                                               \
  X(cudaSuccess, 0, "no error")                                                                             \
  X(cudaErrorInvalidValue, 1, "invalid argument")                                                           \
  X(cudaErrorMemoryAllocation, 2, "out of memory")                                                          \
  X(cudaErrorInitializationError, 3, "initialization error")                                                \
  X(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                                     \
  X(cudaErrorInvalidMemcpyDirection, 21, "invalid copy direction for memcpy")                               \
  X(cudaErrorInsufficientDriver, 35, "CUDA driver version is insufficient")                                 \
  X(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                                           \
  X(cudaErrorInvalidDevice, 101, "invalid device ordinal")                                                  \
  X(cudaErrorNoKernelImageForDevice, 209, "no kernel image is available for execution")                     \
  X(cudaErrorInvalidResourceHandle, 400, "invalid resource handle")                                         \
  X(cudaErrorNotReady, 600, "device not ready")                                                             \
  X(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")                               \
  X(cudaErrorLaunchOutOfResources, 701, "too many resources requested for launch")                          \
  X(cudaErrorAssert, 710, "device-side assert triggered")                                                   \
  X(cudaErrorLaunchFailure, 719, "unspecified launch failure")                                              \
  X(cudaErrorNotSupported, 801, "operation not supported")                                                  \
  X(cudaErrorStreamCaptureUnsupported, 900, "operation not permitted when stream is capturing")             \
  X(cudaErrorStreamCaptureInvalidated, 901, "operation failed due to a previous error during capture")      \
  X(cudaErrorStreamCaptureUnmatched, 903, "capture was not initiated in this stream")                       \
  X(cudaErrorStreamCaptureIsolation, 905, "dependency created on uncaptured work in another stream")        \
  X(cudaErrorStreamCaptureImplicit, 906, "the legacy stream depends on a capturing blocking stream")        \
  X(cudaErrorCapturedEvent, 907, "operation not permitted on an event last recorded in a capturing stream") \
  X(cudaErrorUnknown, 999, "unknown error")

enum cudaError {
#define CUDA_ON_CPU_VALUE(name, value, text) name = value,
  CUDA_ON_CPU_ERRORS(CUDA_ON_CPU_VALUE)
#undef CUDA_ON_CPU_VALUE
};
using cudaError_t = cudaError;

inline char const* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define CUDA_ON_CPU_NAME(name, value, text) \
  case name: return #name;
    CUDA_ON_CPU_ERRORS(CUDA_ON_CPU_NAME)
#undef CUDA_ON_CPU_NAME
  }
  return "unrecognized error code";
}

inline char const* cudaGetErrorString(cudaError_t error) {
  switch (error) {
#define CUDA_ON_CPU_TEXT(name, value, text) \
  case name: return text;
    CUDA_ON_CPU_ERRORS(CUDA_ON_CPU_TEXT)
#undef CUDA_ON_CPU_TEXT
  }
  return "unrecognized error code";
}
#undef CUDA_ON_CPU_ERRORS

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
using cudaMemPool_t = struct CUmemPoolHandle_st*;
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;

#define cudaStreamLegacy (reinterpret_cast<cudaStream_t>(0x1))

struct CUgraph_st {
  cuda_on_cpu::graph_nodes nodes;
};
struct CUgraphExec_st {
  std::shared_ptr<cuda_on_cpu::graph_nodes const> nodes;
};

// clang-format off
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice,
                      cudaMemcpyDefault };
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice, cudaMemoryTypeManaged };
struct cudaPointerAttributes { cudaMemoryType type; int device; void* devicePointer; void* hostPointer; };
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1, cudaDevAttrMaxSharedMemoryPerBlock = 8, cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16, cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrMemoryPoolsSupported = 115 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
                         cudaFuncAttributePreferredSharedMemoryCarveout = 9 };
struct cudaFuncAttributes { std::size_t sharedSizeBytes; int maxThreadsPerBlock; int numRegs; int ptxVersion; };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal,
                             cudaStreamCaptureModeRelaxed };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive,
                               cudaStreamCaptureStatusInvalidated };
enum : unsigned { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };
enum : unsigned { cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2 };
enum : unsigned { cudaHostAllocDefault = 0, cudaHostAllocPortable = 1, cudaHostAllocMapped = 2 };
// clang-format on

struct cudaLaunchAttribute;  // none is supported
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace cuda_on_cpu {

inline thread_local cudaError_t last_error = cudaSuccess;
inline thread_local int current_device = 0;

/// One call from the host: alone on the device, its error kept for cudaGetLastError.
template <class F> cudaError_t call(F const& body) {
  std::lock_guard const alone(the_device.mutex);
  cudaError_t error = knobs.devices == 0 ? cudaErrorNoDevice : static_cast<cudaError_t>(knobs.sticky);
  if (error == cudaSuccess) error = body();
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

template <class F> cudaError_t call_on(cudaStream_t given, F const& body) {
  return call([&]() -> cudaError_t {
    CUstream_st& s = *the_device.stream(given);
    if (!s.alive) return cudaErrorInvalidResourceHandle;
    return body(s);
  });
}

/// Calls that would make a capture meaningless end it: the stream's own, or any under a capture that forbids them.
inline bool forbidden_by_capture(CUstream_st* waited_for = nullptr) {
  bool forbidden = false;
  for (CUstream_st& s : the_device.streams) {
    if (!s.capture || (waited_for != nullptr && waited_for != &s)) continue;
    bool const counts =
        waited_for != nullptr || s.capture->mode == cudaStreamCaptureModeGlobal ||
        (s.capture->mode == cudaStreamCaptureModeThreadLocal && s.capture->thread == std::this_thread::get_id());
    if (counts) s.capture->valid = false, forbidden = true;
  }
  return forbidden;
}

inline cudaError_t wait_for(moment const& to) {
  if (to.stream != nullptr && forbidden_by_capture(to.stream)) return cudaErrorStreamCaptureUnsupported;
  ++counters.synchronisations;
  the_device.run_until(to);
  return static_cast<cudaError_t>(knobs.sticky);
}

/// Queues work; the legacy stream may not meet a blocking stream that is captured.
inline cudaError_t submit(CUstream_st& s, std::function<void()> run, std::vector<moment> after = {}) {
  for (CUstream_st& other : the_device.streams)
    if (&s == &the_device.legacy() && other.blocking && other.capture) {
      other.capture->valid = false;
      return cudaErrorStreamCaptureImplicit;
    }
  if (s.capture && !s.capture->valid) return cudaErrorStreamCaptureInvalidated;
  the_device.enqueue(s, std::move(run), std::move(after));
  return cudaSuccess;
}

inline cudaError_t launch(launch_record record, CUstream_st& s) {
  auto const failure = static_cast<cudaError_t>(std::exchange(knobs.next_launch, 0));
  if (failure != cudaSuccess) return failure;
  auto const threads = std::uint64_t{record.block.x} * record.block.y * record.block.z;
  if (threads == 0 || threads > block_limit || record.block.z > 64) return cudaErrorInvalidConfiguration;
  if (record.grid.x - 1 >= 0x7fffffff || record.grid.y - 1 >= 0xffff || record.grid.z - 1 >= 0xffff)
    return cudaErrorInvalidConfiguration;
  auto const raised = the_device.shared_limits.find(record.kernel);
  if (record.shared_bytes > (raised == the_device.shared_limits.end() ? 48 << 10 : raised->second))
    return cudaErrorInvalidValue;
  return submit(s, [record = std::move(record)] { the_device.run_kernel(record); });
}

/// On the host, or on the device in one allocation.
inline bool sound(void const* p, std::size_t bytes) {
  return !the_device.memory.contains(p) || the_device.memory.find(p, bytes) != nullptr;
}

/// What was sound when the host called may have been freed before it runs.
inline void check_again(void const* p, std::size_t bytes) {
  if (sound(p, bytes)) return;
  std::fputs("cuda_on_cpu: a copy or memset runs on device memory that has been freed.\n", stderr);
  std::abort();
}

inline cudaError_t copy(void* to, void const* from, std::size_t bytes, cudaMemcpyKind kind, CUstream_st& s) {
  bool const to_device = the_device.memory.contains(to), from_device = the_device.memory.contains(from);
  if (kind != cudaMemcpyDefault && kind != (from_device ? 2 : 0) + (to_device ? 1 : 0)) return cudaErrorInvalidValue;
  if (!sound(to, bytes) || !sound(from, bytes)) return cudaErrorInvalidValue;
  if (bytes == 0) return cudaSuccess;
  if (to_device && !from_device && !s.capture && !the_device.is_pinned(from)) {  // the host may change it at once
    auto const begin = static_cast<std::byte const*>(from);
    return submit(s, [to, staged = std::vector(begin, begin + bytes)] {
      check_again(to, staged.size());
      std::memcpy(to, staged.data(), staged.size());
    });
  }
  return submit(s, [=] {
    check_again(to, bytes);
    check_again(from, bytes);
    std::memcpy(to, from, bytes);
  });
}

inline cudaError_t fill(void* at, int value, std::size_t bytes, CUstream_st& s) {
  if (!the_device.memory.contains(at) || !sound(at, bytes)) return cudaErrorInvalidValue;
  return submit(s, [=] {
    check_again(at, bytes);
    std::memset(at, value, bytes);
  });
}

inline cudaError_t allocate(void** pointer, std::size_t bytes) {
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  *pointer = the_device.memory.allocate(bytes, current_device);
  if (*pointer == nullptr) {  // what is queued may free some
    the_device.run_all();
    *pointer = the_device.memory.allocate(bytes, current_device);
  }
  return *pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

namespace api {  // seen from everywhere

// Errors and devices

inline cudaError_t cudaPeekAtLastError() {
  return knobs.sticky != 0 ? static_cast<cudaError_t>(knobs.sticky) : last_error;
}
inline cudaError_t cudaGetLastError() {
  cudaError_t const error = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return error;
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = knobs.devices;
  return call([] { return cudaSuccess; });
}
inline cudaError_t cudaGetDevice(int* index) {
  return call([&] { return *index = current_device, cudaSuccess; });
}
inline cudaError_t cudaSetDevice(int index) {
  return call([&] {
    if (index < 0 || index >= knobs.devices) return cudaErrorInvalidDevice;
    current_device = index;
    return cudaSuccess;
  });
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  return call([&] {
    if (index < 0 || index >= knobs.devices) return cudaErrorInvalidDevice;
    switch (attribute) {
      case cudaDevAttrMaxThreadsPerBlock: *value = block_limit; break;
      case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
      case cudaDevAttrWarpSize: *value = warpSize; break;
      case cudaDevAttrMultiProcessorCount: *value = knobs.multiprocessors; break;
      case cudaDevAttrComputeCapabilityMajor: *value = knobs.compute_major; break;
      case cudaDevAttrComputeCapabilityMinor: *value = knobs.compute_minor; break;
      case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = static_cast<int>(knobs.shared_limit) + 1024; break;
      case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(knobs.shared_limit); break;
      case cudaDevAttrMemoryPoolsSupported: *value = 1; break;
      default: return cudaErrorInvalidValue;
    }
    return cudaSuccess;
  });
}
inline cudaError_t cudaDeviceSynchronize() {
  return call([] {
    if (forbidden_by_capture()) return cudaErrorStreamCaptureUnsupported;
    ++counters.synchronisations;
    the_device.run_all();
    return static_cast<cudaError_t>(knobs.sticky);
  });
}

// Memory

inline cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  return call([&] {
    if (forbidden_by_capture()) return cudaErrorStreamCaptureUnsupported;
    return allocate(pointer, bytes);
  });
}
inline cudaError_t cudaFree(void* pointer) {
  return call([&] {
    if (pointer == nullptr) return cudaSuccess;
    if (forbidden_by_capture()) return cudaErrorStreamCaptureUnsupported;
    the_device.run_all();
    return the_device.memory.free(pointer) ? cudaSuccess : cudaErrorInvalidValue;
  });
}
inline cudaError_t cudaMallocAsync(void** pointer, std::size_t bytes, cudaStream_t stream) {
  return call_on(stream, [&](CUstream_st& s) { return s.capture ? cudaErrorNotSupported : allocate(pointer, bytes); });
}
inline cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
  return call_on(stream, [&](CUstream_st& s) {
    if (pointer == nullptr) return cudaSuccess;
    if (s.capture) return cudaErrorNotSupported;
    if (the_device.memory.find(pointer) == nullptr) return cudaErrorInvalidValue;
    return submit(s, [pointer] {
      if (the_device.memory.free(pointer)) return;
      std::fputs("cuda_on_cpu: cudaFreeAsync of device memory that is not allocated.\n", stderr);
      std::abort();
    });
  });
}
inline cudaError_t cudaHostAlloc(void** pointer, std::size_t bytes, unsigned /*flags*/) {
  return call([&] {
    if (forbidden_by_capture()) return cudaErrorStreamCaptureUnsupported;
    *pointer = bytes == 0 ? nullptr : ::operator new(bytes, std::align_val_t(64));
    if (bytes != 0) the_device.pinned[static_cast<std::byte*>(*pointer)] = bytes;
    return cudaSuccess;
  });
}
inline cudaError_t cudaMallocHost(void** pointer, std::size_t bytes) { return cudaHostAlloc(pointer, bytes, 0); }
inline cudaError_t cudaFreeHost(void* pointer) {
  return call([&] {
    if (pointer == nullptr) return cudaSuccess;
    the_device.run_all();
    if (the_device.pinned.erase(static_cast<std::byte*>(pointer)) == 0) return cudaErrorInvalidValue;
    ::operator delete(pointer, std::align_val_t(64));
    return cudaSuccess;
  });
}
template <class T> cudaError_t cudaMalloc(T** pointer, std::size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(pointer), bytes);
}
template <class T> cudaError_t cudaMallocAsync(T** pointer, std::size_t bytes, cudaStream_t stream) {
  return cudaMallocAsync(reinterpret_cast<void**>(pointer), bytes, stream);
}
template <class T> cudaError_t cudaMallocHost(T** pointer, std::size_t bytes) {
  return cudaMallocHost(reinterpret_cast<void**>(pointer), bytes);
}
template <class T> cudaError_t cudaHostAlloc(T** pointer, std::size_t bytes, unsigned flags) {
  return cudaHostAlloc(reinterpret_cast<void**>(pointer), bytes, flags);
}

inline cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int /*device*/) {
  return call([&] { return *pool = nullptr, cudaSuccess; });
}
inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* /*value*/) {
  return call([] { return cudaSuccess; });
}
inline cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return call([&] {
    *total = knobs.device_bytes;
    *free = *total - counters.bytes;
    return cudaSuccess;
  });
}
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, void const* pointer) {
  return call([&] {
    auto* const p = const_cast<void*>(pointer);
    if (auto const* found = the_device.memory.find(p))
      *attributes = {cudaMemoryTypeDevice, found->device, p, nullptr};
    else if (the_device.is_pinned(p))
      *attributes = {cudaMemoryTypeHost, 0, p, p};
    else
      *attributes = {cudaMemoryTypeUnregistered, -2, nullptr, p};
    return cudaSuccess;
  });
}

inline cudaError_t cudaMemcpyAsync(void* to, void const* from, std::size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream = nullptr) {
  return call_on(stream, [&](CUstream_st& s) {
    cudaError_t const error = copy(to, from, bytes, kind, s);
    bool const waits = !the_device.memory.contains(to) && !the_device.is_pinned(to) && !s.capture;
    return error == cudaSuccess && waits ? wait_for({&s, s.queued}) : error;
  });
}
inline cudaError_t cudaMemcpy(void* to, void const* from, std::size_t bytes, cudaMemcpyKind kind) {
  return call([&] {
    if (forbidden_by_capture()) return cudaErrorStreamCaptureUnsupported;
    CUstream_st& s = the_device.legacy();
    cudaError_t const error = copy(to, from, bytes, kind, s);
    return error == cudaSuccess ? wait_for({&s, s.queued}) : error;
  });
}
inline cudaError_t cudaMemsetAsync(void* at, int value, std::size_t bytes, cudaStream_t stream = nullptr) {
  return call_on(stream, [&](CUstream_st& s) { return fill(at, value, bytes, s); });
}
inline cudaError_t cudaMemset(void* at, int value, std::size_t bytes) { return cudaMemsetAsync(at, value, bytes); }

// Streams and events

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return call([&] {
    the_device.streams.push_back(CUstream_st{(flags & cudaStreamNonBlocking) == 0});
    *stream = &the_device.streams.back();
    return cudaSuccess;
  });
}
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return call_on(stream, [&](CUstream_st& s) {
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    the_device.run(s);
    s.alive = false;
    s.capture = nullptr;
    return cudaSuccess;
  });
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call_on(stream, [](CUstream_st& s) { return wait_for({&s, s.queued}); });
}
/// Makes one step, so that who asks in a loop gets there.
inline cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return call_on(stream, [](CUstream_st& s) {
    if (forbidden_by_capture(&s)) return cudaErrorStreamCaptureUnsupported;
    if (s.done == s.queued) return cudaSuccess;
    the_device.run_until({&s, s.done + 1});
    return cudaErrorNotReady;
  });
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned /*flags*/ = 0) {
  return call_on(stream, [&](CUstream_st& s) {
    if (!event->alive) return cudaErrorInvalidResourceHandle;
    if (event->capture) {  // joins the capture, whose order is that of the calls
      s.capture = event->capture;
      return cudaSuccess;
    }
    if (s.capture && event->recorded.stream != nullptr) {
      s.capture->valid = false;
      return cudaErrorStreamCaptureIsolation;
    }
    return submit(s, [] {}, {event->recorded});
  });
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return call([&] {
    the_device.events.push_back(CUevent_st{(flags & cudaEventDisableTiming) == 0});
    *event = &the_device.events.back();
    return cudaSuccess;
  });
}
inline cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return call([&] { return std::exchange(event->alive, false) ? cudaSuccess : cudaErrorInvalidResourceHandle; });
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr) {
  return call_on(stream, [&](CUstream_st& s) {
    if (!event->alive) return cudaErrorInvalidResourceHandle;
    cudaError_t const error = submit(s, [event] { event->time = std::chrono::steady_clock::now(); });
    event->capture = s.capture;
    event->recorded = s.capture ? moment{} : moment{&s, s.queued};
    return error;
  });
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call([&] {
    if (!event->alive) return cudaErrorInvalidResourceHandle;
    return event->capture ? cudaErrorCapturedEvent : wait_for(event->recorded);
  });
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) {
  return call([&] {
    auto const [s, number] = event->recorded;
    if (!event->alive) return cudaErrorInvalidResourceHandle;
    if (event->capture) return cudaErrorCapturedEvent;
    if (s == nullptr || s->done >= number) return cudaSuccess;
    the_device.run_until({s, s->done + 1});
    return cudaErrorNotReady;
  });
}
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  return call([&] {
    for (cudaEvent_t event : {begin, end}) {
      auto const [s, number] = event->recorded;
      if (!event->alive || !event->timing || s == nullptr) return cudaErrorInvalidResourceHandle;
      if (s->done < number) return cudaErrorNotReady;
    }
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
    return cudaSuccess;
  });
}

// Kernels

template <class T> cudaError_t cudaFuncSetAttribute(T* kernel, cudaFuncAttribute attribute, int value) {
  return call([&] {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || static_cast<std::size_t>(value) > knobs.shared_limit) return cudaErrorInvalidValue;
    the_device.shared_limits[reinterpret_cast<void const*>(kernel)] = static_cast<std::size_t>(value);
    return cudaSuccess;
  });
}

template <class T> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, T* /*kernel*/) {
  return call([&] { return *attributes = {0, knobs.kernel_threads, 32, knobs.kernel_capability}, cudaSuccess; });
}

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(cudaLaunchConfig_t const* config, void (*kernel)(P...), A&&... arguments) {
  return call_on(config->stream, [&](CUstream_st& s) {
    if (config->numAttrs != 0) return cudaErrorNotSupported;
    static_assert((std::is_trivially_copyable_v<P> && ...), "a kernel's arguments are copied as bytes");
    auto body = [kernel, values = std::tuple<P...>(std::forward<A>(arguments)...)] { std::apply(kernel, values); };
    return launch({reinterpret_cast<void const*>(kernel), config->gridDim, config->blockDim, config->dynamicSmemBytes,
                   std::move(body)},
                  s);
  });
}

// Graphs: the work of a capture, in the order of the calls

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return call_on(stream, [&](CUstream_st& s) {
    if (stream == nullptr) return cudaErrorStreamCaptureUnsupported;
    if (s.capture) return cudaErrorInvalidValue;
    s.capture = std::make_shared<capture_record>(capture_record{{}, mode, std::this_thread::get_id()});
    return cudaSuccess;
  });
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return call_on(stream, [&](CUstream_st& s) {
    *graph = nullptr;
    auto const capture = s.capture;
    if (!capture) return cudaErrorStreamCaptureUnmatched;
    for (CUstream_st& joined : the_device.streams)
      if (joined.capture == capture) joined.capture = nullptr;
    for (CUevent_st& event : the_device.events)
      if (event.capture == capture) event.capture = nullptr;
    if (!capture->valid) return cudaErrorStreamCaptureInvalidated;
    *graph = new CUgraph_st{std::move(capture->nodes)};
    return cudaSuccess;
  });
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return call_on(stream, [&](CUstream_st& s) {
    *status = !s.capture         ? cudaStreamCaptureStatusNone
              : s.capture->valid ? cudaStreamCaptureStatusActive
                                 : cudaStreamCaptureStatusInvalidated;
    return cudaSuccess;
  });
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long = 0) {
  return call([&] {
    *executable = new CUgraphExec_st{std::make_shared<graph_nodes const>(graph->nodes)};
    return cudaSuccess;
  });
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return call_on(stream, [&](CUstream_st& s) {
    return submit(s, [nodes = executable->nodes] {
      for (auto const& node : *nodes) node();
    });
  });
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return call([&] { return delete graph, cudaSuccess; });
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return call([&] { return delete executable, cudaSuccess; });
}

}  // namespace api
}  // namespace cuda_on_cpu

using namespace cuda_on_cpu::api;
