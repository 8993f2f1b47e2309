// SPDX-License-Identifier: Apache-2.0
// The transport of one rank.
#pragma once

#include <moiety/backend/transport/communicator.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

namespace moiety::inline MOIETY_ABI {

class self_communicator : public collectives<self_communicator> {
 public:
  struct request {};

  static constexpr int rank() { return 0; }
  static constexpr int size() { return 1; }
  void at_step(std::int64_t) {}

  request start(rank_operation const& what, std::span<outgoing_rows const> to, std::span<incoming_rows const> from) {
    detail::require<data_error>(to.size() == 1 && from.size() == 1 && to[0].same_size(from[0]), what.name,
                                " of one rank was given other sizes to send than to receive.");
    detail::copy_rows(to[0], from[0]);
    return {};
  }
  void finish(request const&) {}

  /// Messages of a rank to itself, matched in order within a channel.
  void send_recv(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    detail::require<data_error>(sends.size() == receives.size(), "send_recv of one rank was given ", sends.size(),
                                " messages to send and ", receives.size(), " to receive.");
    std::vector<char> sent(sends.size());
    for (incoming_message const& to : receives) {
      std::size_t i = 0;
      while (i < sends.size() && (sent[i] != 0 || sends[i].channel != to.channel)) ++i;
      detail::require<data_error>(i < sends.size() && sends[i].bytes == to.bytes,
                                  "send_recv of one rank was given a message to receive that it does not send.");
      if (to.bytes > 0) std::memcpy(to.data, sends[i].data, static_cast<std::size_t>(to.bytes));
      sent[i] = 1;
    }
  }

  self_communicator split(int, int, std::string const&) { return {}; }

  [[noreturn]] void fail(comm_fault fault, char const* call, std::string const& why) {
    throw comm_error(fault, call, 0, 0, detail::sentence(call, ": ", why, '.'));
  }
};
static_assert(communicator<self_communicator>);

struct self {
  static constexpr bool single_rank = true;
  using communicator = self_communicator;
};

}  // namespace moiety
