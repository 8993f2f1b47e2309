// SPDX-License-Identifier: Apache-2.0
// The transport whose ranks have a CUDA device each, through NCCL: processes of a job, or threads. Layers on mo::cuda use it
// with nccl_ranks.cuh. Run so far by processes that share a GPU.
//
//   auto ranks = mo::nccl_communicator::world({.deadline = 30s});       this process, as its launcher says
//   auto ranks = mo::nccl_communicator::over(others, device);           the ranks of any other communicator
//   auto ranks = mo::nccl_communicator::join(rank, size, device, id);   where the caller has brought the id to every rank
//   ranks.follow(ctx.engine().stream());                                operations come after the work in this stream
//
// Rows, messages and values lie in memory of the device that is the rank's, which becomes the current one; all_gather_on_host
// alone is of host memory. Blocks are whole pieces of memory (data_error otherwise): rows of many places are packed by kernels
// first. Kernels go on after `start`, which waits for both ranks of a pair where they have not yet spoken; `finish` has the
// host wait, for the deadline. No graph captures either. `shrink` is a comm_error where NCCL has lost a peer's connection.
//
// all_reduce_fastest and reduce_scatter_fastest sum in an order that NCCL chooses, so bits may differ between layouts and
// machines. There is no sum of the fixed order here: that is a kernel over what all_to_all and all_gather bring.
// Ranks of `world`: backend/transport/launch.hpp; where they meet: nccl_meeting.hpp. Their device is that of their local rank.
//
// comm_error within the deadline: a rank that does not come, that lets go of its communicators by an exception, or what NCCL
// says, with its text. Sizes and calls that differ are a comm_error{mismatch} on every rank after check_calls(true), at the
// cost of a round trip each; else NCCL promises nothing, and the deadline comes at best. A group is used by one thread at a time.
#pragma once

#include <moiety/backend/transport/communicator.hpp>
#include <moiety/backend/transport/launch.hpp>
#include <moiety/backend/transport/nccl_checks.hpp>
#include <moiety/backend/transport/nccl_group.hpp>
#include <moiety/backend/transport/nccl_meeting.hpp>
#include <moiety/backend/transport/nccl_world.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <nccl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

class nccl_communicator : collectives<nccl_communicator> {
  friend collectives<nccl_communicator>;
  using group = detail::nccl_group;

 public:
  static constexpr int in_flight = 8;  // operations of a rank that have begun and not finished

  using request = detail::nccl_request;

  static nccl_communicator world(run_options const& options = {}) {
    launched const job = launched_job();
    int const device = detail::device_of(job.local_rank);
    std::optional<detail::meeting_file> file;
    ncclUniqueId const id = detail::nccl_id_of(
        job, [](char const* name) { return std::getenv(name); }, options, file);
    return join(job.rank, job.size, device, id, options);
  }

  template <communicator C> static nccl_communicator over(C& others, int device, run_options const& options = {}) {
    ncclUniqueId id{};
    if (others.rank() == 0) id = detail::new_nccl_id();
    others.template broadcast<ncclUniqueId>({&id, 1}, 0);
    return join(others.rank(), others.size(), device, id, options);
  }

  static nccl_communicator join(int rank, int size, int device, ncclUniqueId const& id,
                                run_options const& options = {}) {
    detail::require<config_error>(size > 0 && rank >= 0 && rank < size, "there is no rank ", rank, " of ", size, '.');
    auto of = std::make_shared<detail::nccl_world>(options, device);
    nccl_communicator made(std::make_shared<group>(std::move(of), "world", rank, size));
    made.group_->open(nullptr, "world", [&](ncclComm_t* comm, ncclConfig_t* config) {
      return ncclCommInitRankConfig(comm, size, id, rank, config);
    });
    return made;
  }

