// SPDX-License-Identifier: Apache-2.0
// Runs the steps of a schedule on the ranks of a pipeline.
//
//   mo::pipeline_engine engine{ctx, plan, stage};
//   mo::loss_report<block> report = engine.step(weights, gradients, mo::equal_batches(8, 64), inputs, loss);
//     inputs(microbatch, x)           fills x [T × H] with the input of the first stage
//     loss(microbatch, y, dy)         → {sum, weight}; writes dy = d(sum)/dy; on ranks of the last stage
//
//   mo::task_loss const found = engine.evaluate(weights, batches, inputs, loss);      loss(microbatch, y) → {sum, weight}
//
// evaluate runs forward alone, micro-batch by micro-batch, and keeps nothing: no tapes, no losses of layers.
//
// A collective of the whole run: every rank calls it with the same micro-batches' numbers. Gradients are sums over
// micro-batches, added in the order of the schedule; nothing is divided. engine.task() is what loss returned, added up over
// micro-batches and the ranks of a stage, the same on every rank. The report is of all layers, the same on every rank.
//
// Each rank does its operations of the lowered schedule one after another (schedule/lower.hpp): no order of arrival can make
// them wait in a circle. A message carries what it is; if it is not what is awaited, comm_error says both. Losses of layers
// enter backward where they arise and are not part of any message. Memory: what a forward makes lives until its backward has
// used it.
//
// Throws config_error where plan, stage, micro-batches and context do not fit. A step that throws has changed no weights;
// gradients are unspecified until reset.
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/exact_sum.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/mesh/context.hpp>
#include <moiety/pipeline/ledger.hpp>
#include <moiety/pipeline/microbatches.hpp>
#include <moiety/pipeline/stage.hpp>
#include <moiety/pipeline/stage_messages.hpp>
#include <moiety/schedule/lower.hpp>
#include <moiety/schedule/schedule.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

