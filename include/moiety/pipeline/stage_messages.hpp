// SPDX-License-Identifier: Apache-2.0
// Rows between the stages of a pipeline: activations to the next, gradients to the one before. A label goes ahead of the rows
// and says which they are, and of which schedule; one that is not awaited is a comm_error that says both. Every comm_error of a
// message names its stage and micro-batch.
//
// Where the transport has sends that go on, send() takes the rows and does not wait. They live until they are taken: no more of
// them than micro-batches whose activations a rank holds, since none of these is done before its message is. Rows of a
// device's memory travel through the host's where the transport does not send them itself.
#pragma once

#include <moiety/backend/transport/communicator.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/schedule/lower.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>

namespace moiety::inline MOIETY_ABI::detail {

/// Whether messages may lie in memory of a device.
template <class Communicator>
concept sends_device_memory = requires {
  requires Communicator::messages_of_device;
};

template <class Communicator, class Matrix> class stage_messages {
  using T = std::remove_pointer_t<decltype(std::declval<Matrix&>().data())>;
  static constexpr bool of_device = requires(Matrix const& m) { m.host(); };
  static constexpr bool through_host = of_device && !sends_device_memory<Communicator>;
  using sent_rows = std::conditional_t<through_host, matrix<T>, Matrix>;

 public:
  /// Whether a send lets its rank go on.
  static constexpr bool overlap = requires(Communicator & ranks, std::span<outgoing_message const> sends) {
    ranks.finish(ranks.start_sends(sends));
  };

  stage_messages(Communicator& pipeline, std::uint64_t plan) : pipeline_(&pipeline), plan_(plan) {}

  /// The step that messages are of.
  void at_step(std::int64_t step) {
    step_ = step;
    pipeline_->at_step(step);
  }

  void send(operation const& o, Matrix rows) {
    if constexpr (overlap) under_way_.remove_if([&](letter& l) { return taken(l); });
    label const what = label_of(o, o.what.stage, rows.rows(), rows.cols());
    letter& l = under_way_.emplace_back(o, what, to_send(std::move(rows)));
    std::array const parts{part<std::byte const>(o, &l.what, 1),
                           part<std::byte const>(o, l.rows.data(), l.what.rows * l.what.width)};
    named(o, [&] {
      if constexpr (overlap) {
        l.way.emplace(pipeline_->start_sends(parts));
      } else {
        pipeline_->send_recv(parts, {});
        under_way_.clear();
      }
    });
  }

  /// Waits until all messages are taken.
  void finish() {
    if constexpr (overlap)
      for (letter& l : under_way_)
        if (!taken(l)) named(l.of, [&] { pipeline_->finish(std::move(*l.way)); });
    under_way_.clear();
  }
  /// After a failure: those that are not taken never are.
  void drop() { under_way_.clear(); }

  void receive(operation const& o, Matrix& to) {
    if constexpr (through_host) {
      sent_rows rows(to.rows(), to.cols());
      receive_rows(o, rows.view());
      to.assign(std::as_const(rows).view());
    } else {
      receive_rows(o, to.view());
    }
  }

 private:
  static sent_rows to_send(Matrix&& rows) {
    if constexpr (through_host)
      return rows.host();
    else
      return std::move(rows);
  }

  /// f(), whose errors say what they are about.
  template <class F> static void named(operation const& o, F const& f) {
    try {
      f();
    } catch (comm_error const& e) {
      throw comm_error(e.fault, e.operation, e.rank, e.step,
                       sentence(e.what(), " (", o, ": stage ", o.what.stage, ", micro-batch ", o.what.microbatch, ')'));
    }
  }

  void receive_rows(operation const& o, matrix_view<T> rows) {
    int const sender = o.what.stage + (o.what.type == computation::forward ? -1 : 1);
    label const awaited = label_of(o, sender, rows.rows(), rows.cols());
    label come{};
    std::array const parts{part<std::byte>(o, &come, 1), part<std::byte>(o, rows.data(), rows.rows() * rows.cols())};
    named(o, [&] {
      pipeline_->send_recv({}, parts);
      if (!(come == awaited))
        pipeline_->fail(comm_fault::mismatch, "send_recv",
                        sentence("stage ", come.stage, " sent micro-batch ", come.microbatch, " of step ", come.step,
                                 come.plan == plan_ ? "" : " of another schedule", " where ", o, " of step ", step_,
                                 " was awaited"));
    });
  }

  struct label {
    std::uint64_t plan;
    std::int64_t step, rows, width;
    std::int32_t stage, microbatch, type, element;
    friend bool operator==(label const&, label const&) = default;
  };

  template <class C> struct way_of { using type = bool; };
  template <class C>
  requires requires { typename C::sending; }
  struct way_of<C> {
    using type = typename C::sending;
  };

  /// The rows of a message, and its way, which ends before them.
  struct letter {
    letter(operation const& o, label const& says, sent_rows&& holds) : of(o), what(says), rows(std::move(holds)) {}
    operation of;
    label what;
    sent_rows rows;
    std::optional<typename way_of<Communicator>::type> way{};
  };

  bool taken(letter& l) {
    bool done = false;
    named(l.of, [&] { done = pipeline_->sent(*l.way); });
    return done;
  }

  label label_of(operation const& o, int stage, std::int64_t rows, std::int64_t width) const {
    return {plan_,
            step_,
            rows,
            width,
            stage,
            o.what.microbatch,
            static_cast<std::int32_t>(o.what.type),
            static_cast<std::int32_t>(sizeof(T))};
  }

  template <class Byte, class V> static rank_message<Byte> part(operation const& o, V* values, std::int64_t count) {
    return {o.peer, reinterpret_cast<Byte*>(values), count * static_cast<std::int64_t>(sizeof(V)), o.channel};
  }

  Communicator* pipeline_;
  std::uint64_t plan_;
  std::list<letter> under_way_;
  std::int64_t step_ = 0;
};

}  // namespace moiety::inline MOIETY_ABI::detail
