// SPDX-License-Identifier: Apache-2.0
// Runs the steps of a schedule on the ranks of a pipeline.
//
//   mo::pipeline_engine engine{ctx, plan, stage};
//   mo::loss_report<block> report = engine.step(weights, gradients, mo::equal_batches(8, 64), inputs, loss);
//     inputs(microbatch, x)           fills x [T × H] with the input of the first stage, on its ranks
//     loss(microbatch, y, dy)         → {sum, weight}; writes dy = d(sum)/dy; on ranks of the last stage
//   engine.step(…, loss, number)      the number of the step, mo::batch{.step} of every layer: each draws its random numbers.
//                                     Left out, it is one more than that of the last step that succeeded, from 0
//
//   mo::task_loss const found = engine.evaluate(weights, batches, inputs, loss);      loss(microbatch, y) → {sum, weight}
//   mo::timeline times; engine.record(times);         when each operation of the steps that follow begins and ends
//
// evaluate runs forward alone, micro-batch by micro-batch, and keeps nothing: no tapes, no losses of layers.
//
// A collective of the whole run, as making an engine is: every rank calls it with the same micro-batches' numbers. Gradients are
// sums over micro-batches, added in the order of the schedule; nothing is divided. engine.task() is what loss returned, added up
// over micro-batches and the ranks of a stage, the same on every rank. The report is of all layers, the same on every rank.
//
// Under a bidirectional schedule a stage is on two ranks, and each micro-batch takes one of the two ways: inputs and loss are
// asked for it where its way begins and ends. stage.unite makes both copies' gradients whole. evaluate takes the first way.
//
// Each rank does its operations of the lowered schedule one after another (schedule/lower.hpp): no order of arrival can make
// them wait in a circle. Where the transport can, a send does not hold up what follows, and a receive comes just before what
// needs it. A message carries what it is; if it is not what is awaited, comm_error says both. Losses of layers enter backward
// where they arise and are not part of any message. Memory: what a forward makes lives until its backward has used it. On
// mo::cuda x, y and dy are rows of device memory; of thread ranks they travel between stages through the host's.
//
// Throws on every rank of the run, before anything is written, config_error where plan, stage, micro-batches and context do not
// fit, data_error where the description of a micro-batch does not; state_error for a step within a step. A step that throws has
// changed no weights; gradients are unspecified until reset.
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/mesh/context.hpp>
#include <moiety/pipeline/microbatches.hpp>
#include <moiety/pipeline/rank_plan.hpp>
#include <moiety/pipeline/stage.hpp>
#include <moiety/pipeline/stage_messages.hpp>
#include <moiety/pipeline/timeline.hpp>
#include <moiety/schedule/lower.hpp>
#include <moiety/schedule/schedule.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

