// SPDX-License-Identifier: Apache-2.0
// Stands before NCCL's header in the CPU run of the tests: ranks are threads that share the device of the emulator. What the
// library calls is here. An operation is done when the group of its calls ends, which waits for the other ranks; a
// communicator that is aborted fails those of its ranks.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#define NCCL_VERSION(X, Y, Z) ((X)*10000 + (Y)*100 + (Z))
#define NCCL_VERSION_CODE NCCL_VERSION(2, 28, 9)
#define NCCL_CONFIG_INITIALIZER \
  { 1 }
#define NCCL_REVOKE_DEFAULT 0
#define NCCL_SHRINK_ABORT 1

enum ncclResult_t {
  ncclSuccess,
  ncclUnhandledCudaError,
  ncclSystemError,
  ncclInternalError,
  ncclInvalidArgument,
  ncclInvalidUsage,
  ncclRemoteError,
  ncclInProgress
};
enum ncclDataType_t { ncclUint8 = 1, ncclInt64 = 4, ncclFloat32 = 7, ncclFloat64 = 8 };
enum ncclRedOp_t { ncclSum };
struct ncclUniqueId {
  char internal[128];
};
struct ncclConfig_t {
  int blocking;
};

namespace nccl_on_cpu {

struct message {
  void const* data;
  std::size_t bytes;
  bool* taken;
};
struct choice {
  int colour, key, rank;
};

struct group {
  int size = 0, arrived = 0;
  bool failed = false;
  std::map<std::pair<int, int>, std::deque<message>> boxes;  // by sender and receiver
  std::map<int, std::vector<choice>> choices;                // of the n-th split
  std::map<std::pair<int, int>, std::shared_ptr<group>> parts;
};

struct call {
  int peer;
  void const* out;  // one of both
  void* in;
  std::size_t bytes;
};

inline std::mutex mutex;
inline std::condition_variable changed;
inline std::map<std::string, std::shared_ptr<group>> meetings;
inline int ids = 0;
inline thread_local std::vector<call> calls;  // of the group that is open

/// Whether it came true; a rank that fails ends the waiting.
template <class Condition> bool await(std::unique_lock<std::mutex>& lock, group const& of, Condition const& holds) {
  changed.wait_for(lock, std::chrono::seconds(60), [&] { return of.failed || holds(); });
  return !of.failed && holds();
}

}  // namespace nccl_on_cpu

struct ncclComm {
  std::shared_ptr<nccl_on_cpu::group> group;
  int rank, splits = 0;
};
using ncclComm_t = ncclComm*;

namespace nccl_on_cpu {

inline thread_local ncclComm_t in_use = nullptr;
inline thread_local cudaStream_t in_stream = nullptr;

inline ncclResult_t add(ncclComm_t comm, cudaStream_t stream, call const& one) {
  in_use = comm, in_stream = stream;
  calls.push_back(one);
  return ncclSuccess;
}

inline ncclResult_t exchange(ncclComm_t comm, cudaStream_t stream, std::vector<call> const& all) {
  if (cudaStreamSynchronize(stream) != cudaSuccess) return ncclUnhandledCudaError;
  std::deque<bool> taken;
  std::unique_lock lock(mutex);
  for (call const& one : all)
    if (one.out != nullptr) {
      taken.push_back(false);
      comm->group->boxes[{comm->rank, one.peer}].push_back({one.out, one.bytes, &taken.back()});
    }
  changed.notify_all();
  for (call const& one : all) {
    if (one.out != nullptr) continue;
    auto& box = comm->group->boxes[{one.peer, comm->rank}];
    if (!await(lock, *comm->group, [&] { return !box.empty(); })) return ncclRemoteError;
    message const from = box.front();
    box.pop_front();
    if (from.bytes != one.bytes) return ncclInternalError;
    if (cudaMemcpyAsync(one.in, from.data, one.bytes, cudaMemcpyDefault, stream) != cudaSuccess ||
        cudaStreamSynchronize(stream) != cudaSuccess)
      return ncclUnhandledCudaError;
    *from.taken = true;
    changed.notify_all();
  }
  return await(lock, *comm->group, [&] { return std::find(taken.begin(), taken.end(), false) == taken.end(); })
             ? ncclSuccess
             : ncclRemoteError;
}

}  // namespace nccl_on_cpu

inline ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::scoped_lock const lock(nccl_on_cpu::mutex);
  *id = {};
  std::string const text = std::to_string(++nccl_on_cpu::ids);
  std::copy(text.begin(), text.end(), id->internal);
  return ncclSuccess;
}
inline char const* ncclGetErrorString(ncclResult_t) { return "a result"; }
inline char const* ncclGetLastError(ncclComm_t) { return ""; }

