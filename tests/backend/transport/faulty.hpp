// SPDX-License-Identifier: Apache-2.0
// A communicator with faults: one call of one rank does not happen, is late, happens twice, sends another byte, or throws.
//
//   fault_plan plan{.kind = fault::drop, .rank = 1, .call = 7};
//   faulty ranks(communicator, plan);                  counts the calls of this rank: start, finish, send_recv, start_sends and
//                                                      split
#pragma once

#include <moiety/backend/transport/communicator.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

enum class fault { none, drop, delay, duplicate, corrupt, kill };

struct fault_plan {
  fault kind = fault::none;
  int rank = 0, call = 0;  // the rank of the first communicator; a call of `every` is each of them
  std::chrono::milliseconds late{1};
  std::size_t byte = 0;  // of what is sent to the first other rank that is sent anything
  std::byte flipped{0x40};
  std::atomic<bool>* happened = nullptr;  // set when the fault happens

  static constexpr int every = -1;
};

/// Thrown by a rank that the plan kills. To finish an operation twice is a state_error of the rank.
struct killed {};

template <class C>
concept goes_on_sending = requires {
  typename C::sending;
};
template <class C> struct sends_of { using type = bool; };
template <goes_on_sending C> struct sends_of<C> { using type = typename C::sending; };

template <class C> class faulty : public moiety::collectives<faulty<C>> {
  using inner_request = typename C::request;
  using out_rows = moiety::outgoing_rows;

  /// What this rank has done so far, in all communicators split from the first.
  struct record {
    fault_plan plan;
    int calls = 0;
  };

 public:
  class request {
   public:
    request(request&&) noexcept = default;
    request& operator=(request&&) = delete;

   private:
    friend faulty;
    request() = default;
    std::vector<std::byte> changed;  // outlives the operations
    std::vector<moiety::incoming_rows> room;
    std::optional<inner_request> one, again;
  };

  faulty(C inner, fault_plan const& plan) : inner_(std::move(inner)), record_(std::make_shared<record>(record{plan})) {
    if (plan.rank != inner_.rank()) record_->plan.kind = fault::none;
  }

  int rank() const { return inner_.rank(); }
  int size() const { return inner_.size(); }
  void at_step(std::int64_t step) { inner_.at_step(step); }
  int calls() const { return record_->calls; }

  request start(moiety::rank_operation const& what, std::span<out_rows const> to,
                std::span<moiety::incoming_rows const> from) {
    request begun;
    fault const now = next();
    begun.room.assign(from.begin(), from.end());
    if (now == fault::drop) {
      clear(begun.room);
      return begun;
    }
    std::vector<out_rows> sent(to.begin(), to.end());
    if (now == fault::corrupt) corrupt(sent, begun.changed);
    begun.one.emplace(inner_.start(what, sent, from));
    if (now == fault::duplicate) begun.again.emplace(inner_.start(what, sent, from));
    return begun;
  }

  void finish(request&& which) {
    fault const now = next();
    if (now == fault::drop) {
      which.one.reset();
      clear(which.room);
    }
    for (std::optional<inner_request>* each : {&which.one, &which.again})
      if (each->has_value()) {
        inner_.finish(std::move(**each));
        if (now == fault::duplicate) inner_.finish(std::move(**each));
        each->reset();
      }
  }

  void send_recv(std::span<moiety::outgoing_message const> sends, std::span<moiety::incoming_message const> receives) {
    fault const now = next();
    if (now == fault::drop) return;
    std::vector<moiety::outgoing_message> sent(sends.begin(), sends.end());
    std::vector<std::byte> changed;
    if (now == fault::corrupt) corrupt(sent, changed);
    inner_.send_recv(sent, receives);
    if (now == fault::duplicate) inner_.send_recv(sent, receives);
  }

  /// Sends that go on, of a communicator that has them.
  struct sending {
    std::vector<std::byte> changed{};  // outlives the operations
    std::vector<typename sends_of<C>::type> all{};
  };
  sending start_sends(std::span<moiety::outgoing_message const> sends) requires goes_on_sending<C> {
    sending begun;
    fault const now = next();
    if (now == fault::drop) return begun;
    std::vector<moiety::outgoing_message> sent(sends.begin(), sends.end());
    if (now == fault::corrupt) corrupt(sent, begun.changed);
    begun.all.push_back(inner_.start_sends(sent));
    if (now == fault::duplicate) begun.all.push_back(inner_.start_sends(sent));
    return begun;
  }
  bool sent(sending& which) requires goes_on_sending<C> {
    bool all = true;
    for (auto& each : which.all) all = all && inner_.sent(each);
    return all;
  }
  void finish(sending&& which) requires goes_on_sending<C> {
    for (auto& each : which.all) inner_.finish(std::move(each));
  }

  /// A rank cannot go on without its part: a dropped split kills.
  faulty split(int colour, int key, std::string const& name) {
    fault const now = next();
    if (now == fault::drop) throw killed();
    if (now == fault::duplicate) inner_.split(colour, key, name);
    return {inner_.split(colour, key, name), record_};
  }

  [[noreturn]] void fail(moiety::comm_fault why, char const* call, std::string const& what) {
    inner_.fail(why, call, what);
  }

 private:
  faulty(C inner, std::shared_ptr<record> of) : inner_(std::move(inner)), record_(std::move(of)) {}

  fault next() {
    fault_plan const& plan = record_->plan;
    bool const planned = plan.call == fault_plan::every || plan.call == record_->calls;
    ++record_->calls;
    if (!planned || plan.kind == fault::none) return fault::none;
    if (plan.kind != fault::corrupt) happens();
    if (plan.kind == fault::delay) std::this_thread::sleep_for(plan.late);
    if (plan.kind == fault::kill) throw killed();
    return plan.kind;
  }

  /// What does not come is zeros, so that a rank goes on with something.
  static void clear(std::span<moiety::incoming_rows const> room) {
    for (moiety::incoming_rows const& rows : room)
      for (std::int64_t i = 0; i < rows.rows; ++i)
        std::fill_n(rows.data + (rows.index == nullptr ? i : rows.index[i]) * rows.stride, rows.width, std::byte{});
  }

  void happens() {
    if (record_->plan.happened != nullptr) record_->plan.happened->store(true);
  }

  void change(std::vector<std::byte>& bytes) {
    bytes.at(record_->plan.byte) ^= record_->plan.flipped;
    happens();
  }

  void corrupt(std::vector<out_rows>& to, std::vector<std::byte>& changed) {
    for (int r = 0; r < size(); ++r) {
      out_rows& rows = to[static_cast<std::size_t>(r)];
      if (r == rank() || rows.bytes() == 0) continue;
      changed.resize(static_cast<std::size_t>(rows.bytes()));
      moiety::detail::copy_rows(rows, {changed.data(), rows.rows, rows.width, rows.width, nullptr});
      change(changed);
      rows = {changed.data(), rows.rows, rows.width, rows.width, nullptr};
      return;
    }
  }

  void corrupt(std::vector<moiety::outgoing_message>& sends, std::vector<std::byte>& changed) {
    for (moiety::outgoing_message& m : sends) {
      if (m.peer == rank() || m.bytes == 0) continue;
      changed.assign(m.data, m.data + m.bytes);
      change(changed);
      m.data = changed.data();
      return;
    }
  }

  C inner_;
  std::shared_ptr<record> record_;
};
