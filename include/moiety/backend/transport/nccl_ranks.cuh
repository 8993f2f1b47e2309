// SPDX-License-Identifier: Apache-2.0
// The ranks of a context on mo::cuda whose transport is mo::nccl, for layers: include it beside <moiety/cuda.cuh>. Not yet run
// on a GPU.
//
//   struct eight_gpus : mo::deployment<mo::layout{.data = 8, .expert = 8}> {
//     using backend = mo::cuda;
//     using transport = mo::nccl;
//   };
//
// As device_ranks.cuh says, start and finish move rows of device memory, and all other calls values of the host's; messages are
// of either memory, those of the host's by way of the device's.
//
// Rows that do not lie together are packed by a kernel before they leave, and unpacked by one when they have come: NCCL moves
// whole pieces. start does not wait, finish does. Values of the host are gathered from all ranks by all, whatever they are for:
// they are counts, statistics and words. Their sums have the fixed order, and calls of ranks that do not fit are a comm_error on
// every rank. The device is that of the rank, config_error otherwise; mo::run chooses it.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/backend/device_rows.cuh>
#include <moiety/backend/transport/communicator.hpp>
#include <moiety/backend/transport/device_ranks.cuh>
#include <moiety/backend/transport/nccl.hpp>
#include <moiety/backend/transport/nccl_checks.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// The collectives of communicator.hpp for values of the host.
class nccl_values : public collectives<nccl_values> {
 public:
  struct request {};

  explicit nccl_values(nccl_communicator ranks) : ranks_(std::move(ranks)) {}

  int rank() const { return ranks_.rank(); }
  int size() const { return ranks_.size(); }
  std::string const& name() const { return ranks_.name(); }
  void at_step(std::int64_t step) { ranks_.at_step(step); }

  request start(rank_operation const& what, std::span<outgoing_rows const> to, std::span<incoming_rows const> from) {
    auto const ranks = static_cast<std::size_t>(size()), me = static_cast<std::size_t>(rank());
    std::vector<nccl_note> const notes = agreed(what, to, from);
    auto const bytes = [&](std::size_t sender, std::size_t receiver) {
      nccl_note const& note = notes[2 * sender * ranks + receiver];
      return note.rows * note.row_width;
    };
    auto const upto = [&](std::size_t sender, std::size_t receiver) {
      std::int64_t all = 0;
      for (std::size_t r = 0; r < receiver; ++r) all += bytes(sender, r);
      return all;
    };
    std::int64_t most = 0;
    for (std::size_t r = 0; r < ranks; ++r) most = std::max(most, upto(r, ranks));
    std::vector<std::byte> mine(static_cast<std::size_t>(most)), all(mine.size() * ranks);
    for (std::size_t r = 0; r < ranks; ++r)
      copy_rows(to[r], {mine.data() + upto(me, r), to[r].rows, to[r].width, to[r].width, nullptr});
    ranks_.all_gather_on_host<std::byte>(mine, all);
    for (std::size_t r = 0; r < ranks; ++r)
      copy_rows({all.data() + r * mine.size() + upto(r, me), from[r].rows, from[r].width, from[r].width, nullptr},
                from[r]);
    return {};
  }
  void finish(request const&) {}

  void send_recv(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    ranks_.send_recv(sends, receives);  // of device memory
  }
  nccl_values split(int colour, int key, std::string const& name) {
    return nccl_values(ranks_.split(colour, key, name));
  }
  [[noreturn]] void fail(comm_fault fault, char const* call, std::string const& why) { ranks_.fail(fault, call, why); }

 protected:
  nccl_communicator& ranks() { return ranks_; }

 private:
  /// What all ranks send and expect, as disagreement_in reads it.
  std::vector<nccl_note> agreed(rank_operation const& what, std::span<outgoing_rows const> to,
                                std::span<incoming_rows const> from) {
    auto const ranks = static_cast<std::size_t>(size());
    require<data_error>(to.size() == ranks && from.size() == ranks, what.name, " needs rows for ", ranks,
                        " ranks, but was given ", to.size(), " to send and ", from.size(), " to receive.");
    std::vector<nccl_note> mine, all(2 * ranks * ranks);
    for (outgoing_rows const& rows : to) mine.emplace_back(what, rows.rows, rows.width, 0);
    for (incoming_rows const& rows : from) mine.emplace_back(what, rows.rows, rows.width, 0);
    ranks_.all_gather_on_host<nccl_note>(mine, all);
    if (auto const found = disagreement_in(all, size()))
      fail(comm_fault::mismatch, what.name, sentence("rank ", found->from, " of the group disagrees: ", found->why));
    return all;
  }