  int rank() const { return group_->rank; }
  int size() const { return group_->size; }
  std::string const& name() const { return group_->name; }
  int device() const { return group_->world->device(); }
  /// The training step that errors name.
  void at_step(std::int64_t step) { group_->step = step; }
  /// Operations of all groups of the run come after the work that this stream has when they begin.
  void follow(cudaStream_t stream) { group_->world->caller = stream; }
  /// Every rank tells every other what it is about to do, from now on; to be called on every rank, for all groups of the run.
  void check_calls(bool yes) { group_->world->checks_calls = yes; }

  request start(rank_operation const& what, std::span<outgoing_rows const> to, std::span<incoming_rows const> from) {
    detail::check_blocks(what, rank(), size(), to, from);
    for (outgoing_rows const& rows : to) check_memory(what.name, rows.data, rows.bytes());
    for (incoming_rows const& rows : from) check_memory(what.name, rows.data, rows.bytes());
    group_->agree(what, to, from);
    return begin(what.name, [&](calls& all) { all.exchange(what, static_cast<std::size_t>(rank()), to, from); });
  }

  void finish(request&& which) {
    detail::require<state_error>(which.group != nullptr && which.group == group_,
                                 "finish was given a request that is finished, or of another group.");
    detail::require<state_error>(which.number == group_->finished, which.name,
                                 " was to finish before an operation that began earlier.");
    group_->await(which.done.get(), which.name);
    ++group_->finished;
    which.group.reset();
  }

  /// Channels order the messages of two ranks within a call: both make calls with the same messages between them.
  void send_recv(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    auto const out = detail::by_channel(sends, size());
    auto const in = detail::by_channel(receives, size());
    for (auto const& m : out) check_memory("send_recv", m.data, m.bytes);
    for (auto const& m : in) check_memory("send_recv", m.data, m.bytes);
    finish(begin("send_recv", [&](calls& all) {
      for (auto const& m : in) all.receive(m.peer, m.data, m.bytes);
      for (auto const& m : out) all.send(m.peer, m.data, m.bytes);
    }));
  }

  using collectives::all_gather;
  using collectives::all_gather_slices;
  using collectives::all_to_all_v;
  using collectives::broadcast;

  void barrier() {
    std::byte const mine{};
    std::vector<std::byte> all(static_cast<std::size_t>(size()));
    all_gather_on_host<std::byte>({&mine, 1}, all);
  }

  /// The same of host memory: counts, for example.
  template <exchangeable T> void all_gather_on_host(std::span<T const> mine, std::span<T> all) {
    auto const ranks = static_cast<std::size_t>(size());
    detail::require<data_error>(all.size() == mine.size() * ranks, "all_gather_on_host was given room for ", all.size(),
                                " values in place of ", mine.size() * ranks, '.');
    group_->look("all_gather_on_host");
    group_->gather("all_gather_on_host", reinterpret_cast<std::byte const*>(mine.data()),
                   static_cast<std::int64_t>(mine.size_bytes()), reinterpret_cast<std::byte*>(all.data()));
  }

  template <exchangeable T> void all_to_all(std::span<T const> out, std::span<T> in) {
    auto const ranks = static_cast<std::size_t>(size());
    detail::require<data_error>(out.size() == in.size() && out.size() % ranks == 0, "all_to_all was given ", out.size(),
                                " values to send and room for ", in.size(), " on ", ranks, " ranks.");
    detail::require<data_error>(!detail::overlap(out.data(), in.data(), static_cast<std::int64_t>(out.size_bytes())),
                                "all_to_all was given memory to receive that overlaps what it sends.");
    check_memory("all_to_all", out.data(), static_cast<std::int64_t>(out.size_bytes()));
    check_memory("all_to_all", in.data(), static_cast<std::int64_t>(in.size_bytes()));
    group_->agree({.name = "all_to_all", .width = sizeof(T), .count = static_cast<std::int64_t>(out.size() / ranks)});
    finish(begin("all_to_all", [&](calls& all) {
      all.exchange(reinterpret_cast<std::byte const*>(out.data()), reinterpret_cast<std::byte*>(in.data()),
                   static_cast<std::int64_t>(out.size_bytes() / ranks));
    }));
  }

