// SPDX-License-Identifier: Apache-2.0
// A group of ranks that speak through NCCL, and how long they wait for an operation.
#pragma once

#include <moiety/backend/transport/launch.hpp>
#include <moiety/backend/transport/nccl_calls.hpp>
#include <moiety/backend/transport/nccl_checks.hpp>
#include <moiety/backend/transport/nccl_world.hpp>
#include <moiety/backend/transport/rows.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// The ranks of one group, and the communicator of NCCL that is theirs alone.
class nccl_group {
 public:
  nccl_group(std::shared_ptr<nccl_world> of, std::string of_name, int its_rank, std::vector<int> its_world_ranks)
      : world(std::move(of)),
        name(std::move(of_name)),
        world_ranks(std::move(its_world_ranks)),
        rank(its_rank),
        size(static_cast<int>(world_ranks.size())),
        open_(world->room()) {}
  /// All ranks of a run.
  nccl_group(std::shared_ptr<nccl_world> of, std::string const& of_name, int its_rank, int its_size)
      : nccl_group(std::move(of), of_name, its_rank, std::vector<int>(static_cast<std::size_t>(its_size))) {
    std::iota(world_ranks.begin(), world_ranks.end(), 0);
  }
  nccl_group(nccl_group const&) = delete;
  nccl_group& operator=(nccl_group const&) = delete;
  ~nccl_group() { world->close(open_); }

  ncclComm_t comm() const { return open_->comm; }
  int world_rank(int r) const { return world_ranks[static_cast<std::size_t>(r)]; }

  /// Makes the communicator by make(place, config), as a part of that of another group or on its own.
  template <class Make> void open(nccl_group const* of, char const* call, Make const& make) {
    if (of != nullptr) rest(*of, call);
    nccl_world::open_communicator& busy = of == nullptr ? *open_ : *of->open_;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    busy.ready = false;
    try {
      ncclResult_t const begun = make(&open_->comm, &config);
      settle(busy.comm, begun, call);  // a part is in its place only when it is there
      settle(comm(), ncclSuccess, call);
    } catch (...) {
      nccl_world::end_busy(busy);  // or NCCL might write the part where it no longer is
      throw;
    }
    busy.ready = open_->ready = true;
  }

  /// Waits until NCCL has taken what was begun on a communicator.
  void settle(ncclComm_t of, ncclResult_t begun, char const* call) {
    ncclResult_t state = begun;
    auto const taken = [&] {
      if (nccl_world::reached(state)) state = nccl_world::state_of(of);
      return state != ncclInProgress;
    };
    if (!await_within(world->options(), taken)) late(call);
    if (state != ncclSuccess) refused(state, call);
  }

  /// Throws if the run has failed, or NCCL says that an operation in flight has.
  void look(char const* call) {
    if (world->failed()) world->rethrow();
    if (ncclResult_t const state = nccl_world::state_of(comm()); !nccl_world::reached(state)) refused(state, call);
  }

  /// Waits for what lies before an event in the stream of the world.
  void await(cudaEvent_t done, char const* call) {
    cudaError_t state = cudaErrorNotReady;
    bool const there = await_within(world->options(), [&] {
      state = cudaEventQuery(done);
      if (state != cudaErrorNotReady) return true;  // whoever has left since
      static_cast<void>(cudaGetLastError());        // that it is not there yet is no error
      look(call);
      return false;
    });
    if (!there) late(call);
    if (state != cudaSuccess)
      blame(comm_fault::aborted, call, world_rank(rank), sentence("CUDA says ", cudaGetErrorString(state)));
  }

  /// Puts what all(calls) asks for into the stream of the world, as one operation.
  template <class All> void enqueue(char const* call, All const& all) {
    nccl_calls asked{comm(), world->stream()};
    open_->ready = false;
    if (ncclResult_t const begun = ncclGroupStart(); begun != ncclSuccess) refused(begun, call);
    all(asked);
    asked.keep(ncclGroupEnd());
    settle(comm(), asked.first, call);
    open_->ready = true;
  }

  /// all [size × bytes] in the host's memory: the bytes of every rank, by rank.
  void gather(char const* call, std::byte const* mine, std::int64_t bytes, std::byte* all) {
    std::byte *const host = world->staging().host.get(), *const device = world->staging().device.get();
    cuda_event const done = make_event();
    std::int64_t const most = nccl_staging::bytes / size;
    for (std::int64_t at = 0; at < bytes; at += most) {
      std::int64_t const piece = std::min(most, bytes - at);
      auto const count = static_cast<std::size_t>(piece);
      std::byte* const own = device + rank * piece;
      std::memcpy(host, mine + at, count);
      expect_cuda(cudaMemcpyAsync(own, host, count, cudaMemcpyHostToDevice, world->stream()), "a copy to the device");
      enqueue(call, [&](nccl_calls& all_of) {
        all_of.keep(ncclAllGather(own, device, count, ncclUint8, all_of.comm, all_of.stream));
      });
      expect_cuda(cudaMemcpyAsync(host, device, count * static_cast<std::size_t>(size), cudaMemcpyDeviceToHost,
                                  world->stream()),
                  "a copy to the host");
      expect_cuda(cudaEventRecord(done.get(), world->stream()), "marking a CUDA stream");
      await(done.get(), call);
      for (int r = 0; r < size; ++r) std::memcpy(all + r * bytes + at, host + r * piece, count);
    }
  }