  nccl_communicator ranks_;
};
static_assert(communicator<nccl_values>);

}  // namespace detail

template <std::derived_from<nccl_communicator> C> class device_ranks<C> : public detail::nccl_values {
 public:
  static constexpr bool messages_of_device = true;

  /// One operation in flight, the rooms of rows that NCCL needs together, and what is to be unpacked.
  struct request {
    std::vector<buffer> rooms;
    std::vector<std::pair<outgoing_rows, incoming_rows>> apart;
    nccl_communicator::request begun;
  };

  /// The engine outlives its ranks.
  device_ranks(cuda_engine& engine, nccl_communicator const& of) : nccl_values(of), engine_(&engine) {
    detail::require<config_error>(engine.device() == of.device(), "a context on CUDA device ", engine.device(),
                                  " was given ranks of NCCL on device ", of.device(), '.');
    ranks().follow(engine.stream());
  }

  request start(rank_operation const& what, std::span<outgoing_rows const> to, std::span<incoming_rows const> from) {
    std::vector<buffer> rooms;
    std::vector<std::pair<outgoing_rows, incoming_rows>> apart;
    std::vector<outgoing_rows> out(to.begin(), to.end());
    std::vector<incoming_rows> in(from.begin(), from.end());
    auto const together = [&](auto const& rows) {
      rooms.emplace_back(rows.bytes(), engine_->memory());
      return incoming_rows{static_cast<std::byte*>(rooms.back().data()), rows.rows, rows.width, rows.width, nullptr};
    };
    for (outgoing_rows& rows : out) {
      if (rows.whole()) continue;
      incoming_rows const packed = together(rows);
      detail::copy_rows(*engine_, rows, packed);
      rows = read_again(packed);
    }
    for (incoming_rows& rows : in) {
      if (rows.whole()) continue;
      incoming_rows const packed = together(rows);
      apart.emplace_back(read_again(packed), rows);
      rows = packed;
    }
    return {std::move(rooms), std::move(apart), ranks().start(what, out, in)};
  }

  void finish(request&& which) {
    request done = std::move(which);
    ranks().finish(std::move(done.begun));
    for (auto const& [from, to] : done.apart) detail::copy_rows(*engine_, from, to);
  }

  void send_recv(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    std::vector<buffer> rooms;
    std::vector<outgoing_message> out(sends.begin(), sends.end());
    std::vector<incoming_message> in(receives.begin(), receives.end());
    auto const room = [&](std::int64_t bytes) {
      rooms.emplace_back(bytes, engine_->memory());
      return static_cast<std::byte*>(rooms.back().data());
    };
    for (outgoing_message& m : out) {
      if (m.bytes == 0 || detail::is_device_memory("send_recv", m.data)) continue;
      std::byte* const copy = room(m.bytes);
      engine_->memory().store(copy, m.data, m.bytes);
      m.data = copy;
    }
    for (incoming_message& m : in)
      if (m.bytes > 0 && !detail::is_device_memory("send_recv", m.data)) m.data = room(m.bytes);
    ranks().send_recv(out, in);
    for (std::size_t i = 0; i < in.size(); ++i)
      if (in[i].data != receives[i].data) engine_->memory().load(receives[i].data, in[i].data, in[i].bytes);
  }

  /// Whose kernels rows are for.
  cuda_engine& engine() const { return *engine_; }

  device_ranks split(int colour, int key, std::string const& name) {
    return {*engine_, ranks().split(colour, key, name)};
  }

 private:
  static outgoing_rows read_again(incoming_rows const& rows) {
    return {rows.data, rows.rows, rows.width, rows.stride, rows.index};
  }

  cuda_engine* engine_;
};

}  // namespace moiety