  /// values become the ranks' sum, added in whatever order NCCL chooses; or those of this rank's part alone.
  template <exchangeable T> void all_reduce_fastest(std::span<T> values) {
    add_up("all_reduce_fastest", values, {}, [&](calls& all) { all.sum(values); });
  }
  template <exchangeable T> void reduce_scatter_fastest(std::span<T> values, std::span<std::int64_t const> counts) {
    check_counts("reduce_scatter_fastest", values.size(), counts);
    add_up("reduce_scatter_fastest", values, counts, [&](calls& all) { all.sum(values, counts); });
  }

  nccl_communicator split(int colour, int key, std::string const& name) {
    detail::nccl_choice const mine{colour, key, rank(), group_->world_rank(rank())};
    std::vector<detail::nccl_choice> all(static_cast<std::size_t>(size()));
    all_gather_on_host<detail::nccl_choice>({&mine, 1}, all);
    detail::nccl_part const found = detail::part_of(std::move(all), mine);
    nccl_communicator part(std::make_shared<group>(group_->world, name, found.place, found.world_ranks));
    part.at_step(group_->step);
    part.group_->open(group_.get(), "split", [&](ncclComm_t* comm, ncclConfig_t* config) {
      return ncclCommSplit(group_->comm(), found.colour, found.place, comm, config);
    });
    return part;
  }

  /// The ranks of this group without some, as a run of their own with new numbers; also after a failure. Those that stay all
  /// call it with the same list: who has to go, they must have learnt elsewhere.
  nccl_communicator shrink(std::span<int const> without) {
    std::vector<int> gone = detail::leaving_ranks(without, rank(), size());
    auto const place = rank() - (std::lower_bound(gone.begin(), gone.end(), rank()) - gone.begin());
    detail::nccl_world const& old = *group_->world;
    auto of = std::make_shared<detail::nccl_world>(old.options(), old.device());
    of->caller = old.caller, of->checks_calls = old.checks_calls;
    int const rest = size() - static_cast<int>(gone.size());
    nccl_communicator made(std::make_shared<group>(std::move(of), name(), static_cast<int>(place), rest));
    made.at_step(group_->step);
    made.group_->open(group_.get(), "shrink", [&](ncclComm_t* comm, ncclConfig_t* config) {
      return ncclCommShrink(group_->comm(), gone.data(), static_cast<int>(gone.size()), comm, config,
                            NCCL_SHRINK_ABORT);
    });
    return made;
  }

  /// Ends the communication of the run, for the reason given.
  [[noreturn]] void fail(comm_fault fault, char const* call, std::string const& why) {
    group_->blame(fault, call, group_->world_rank(rank()), why);
  }

 private:
  using calls = detail::nccl_calls;

  explicit nccl_communicator(std::shared_ptr<group> of) : group_(std::move(of)) {}

  void check_memory(char const* call, void const* memory, std::int64_t bytes) const {
    if (bytes > 0) detail::check_device_memory(call, memory, group_->world->device());
  }

  template <class T, class All>
  void add_up(char const* name, std::span<T> values, std::span<std::int64_t const> counts, All const& all) {
    check_memory(name, values.data(), static_cast<std::int64_t>(values.size_bytes()));
    auto const parts = detail::rows_of_parts(counts, rank());
    group_->agree({.name = name, .width = sizeof(T), .count = static_cast<std::int64_t>(values.size())}, parts.first,
                  parts.second);
    finish(begin(name, all));
  }

  /// The request of what all(calls) asks NCCL for.
  template <class All> request begin(char const* name, All const& all) {
    group_->look(name);
    detail::require<state_error>(group_->started - group_->finished < in_flight, name, ": ", in_flight,
                                 " operations of this rank are in flight already.");
    group_->world->follow();
    request made(group_, name);
    group_->enqueue(name, all);
    detail::expect_cuda(cudaEventRecord(made.done.get(), group_->world->stream()), name);
    return made;
  }

  std::shared_ptr<group> group_;
};
static_assert(communicator<nccl_communicator>);

struct nccl {
  static constexpr bool single_rank = false;
  using communicator = nccl_communicator;
};

}  // namespace moiety