  /// Where calls are checked: ends the run on every rank unless all call the same, with sizes that fit.
  void agree(rank_operation const& what, std::span<outgoing_rows const> to = {},
             std::span<incoming_rows const> from = {}) {
    if (!world->checks_calls) return;
    auto const ranks = static_cast<std::size_t>(size);
    std::vector<nccl_note> mine(2 * ranks, {what, 0, 0, started}), all(ranks * mine.size());
    for (std::size_t r = 0; r < to.size(); ++r) {
      mine[r] = {what, to[r].rows, to[r].width, started};
      mine[ranks + r] = {what, from[r].rows, from[r].width, started};
    }
    look(what.name);
    gather(what.name, reinterpret_cast<std::byte const*>(mine.data()),
           static_cast<std::int64_t>(sizeof(nccl_note) * mine.size()), reinterpret_cast<std::byte*>(all.data()));
    if (auto const found = disagreement_in(all, size)) {
      linger();
      int const at_fault = world_rank(found->from);
      blame(comm_fault::mismatch, what.name, at_fault, sentence("rank ", at_fault, " disagrees: ", found->why));
    }
  }

  /// The run fails. NCCL does not say which rank is at fault where it is not this one: −1.
  [[noreturn]] void blame(comm_fault fault, char const* call, int at_fault, std::string const& why) {
    world->fail(
        {fault, call, at_fault, step,
         sentence(call, " among the ", size, ' ', name, " ranks, call ", started, ", step ", step, ": ", why, '.')});
    world->rethrow();
  }

  std::shared_ptr<nccl_world> world;
  std::string name;
  std::vector<int> world_ranks;
  int rank, size;
  std::int64_t started = 0, finished = 0, step = 0;

 private:
  [[noreturn]] void late(char const* call) {
    blame(comm_fault::timeout, call, -1,
          sentence("a rank did not come within ", world->options().deadline.count(), " ms"));
  }
  [[noreturn]] void refused(ncclResult_t state, char const* call) {
    bool const other = state == ncclRemoteError;
    blame(other ? comm_fault::remote : comm_fault::aborted, call, other ? -1 : world_rank(rank),
          sentence("NCCL says ", nccl_text(state)));
  }

  /// Waits until another group's communicator, which may have been revoked, can be asked for a part.
  void rest(nccl_group const& of, char const* call) {
    if (of.comm() == nullptr)
      blame(comm_fault::aborted, call, world_rank(rank),
            "the communicator has ended, as NCCL was still connecting ranks");
    if (!await_within(world->options(), [&] { return nccl_world::settled(of.comm()); })) late(call);
  }

  /// Until every rank knows what this one does, half a second at most: whoever leaves before would seem to be at fault.
  void linger() {
    run_options const grace{.deadline = std::chrono::milliseconds(500)};
    nccl_calls asked{comm(), world->stream()};
    std::byte* const device = world->staging().device.get();
    cuda_event const done = make_event();
    open_->ready = false;
    asked.keep(ncclGroupStart());
    asked.keep(ncclAllGather(device + rank, device, 1, ncclUint8, asked.comm, asked.stream));
    asked.keep(ncclGroupEnd());
    if (!nccl_world::reached(asked.first) || !await_within(grace, [&] { return nccl_world::settled(comm()); })) return;
    open_->ready = nccl_world::state_of(comm()) == ncclSuccess;
    expect_cuda(cudaEventRecord(done.get(), world->stream()), "marking a CUDA stream");
    await_within(grace, [&] {
      return cudaEventQuery(done.get()) != cudaErrorNotReady || !nccl_world::reached(nccl_world::state_of(comm()));
    });
    static_cast<void>(cudaGetLastError());                       // that it is not there is no error
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // NCCL's own threads may still be sending
  }

  nccl_world::slot open_;
};

/// One operation in flight. To let go of it unfinished is a failure of this rank.
class nccl_request {
 public:
  nccl_request(std::shared_ptr<nccl_group> of, char const* its_name)
      : group(std::move(of)), name(its_name), done(make_event()), number(group->started++) {}
  nccl_request(nccl_request&&) noexcept = default;
  nccl_request& operator=(nccl_request&&) = delete;
  ~nccl_request() {
    if (group == nullptr) return;
    group->world->fail({comm_fault::aborted, name, group->world_rank(group->rank), group->step,
                        "a rank let go of an operation in flight."});
  }

  std::shared_ptr<nccl_group> group;
  char const* name;
  cuda_event done;
  std::int64_t number;
};

}  // namespace detail

}  // namespace moiety
