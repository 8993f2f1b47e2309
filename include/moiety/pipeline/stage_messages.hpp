// SPDX-License-Identifier: Apache-2.0
// Rows between the stages of a pipeline: activations to the next, gradients to the one before. A label goes ahead of the rows
// and says which they are; one that is not awaited is a comm_error that says both.
#pragma once

#include <moiety/backend/transport/communicator.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/schedule/lower.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::detail {

template <class Communicator, class T> class stage_messages {
 public:
  explicit stage_messages(Communicator& pipeline) : pipeline_(&pipeline) {}

  /// The step that messages are of.
  void at_step(std::int64_t step) {
    step_ = step;
    pipeline_->at_step(step);
  }

  void send(operation const& o, matrix_view<T const> rows) {
    label const what = label_of(o, o.what.stage, rows.rows(), rows.cols());
    std::array const parts{part<std::byte const>(o, &what, 1),
                           part<std::byte const>(o, rows.data(), rows.rows() * rows.cols())};
    pipeline_->send_recv(parts, {});
  }

  void receive(operation const& o, matrix_view<T> rows) {
    int const sender = o.what.stage + (o.what.type == computation::forward ? -1 : 1);
    label const awaited = label_of(o, sender, rows.rows(), rows.cols());
    label come{};
    std::array const parts{part<std::byte>(o, &come, 1), part<std::byte>(o, rows.data(), rows.rows() * rows.cols())};
    pipeline_->send_recv({}, parts);
    if (!(come == awaited))
      pipeline_->fail(comm_fault::mismatch, "send_recv",
                      sentence("stage ", come.stage, " sent micro-batch ", come.microbatch, " of step ", come.step,
                               " where ", o, " of step ", step_, " was awaited"));
  }

 private:
  struct label {
    std::int64_t step, rows, width;
    std::int32_t stage, microbatch, type, element;
    friend bool operator==(label const&, label const&) = default;
  };

  label label_of(operation const& o, int stage, std::int64_t rows, std::int64_t width) const {
    return {step_,
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
  std::int64_t step_ = 0;
};

}  // namespace moiety::inline MOIETY_ABI::detail