template <class Deployment, pipeline_stage Stage> class pipeline_engine {
  using T = typename Stage::element;
  using matrix_type = typename context<Deployment>::backend::template matrix<T>;
  using messages_type = detail::stage_messages<typename context<Deployment>::communicator, matrix_type>;
  using weights_type = typename Stage::weights_type;
  using gradients_type = typename Stage::gradients_type;

 public:
  pipeline_engine(context<Deployment>& ctx, schedule_view const& plan, Stage& stage)
      : ctx_(&ctx),
        stage_(&stage),
        plan_(detail::agreed_plan(ctx, plan, stage,
                                  messages_type::overlap ? detail::receives::late : detail::receives::in_order)),
        messages_(ctx.pipeline(), plan_.hash()),
        counts_(detail::counts_of(stage)),
        slots_(static_cast<std::size_t>(plan_.slots())) {}

  /// What the stage's ledger gives, nothing for a stage that has none.
  template <class Inputs, class Loss>
  auto step(weights_type const& weights, gradients_type& gradients, microbatches const& batches, Inputs&& inputs,
            Loss&& loss, std::optional<std::int64_t> number = {}) {
    auto ledger = detail::ledger_of(*stage_, *ctx_);
    auto const record = [&](typename Stage::tape_type const& tape) { detail::record_to(*stage_, tape, ledger); };
    in_step const until_end(*this);
    begin(batches, number.value_or(next_), plan_.microbatches());
    for (operation const& o : plan_.operations()) {
      if (observer_ != nullptr) observer_->begins(o);
      perform(o, weights, gradients, record, inputs, loss);
      if (observer_ != nullptr) observer_->ends(o);
    }
    messages_.finish();
    if constexpr (detail::unites_gradients<Stage>) stage_->unite(gradients);
    task_ = sums_.over_ranks(*ctx_);
    next_ = number.value_or(next_) + 1;
    return detail::end_step(ledger, counts_);
  }

  template <class Inputs, class Loss>
  task_loss evaluate(weights_type const& weights, microbatches const& batches, Inputs&& inputs, Loss&& loss,
                     std::int64_t number = 0) {
    in_step const until_end(*this);
    begin(batches, number, -1);
    for (int m = 0; m < batches.count(); ++m)
      for (int s = 0; s < plan_.stages(); ++s)
        if (plan_.here(s, 0)) infer(s, m, weights, inputs, loss);
    messages_.finish();
    return task_ = sums_.over_ranks(*ctx_);
  }

  /// What loss returned in the last step, added up.
  task_loss const& task() const { return task_; }

  /// Tells the observer, which outlives them, of the steps that follow.
  void record(step_observer& observer) { observer_ = &observer; }

 private:
  /// What a rank holds of one micro-batch at one of its stages.
  struct slot {
    matrix_type x{}, y{}, dy{}, dx{};
    std::optional<typename Stage::tape_type> tape{};
  };
  /// A step that is going on: when it ends, or throws, all that it holds goes.
  struct in_step {
    pipeline_engine* of;
    explicit in_step(pipeline_engine& engine) : of(&engine) {
      detail::require<state_error>(!of->going_on_, "a step was begun while another step of its engine is going on.");
      of->going_on_ = true;
    }
    in_step(in_step const&) = delete;
    in_step& operator=(in_step const&) = delete;
    ~in_step() { of->messages_.drop(), of->empty_slots(), of->going_on_ = false; }
  };

  slot& slot_of(int stage, int microbatch) { return slots_[static_cast<std::size_t>(plan_.slot(stage, microbatch))]; }
  void empty_slots() {
    for (slot& s : slots_) s = {};
  }
  bool last(int stage) const { return stage + 1 == plan_.stages(); }
  matrix_type inner(int microbatch) { return ctx_->matrix(tokens(microbatch), stage_->width()); }
  matrix_type at_input(int stage, int microbatch) {
    return stage == 0 ? ctx_->matrix(tokens(microbatch), detail::input_width(*stage_)) : inner(microbatch);
  }
  matrix_type at_output(int stage, int microbatch) {
    return last(stage) ? ctx_->matrix(tokens(microbatch), detail::output_width(*stage_)) : inner(microbatch);
  }
  std::int64_t tokens(int microbatch) const { return batches_->tokens(microbatch); }
  batch const& about(int microbatch) const { return about_[static_cast<std::size_t>(microbatch)]; }

  void begin(microbatches const& batches, std::int64_t number, int wanted) {
    batches_ = &batches;
    task_ = {}, sums_ = {};
    counts_.begin_step();
    ctx_->stage().at_step(number), messages_.at_step(number);
    about_ = batches_of_step(*ctx_, batches, number, wanted);
  }

  template <class Record, class Inputs, class Loss>
  void perform(operation const& o, weights_type const& weights, gradients_type& gradients, Record const& record,
               Inputs& inputs, Loss& loss) {
    slot& at = slot_of(o.what.stage, o.what.microbatch);
    bool const forwards = o.what.type == computation::forward;
    if (o.kind == message::send)
      messages_.send(o, std::move(forwards ? at.y : at.dx));
    else if (o.kind == message::receive)
      receive(o, forwards ? at.x : at.dy);
    else if (forwards)
      forward(o.what, at, weights, record, inputs, loss);
    else
      backward(o.what, at, weights, gradients);
  }

  template <class Record, class Inputs, class Loss>
  void forward(action const& a, slot& at, weights_type const& weights, Record const& record, Inputs& inputs,
               Loss& loss) {
    int const s = a.stage, m = a.microbatch;
    if (s == 0) take_input(at, m, inputs);
    at.y = at_output(s, m);
    at.tape.emplace(detail::forward_of(*stage_, counts_, weights, plan_.chunk(s), at.x.view(), at.y.view(), about(m)));
    record(*at.tape);
    if (last(s)) {
      at.dy = at_output(s, m);
      sums_.add(loss(m, at.y.view(), at.dy.view()));
      at.y = {};
    } else if (plan_.here(s + 1, m)) {
      slot_of(s + 1, m).x = std::move(at.y);
    }
  }

  void backward(action const& a, slot& at, weights_type const& weights, gradients_type& gradients) {
    int const s = a.stage, m = a.microbatch;
    if (a.type != computation::weight_gradient) {
      at.dx = at_input(s, m);
      stage_->backward_input(weights, *at.tape, at.dy.view(), at.dx.view());
      if (plan_.here(s - 1, m)) slot_of(s - 1, m).dy = std::move(at.dx);
      if (s == 0) at.dx = {};
    }
    if (a.type != computation::input_gradient) {
      stage_->backward_weights(*at.tape, gradients);
      at.tape.reset();
      at.x = {}, at.dy = {};
    }
  }

  template <class Inputs, class Loss>
  void infer(int s, int m, weights_type const& weights, Inputs& inputs, Loss& loss) {
    slot& at = slot_of(s, 0);
    if (s == 0)
      take_input(at, m, inputs);
    else if (!plan_.here(s - 1, 0))
      receive(forward_message(s, m, message::receive, s - 1), at.x);
    at.y = at_output(s, m);
    stage_->infer(weights, plan_.chunk(s), at.x.view(), at.y.view(), about(m));
    at.x = {};
    if (last(s))
      sums_.add(loss(m, at.y.view())), at.y = {};
    else if (plan_.here(s + 1, 0))
      slot_of(s + 1, 0).x = std::move(at.y);
    else
      messages_.finish(), messages_.send(forward_message(s, m, message::send, s + 1), std::move(at.y));
  }

  template <class Inputs> void take_input(slot& at, int microbatch, Inputs& inputs) {
    at.x = at_input(0, microbatch);
    if (at.x.cols() > 0) inputs(microbatch, at.x.view());
  }

  /// As the lowered schedule numbers its channels; through the stages of the first micro-batch.
  operation forward_message(int s, int m, message kind, int other) const {
    return {{s, m, computation::forward}, kind, plan_.home(other, 0), 2 * std::min(s, other)};
  }

  void receive(operation const& o, matrix_type& to) {
    to = inner(o.what.microbatch);
    messages_.receive(o, to);
  }

  context<Deployment>* ctx_;
  Stage* stage_;
  detail::rank_plan plan_;
  messages_type messages_;
  step_observer* observer_ = nullptr;
  bool going_on_ = false;
  std::int64_t next_ = 0;  // the number of the next step
  decltype(detail::counts_of(std::declval<Stage const&>())) counts_;
  microbatches const* batches_ = nullptr;  // of the step
  std::vector<batch> about_;
  std::vector<slot> slots_;
  detail::task_sums sums_{};
  task_loss task_{};
};

template <class Deployment, class Plan, class Stage>
pipeline_engine(context<Deployment>&, Plan const&, Stage&) -> pipeline_engine<Deployment, Stage>;

}  // namespace moiety
