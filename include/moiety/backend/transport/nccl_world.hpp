// SPDX-License-Identifier: Apache-2.0
// How ranks that speak through NCCL wait for each other, and how their run fails.
//
// All groups of a run put their operations into one stream, so a device meets them in the order of its rank's calls. Calls to
// NCCL return at once, and what they began is polled: a rank waits no longer than the deadline. At the first failure every
// communicator is revoked, which stops what is in flight; each is aborted when its last handle goes, or at once where NCCL has
// not taken the last call, as it still connects ranks: to revoke then, NCCL (2.28 to 2.30) would use memory that it has freed.
#pragma once

#include <moiety/backend/transport/launch.hpp>
#include <moiety/backend/transport/run_options.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <nccl.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#if NCCL_VERSION_CODE < NCCL_VERSION(2, 28, 7)
#error "moiety's transport nccl needs NCCL 2.28.7 or newer."
#endif

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// What NCCL says of a result, and of the last thing that went wrong.
inline std::string nccl_text(ncclResult_t result) {
  std::string const last = ncclGetLastError(nullptr);
  return last.empty() ? ncclGetErrorString(result) : sentence(ncclGetErrorString(result), " (", last, ')');
}

/// Throws cuda_error unless a call of CUDA succeeded.
inline void expect_cuda(cudaError_t result, char const* what) {
  if (result == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // what can be forgotten is; what cannot comes back with the next call
  throw cuda_error(sentence(what, ": ", cudaGetErrorString(result), " (", cudaGetErrorName(result), ")."));
}

template <auto End> struct cuda_end {
  template <class T> void operator()(T* it) const { static_cast<void>(End(it)); }
};
using cuda_event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, cuda_end<cudaEventDestroy>>;
using cuda_stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, cuda_end<cudaStreamDestroy>>;

inline cuda_event make_event() {
  cudaEvent_t made = nullptr;
  expect_cuda(cudaEventCreateWithFlags(&made, cudaEventDisableTiming), "making a CUDA event");
  return cuda_event(made);
}

/// The number of a device for the ranks of one machine: each its own, as far as there are devices.
inline int device_of(int local_rank) {
  int devices = 0;
  expect_cuda(cudaGetDeviceCount(&devices), "no CUDA device");
  require<cuda_error>(devices > 0, "there is no CUDA device.");
  return local_rank % devices;
}

inline cudaPointerAttributes attributes_of(char const* call, void const* memory) {
  cudaPointerAttributes about{};
  expect_cuda(cudaPointerGetAttributes(&about, memory), call);
  return about;
}

/// Also of managed memory.
inline bool is_device_memory(char const* call, void const* memory) {
  auto const type = attributes_of(call, memory).type;
  return type == cudaMemoryTypeManaged || type == cudaMemoryTypeDevice;
}

/// Throws data_error for memory that is not of the device.
inline void check_device_memory(char const* call, void const* memory, int device) {
  cudaPointerAttributes const about = attributes_of(call, memory);
  bool const there =
      about.type == cudaMemoryTypeManaged || (about.type == cudaMemoryTypeDevice && about.device == device);
  require<data_error>(there, call, " was given memory that is not of CUDA device ", device, ", the one of this rank.");
}

/// Bytes that go through the device from host to host: memory of both, had before anything is in flight, as asking waits.
struct nccl_staging {
  static constexpr std::int64_t bytes = std::int64_t{1} << 20;

  nccl_staging() {
    void* block = nullptr;
    expect_cuda(cudaMallocHost(&block, bytes), "memory that the CUDA device reaches");
    host.reset(static_cast<std::byte*>(block));
    expect_cuda(cudaMalloc(&block, bytes), "memory of the CUDA device");
    device.reset(static_cast<std::byte*>(block));
  }

  std::unique_ptr<std::byte, cuda_end<cudaFreeHost>> host;
  std::unique_ptr<std::byte, cuda_end<cudaFree>> device;
};

class nccl_world {
 public:
  struct open_communicator {
    ncclComm_t comm = nullptr;  // null too where it had to end before its group
    bool ready = false;         // NCCL has taken all that was asked of it
  };
  using slot = std::list<open_communicator>::iterator;

  nccl_world(run_options const& options, int its_device) : options_(options), device_(its_device) {
    require<config_error>(options.deadline.count() > 0, "the deadline of a run must be positive.");
    expect_cuda(cudaSetDevice(device_), "the CUDA device of a rank cannot be used");
    cudaStream_t made = nullptr;
    expect_cuda(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "making a CUDA stream");
    stream_.reset(made);
    caller_ready_ = make_event();
    staging_.emplace();
  }
  nccl_world(nccl_world const&) = delete;
  nccl_world& operator=(nccl_world const&) = delete;

  int device() const { return device_; }
  run_options const& options() const { return options_; }
  cudaStream_t stream() const { return stream_.get(); }
  nccl_staging& staging() { return *staging_; }

  /// Operations come after the work that this stream has so far.
  void follow() {
    expect_cuda(cudaEventRecord(caller_ready_.get(), caller), "marking the caller's stream");
    expect_cuda(cudaStreamWaitEvent(stream(), caller_ready_.get(), 0), "waiting for the caller's stream");
  }

  /// Where NCCL may write a communicator, as it does later than the call that asks for it.
  slot room() { return comms_.insert(comms_.end(), open_communicator{}); }

  /// Ends a communicator: all ranks do, unless the run has failed.
  void close(slot which) noexcept {
    open_communicator const it = *which;
    comms_.erase(which);
    if (it.comm == nullptr) return;
    bool const in_order = it.ready && !failure_ && std::uncaught_exceptions() == exceptions_;
    if (in_order && reached(ncclCommFinalize(it.comm)) && await_within(options_, [&] { return settled(it.comm); })) {
      static_cast<void>(ncclCommDestroy(it.comm));
      return;
    }
    run_options const grace{.deadline = std::chrono::seconds(2)};  // a revocation ends by undoing an abort
    if (failure_) await_within(grace, [&] { return settled(it.comm); });
    static_cast<void>(ncclCommAbort(it.comm));
  }

  /// Ends a communicator that NCCL is busy with.
  static void end_busy(open_communicator& it) noexcept {
    if (it.ready || it.comm == nullptr) return;
    static_cast<void>(ncclCommAbort(it.comm));
    it.comm = nullptr;  // only now, as what NCCL is busy with may write it
  }

  /// The run fails; only the first failure counts. Returns once the stream has nothing to do, or after half a second.
  void fail(failure_record record) noexcept {
    if (failure_) return;
    failure_ = std::move(record);
    for (auto& it : comms_)
      if (it.ready) static_cast<void>(ncclCommRevoke(it.comm, NCCL_REVOKE_DEFAULT));
    for (auto& it : comms_) end_busy(it);  // waits for the stream, which those revoked leave
    run_options const grace{.deadline = std::chrono::milliseconds(500)};
    await_within(grace, [&] { return stream_idle(); });
  }

  bool failed() const { return failure_.has_value(); }

  [[noreturn]] void rethrow() const {
    throw comm_error(failure_->fault, failure_->operation, failure_->rank, failure_->step, failure_->what);
  }

  /// Whether NCCL has begun what it was asked for.
  static bool reached(ncclResult_t result) { return result == ncclSuccess || result == ncclInProgress; }
  static ncclResult_t state_of(ncclComm_t comm) {
    ncclResult_t state = ncclSuccess;
    ncclResult_t const asked = ncclCommGetAsyncError(comm, &state);
    return asked == ncclSuccess ? state : asked;
  }
  static bool settled(ncclComm_t comm) { return state_of(comm) != ncclInProgress; }

  cudaStream_t caller = nullptr;  // the work that operations follow
  bool checks_calls = false;

 private:
  bool stream_idle() {
    bool const idle = cudaStreamQuery(stream()) != cudaErrorNotReady;
    if (!idle) static_cast<void>(cudaGetLastError());  // that it is busy is no error
    return idle;
  }

  run_options options_;
  int device_;
  int exceptions_ = std::uncaught_exceptions();
  cuda_stream stream_;
  cuda_event caller_ready_;
  std::optional<nccl_staging> staging_;
  std::list<open_communicator> comms_;
  std::optional<failure_record> failure_;
};

}  // namespace detail

}  // namespace moiety