template <class Deployment, pipeline_stage Stage> class pipeline_engine {
  using T = typename Stage::element;
  using matrix_type = typename context<Deployment>::backend::template matrix<T>;
  static_assert(records_losses<Stage> || !detail::names_spec<Stage>,
                "a stage that names a spec has layers() and record(tape, ledger).");

 public:
  pipeline_engine(context<Deployment>& ctx, schedule_view const& plan, Stage& stage)
      : ctx_(&ctx),
        stage_(&stage),
        messages_(ctx.pipeline()),
        stages_(plan.stages()),
        microbatches_(plan.microbatches()) {
    detail::require<config_error>(plan.ranks() == ctx.pipeline().size(), "a schedule of ", plan.ranks(),
                                  " ranks was given to a pipeline of ", ctx.pipeline().size(), '.');
    detail::require<config_error>(!plan.bidirectional(), "the engine does not run bidirectional schedules.");
    lowered_schedule const lowered = lower(plan);
    auto const mine = lowered.rank(ctx.pipeline().rank());
    operations_.assign(mine.begin(), mine.end());
    int chunks = 0;
    for (int s = 0; s < stages_; ++s) {
      home_.push_back(plan.rank_of(s, 0));
      chunk_of_.push_back(home_.back() == ctx.pipeline().rank() ? chunks++ : -1);
    }
    detail::require<config_error>(chunks == stage.chunks(), "the schedule has ", chunks,
                                  " stages on this rank, but the model has ", stage.chunks(), " chunks here.");
    for (int s = 0; s < stages_; ++s)
      detail::require<config_error>(!here(s) || stage.stage_of(chunk(s)) == s, "stage ", s,
                                    " of the schedule is on this rank, but the model has placed another one there.");
  }

  /// The report of a stage's losses, nothing for a stage that has none.
  template <class Inputs, class Loss>
  auto step(typename Stage::weights_type const& weights, typename Stage::gradients_type& gradients,
            microbatches const& batches, Inputs&& inputs, Loss&& loss, std::int64_t number = 0) {
    if constexpr (records_losses<Stage>) {
      loss_ledger<typename Stage::spec> ledger(*ctx_, stage_->layers());
      auto const record = [&](typename Stage::tape_type const& tape) { stage_->record(tape, ledger); };
      run(weights, gradients, batches, record, inputs, loss, number);
      return ledger.reduce();
    } else {
      run(
          weights, gradients, batches, [](typename Stage::tape_type const&) {}, inputs, loss, number);
    }
  }

  template <class Inputs, class Loss>
  task_loss evaluate(typename Stage::weights_type const& weights, microbatches const& batches, Inputs&& inputs,
                     Loss&& loss, std::int64_t number = 0) {
    begin(batches, number);
    for (int m = 0; m < batches.count(); ++m)
      for (int s = 0; s < stages_; ++s)
        if (here(s)) infer(s, m, weights, batches, inputs, loss);
    slots_.clear();
    sum_task();
    return task_;
  }

  /// What loss returned in the last step, added up.
  task_loss const& task() const { return task_; }

 private:
  /// What a rank holds of one micro-batch at one of its stages.
  struct slot {
    matrix_type x{}, y{}, dy{}, dx{};
    std::optional<typename Stage::tape_type> tape{};
  };

  slot& slot_of(int stage, int microbatch) { return slots_[static_cast<std::size_t>(microbatch * stages_ + stage)]; }
  bool here(int stage) const { return stage >= 0 && stage < stages_ && chunk(stage) >= 0; }
  int chunk(int stage) const { return chunk_of_[static_cast<std::size_t>(stage)]; }
  matrix_type rows(std::int64_t count) { return ctx_->matrix(count, stage_->width()); }

  void begin(microbatches const& batches, std::int64_t number) {
    slots_ = std::vector<slot>(static_cast<std::size_t>(stages_ * batches.count()));
    number_ = number;
    task_sum_ = task_weight_ = {};
    ctx_->stage().at_step(number), messages_.at_step(number);
    first_rows_ = first_rows(ctx_->stage(), batches);
  }

  template <class Weights, class Gradients, class Record, class Inputs, class Loss>
  void run(Weights const& weights, Gradients& gradients, microbatches const& batches, Record const& record,
           Inputs& inputs, Loss& loss, std::int64_t number) {
    detail::require<config_error>(batches.count() == microbatches_, "a schedule of ", microbatches_,
                                  " micro-batches was given ", batches.count(), '.');
    begin(batches, number);
    for (operation const& o : operations_) {
      slot& at = slot_of(o.what.stage, o.what.microbatch);
      if (o.kind == message::send)
        send(o, o.what.type == computation::forward ? at.y : at.dx);
      else if (o.kind == message::receive)
        receive(o, o.what.type == computation::forward ? at.x : at.dy, batches.tokens(o.what.microbatch));
      else
        compute(o.what, weights, gradients, batches, record, inputs, loss);
    }
    slots_.clear();
    sum_task();
  }

  template <class Weights, class Gradients, class Record, class Inputs, class Loss>
  void compute(action const& a, Weights const& weights, Gradients& gradients, microbatches const& batches,
               Record const& record, Inputs& inputs, Loss& loss) {
    slot& at = slot_of(a.stage, a.microbatch);
    if (a.type == computation::forward) return forward(a, at, weights, batches, record, inputs, loss);
    if (a.type != computation::weight_gradient) {
      at.dx = rows(at.dy.rows());
      stage_->backward_input(weights, *at.tape, at.dy.view(), at.dx.view());
      if (here(a.stage - 1)) slot_of(a.stage - 1, a.microbatch).dy = std::move(at.dx);
      if (a.stage == 0) at.dx = {};
    }
    if (a.type != computation::input_gradient) {
      stage_->backward_weights(*at.tape, gradients);
      at.tape.reset();
      at.x = {}, at.dy = {};
    }
  }

  template <class Weights, class Record, class Inputs, class Loss>
  void forward(action const& a, slot& at, Weights const& weights, microbatches const& batches, Record const& record,
               Inputs& inputs, Loss& loss) {
    std::int64_t const tokens = batches.tokens(a.microbatch);
    if (a.stage == 0) {
      at.x = rows(tokens);
      inputs(a.microbatch, at.x.view());
    }
    at.y = rows(tokens);
    at.tape.emplace(stage_->forward(weights, chunk(a.stage), at.x.view(), at.y.view(), about(a.microbatch)));
    record(*at.tape);
    if (a.stage + 1 == stages_) {
      at.dy = rows(tokens);
      add(loss(a.microbatch, at.y.view(), at.dy.view()));
      at.y = {};
    } else if (here(a.stage + 1)) {
      slot_of(a.stage + 1, a.microbatch).x = std::move(at.y);
    }
  }

  template <class Weights, class Inputs, class Loss>
  void infer(int s, int m, Weights const& weights, microbatches const& batches, Inputs& inputs, Loss& loss) {
    slot& at = slot_of(s, m);
    if (s == 0) {
      at.x = rows(batches.tokens(m));
      inputs(m, at.x.view());
    } else if (!here(s - 1)) {
      receive(forward_message(s, m, message::receive, s - 1), at.x, batches.tokens(m));
    }
    at.y = rows(batches.tokens(m));
    stage_->infer(weights, chunk(s), at.x.view(), at.y.view(), about(m));
    at.x = {};
    if (s + 1 == stages_)
      add(loss(m, at.y.view())), at.y = {};
    else if (here(s + 1))
      slot_of(s + 1, m).x = std::move(at.y);
    else
      send(forward_message(s, m, message::send, s + 1), at.y);
  }

  /// As the lowered schedule numbers its channels.
  operation forward_message(int s, int m, message kind, int other) const {
    return {{s, m, computation::forward}, kind, home_[static_cast<std::size_t>(other)], 2 * std::min(s, other)};
  }

  batch about(int microbatch) const {
    return {.first_row = first_rows_[static_cast<std::size_t>(microbatch)], .step = number_};
  }
  void add(task_loss const& found) { task_sum_.add(found.sum), task_weight_.add(found.weight); }

  void receive(operation const& o, matrix_type& to, std::int64_t count) {
    to = rows(count);
    messages_.receive(o, to.view());
  }
  void send(operation const& o, matrix_type& from) {
    messages_.send(o, from.view());
    from = {};
  }

  void sum_task() {
    std::array<exact_sum, 2> all{task_sum_, task_weight_};
    ctx_->stage().all_reduce(std::span<exact_sum>(all));
    ctx_->pipeline().all_reduce(std::span<exact_sum>(all));
    task_ = {all[0].value(), all[1].value()};
  }

  context<Deployment>* ctx_;
  Stage* stage_;
  detail::stage_messages<typename context<Deployment>::communicator, T> messages_;
  int stages_, microbatches_;
  std::vector<operation> operations_;
  std::vector<int> home_, chunk_of_;  // of each stage: its rank, and where that is this one its chunk
  std::vector<slot> slots_;
  std::vector<std::int64_t> first_rows_;  // of this rank's tokens, in each micro-batch
  std::int64_t number_ = 0;
  exact_sum task_sum_{}, task_weight_{};
  task_loss task_{};
};

template <class Deployment, class Plan, class Stage>
pipeline_engine(context<Deployment>&, Plan const&, Stage&) -> pipeline_engine<Deployment, Stage>;

}  // namespace moiety