inline ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank, ncclConfig_t*) {
  std::unique_lock lock(nccl_on_cpu::mutex);
  auto& group = nccl_on_cpu::meetings[id.internal];
  if (group == nullptr) group = std::make_shared<nccl_on_cpu::group>();
  group->size = size, ++group->arrived;
  *comm = new ncclComm{group, rank};
  nccl_on_cpu::changed.notify_all();
  return nccl_on_cpu::await(lock, *(*comm)->group, [&] { return (*comm)->group->arrived == size; }) ? ncclSuccess
                                                                                                    : ncclSystemError;
}
inline ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* result) {
  if (comm == nullptr) return ncclInvalidArgument;
  std::scoped_lock const lock(nccl_on_cpu::mutex);
  *result = comm->group->failed ? ncclRemoteError : ncclSuccess;
  return ncclSuccess;
}
inline ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclSuccess; }
inline ncclResult_t ncclCommDestroy(ncclComm_t comm) { return delete comm, ncclSuccess; }
inline ncclResult_t ncclCommRevoke(ncclComm_t comm, int) {
  std::scoped_lock const lock(nccl_on_cpu::mutex);
  comm->group->failed = true;
  nccl_on_cpu::changed.notify_all();
  return ncclSuccess;
}
inline ncclResult_t ncclCommAbort(ncclComm_t comm) {
  static_cast<void>(ncclCommRevoke(comm, 0));
  return ncclCommDestroy(comm);
}
inline ncclResult_t ncclCommSplit(ncclComm_t comm, int colour, int key, ncclComm_t* made, ncclConfig_t*) {
  std::unique_lock lock(nccl_on_cpu::mutex);
  nccl_on_cpu::group& all = *comm->group;
  int const number = comm->splits++;
  auto& choices = all.choices[number];
  choices.push_back({colour, key, comm->rank});
  nccl_on_cpu::changed.notify_all();
  if (!nccl_on_cpu::await(lock, all, [&] { return static_cast<int>(choices.size()) == all.size; }))
    return ncclRemoteError;
  int place = 0, size = 0;
  for (auto const& c : choices)
    if (c.colour == colour) ++size, place += std::tie(c.key, c.rank) < std::tie(key, comm->rank);
  auto& part = all.parts[{number, colour}];
  if (part == nullptr) part = std::make_shared<nccl_on_cpu::group>();
  part->size = size;
  *made = new ncclComm{part, place};
  return ncclSuccess;
}
inline ncclResult_t ncclCommShrink(ncclComm_t, int*, int, ncclComm_t*, ncclConfig_t*, int) { return ncclInvalidUsage; }

inline ncclResult_t ncclGroupStart() { return nccl_on_cpu::calls.clear(), ncclSuccess; }
inline ncclResult_t ncclGroupEnd() {
  auto const all = std::exchange(nccl_on_cpu::calls, {});
  return all.empty() ? ncclSuccess : nccl_on_cpu::exchange(nccl_on_cpu::in_use, nccl_on_cpu::in_stream, all);
}
inline ncclResult_t ncclSend(void const* data, std::size_t bytes, ncclDataType_t, int peer, ncclComm_t comm,
                             cudaStream_t stream) {
  return nccl_on_cpu::add(comm, stream, {peer, data, nullptr, bytes});
}
inline ncclResult_t ncclRecv(void* data, std::size_t bytes, ncclDataType_t, int peer, ncclComm_t comm,
                             cudaStream_t stream) {
  return nccl_on_cpu::add(comm, stream, {peer, nullptr, data, bytes});
}
inline ncclResult_t ncclAllGather(void const* out, void* in, std::size_t bytes, ncclDataType_t, ncclComm_t comm,
                                  cudaStream_t stream) {
  for (int r = 0; r < comm->group->size; ++r) {
    nccl_on_cpu::add(comm, stream, {r, out, nullptr, bytes});
    auto* const place = static_cast<std::byte*>(in) + static_cast<std::size_t>(r) * bytes;
    nccl_on_cpu::add(comm, stream, {r, nullptr, place, bytes});
  }
  return ncclSuccess;
}
inline ncclResult_t ncclAlltoAll(void const* out, void* in, std::size_t bytes, ncclDataType_t, ncclComm_t comm,
                                 cudaStream_t stream) {
  for (int r = 0; r < comm->group->size; ++r) {
    std::size_t const at = static_cast<std::size_t>(r) * bytes;
    nccl_on_cpu::add(comm, stream, {r, static_cast<std::byte const*>(out) + at, nullptr, bytes});
    nccl_on_cpu::add(comm, stream, {r, nullptr, static_cast<std::byte*>(in) + at, bytes});
  }
  return ncclSuccess;
}
// Sums in NCCL's own order: no layer asks for them.
inline ncclResult_t ncclAllReduce(void const*, void*, std::size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t,
                                  cudaStream_t) {
  return ncclInvalidUsage;
}
inline ncclResult_t ncclReduce(void const*, void*, std::size_t, ncclDataType_t, ncclRedOp_t, int, ncclComm_t,
                               cudaStream_t) {
  return ncclInvalidUsage;
}
