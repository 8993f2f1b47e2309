// SPDX-License-Identifier: Apache-2.0
// A user's own stage without losses: y = x + x W, one W for each stage of the model. It says what it is told to do, checks what
// the engine promises, and computes on small numbers that are exact in every order of addition.
#pragma once

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace linear {

namespace mo = moiety;

struct spread : mo::deployment<mo::dynamic> {
  using element = double;
};

constexpr std::int64_t width = 3, tokens = 2;

/// One matrix [width × width] for each stage of the model; a rank touches those of its own.
using matrices = std::vector<std::vector<double>>;

inline matrices zeros(int stages) {
  return matrices(static_cast<std::size_t>(stages), std::vector<double>(width * width));
}

inline matrices weights_of(int stages) {
  matrices all = zeros(stages);
  for (std::size_t s = 0; s < all.size(); ++s)
    for (std::size_t i = 0; i < all[s].size(); ++i) all[s][i] = static_cast<double>((7 * s + 3 * i) % 5) / 4 - 0.5;
  return all;
}

/// The input of a micro-batch.
inline void fill(int microbatch, mo::matrix_view<double> x) {
  for (std::int64_t t = 0; t < x.rows(); ++t)
    for (std::int64_t h = 0; h < x.cols(); ++h) x(t, h) = static_cast<double>((5 * microbatch + 2 * t + 3 * h) % 7 - 3);
}

class stage {
 public:
  using element = double;
  using weights_type = matrices;
  using gradients_type = matrices;
  struct tape_type {
    int stage, microbatch;
    mo::matrix_view<double const> x, dy;
    std::vector<double> x_before, dy_before;
    std::shared_ptr<void> alive;
  };

  /// `seen` is told of every action before it happens: F, and I and W for a whole backward too.
  stage(mo::schedule_view const& plan, int rank, std::function<void(mo::action const&)> seen = {})
      : seen_(std::move(seen)) {
    for (int s = 0; s < plan.stages(); ++s)
      if (plan.rank_of(s, 0) == rank || plan.rank_of(s, plan.microbatches() - 1) == rank) stages_.push_back(s);
  }

  std::int64_t width() const { return linear::width; }
  int chunks() const { return static_cast<int>(stages_.size()); }
  int stage_of(int chunk) const { return stages_[static_cast<std::size_t>(chunk)]; }

  tape_type forward(matrices const& weights, int chunk, mo::matrix_view<double const> x, mo::matrix_view<double> y,
                    mo::batch const& about) const {
    int const s = stage_of(chunk), m = static_cast<int>(about.first_row / tokens);
    tell({s, m, mo::computation::forward});
    peak_ = std::max(peak_, ++live_);
    tape_type tape{s, m, x, {}, copy(x), {}, std::shared_ptr<void>(nullptr, [this](void*) { --live_; })};
    infer(weights, chunk, x, y, about);
    return tape;
  }

  void backward_input(matrices const& weights, tape_type& tape, mo::matrix_view<double const> dy,
                      mo::matrix_view<double> dx) const {
    tell({tape.stage, tape.microbatch, mo::computation::input_gradient});
    tape.dy = dy, tape.dy_before = copy(dy);
    auto const& w = weights[static_cast<std::size_t>(tape.stage)];
    for (std::int64_t t = 0; t < dy.rows(); ++t)
      for (std::int64_t i = 0; i < dy.cols(); ++i) {
        dx(t, i) = dy(t, i);
        for (std::int64_t j = 0; j < dy.cols(); ++j)
          dx(t, i) += dy(t, j) * w[static_cast<std::size_t>(i * linear::width + j)];
      }
  }

  void backward_weights(tape_type& tape, matrices& gradients) const {
    tell({tape.stage, tape.microbatch, mo::computation::weight_gradient});
    kept_ = kept_ && copy(tape.x) == tape.x_before && copy(tape.dy) == tape.dy_before;
    auto& g = gradients[static_cast<std::size_t>(tape.stage)];
    for (std::int64_t t = 0; t < tape.x.rows(); ++t)
      for (std::int64_t i = 0; i < linear::width; ++i)
        for (std::int64_t j = 0; j < linear::width; ++j)
          g[static_cast<std::size_t>(i * linear::width + j)] += tape.x(t, i) * tape.dy(t, j);
  }

  void infer(matrices const& weights, int chunk, mo::matrix_view<double const> x, mo::matrix_view<double> y,
             mo::batch const&) const {
    auto const& w = weights[static_cast<std::size_t>(stage_of(chunk))];
    for (std::int64_t t = 0; t < x.rows(); ++t)
      for (std::int64_t j = 0; j < x.cols(); ++j) {
        y(t, j) = x(t, j);
        for (std::int64_t i = 0; i < x.cols(); ++i)
          y(t, j) += x(t, i) * w[static_cast<std::size_t>(i * linear::width + j)];
      }
  }

  /// Tapes alive now, and the most at once.
  std::int64_t live() const { return live_; }
  std::int64_t peak() const { return peak_; }
  /// Whether x and dy were unmodified when each weight half read them.
  bool kept() const { return kept_; }

 private:
  void tell(mo::action const& a) const {
    if (seen_) seen_(a);
  }
  static std::vector<double> copy(mo::matrix_view<double const> of) {
    std::vector<double> all;
    for (std::int64_t t = 0; t < of.rows(); ++t) all.insert(all.end(), of.row(t), of.row(t) + of.cols());
    return all;
  }

  std::vector<int> stages_;
  std::function<void(mo::action const&)> seen_;
  mutable std::int64_t live_ = 0, peak_ = 0;
  mutable bool kept_ = true;
};

/// The same for bidirectional plans, which have two copies of each stage.
class copied_stage : public stage {
 public:
  copied_stage(mo::schedule_view const& plan, mo::thread_communicator& pipeline,
               std::function<void(mo::action const&)> seen = {})
      : stage(plan, pipeline.rank(), std::move(seen)),
        pipeline_(&pipeline),
        held_(static_cast<std::size_t>(plan.stages())) {
    for (int c = 0; c < chunks(); ++c) held_[static_cast<std::size_t>(stage_of(c))] = true;
  }

  void unite(matrices& gradients) const {
    for (std::size_t s = 0; s < gradients.size(); ++s) {
      std::vector<double> sum = held_[s] ? gradients[s] : std::vector<double>(gradients[s].size());
      pipeline_->all_reduce(std::span(sum));
      if (held_[s]) gradients[s] = sum;
    }
  }

 private:
  mo::thread_communicator* pipeline_;
  std::vector<bool> held_;
};

/// body(stage) of the kind that a plan needs.
template <class Body>
void with_stage(mo::schedule_view const& plan, mo::context<spread>& ctx,
                std::function<void(mo::action const&)> const& seen, Body const& body) {
  if (plan.bidirectional()) {
    copied_stage of(plan, ctx.pipeline(), seen);
    return body(of);
  }
  stage of(plan, ctx.pipeline().rank(), seen);
  body(of);
}

struct outcome {
  mo::task_loss task;
  matrices gradients;
  friend bool operator==(outcome const&, outcome const&) = default;
};

/// What a step is, without an engine: micro-batch by micro-batch, stage by stage.
inline outcome expected(int stages, int microbatches) {
  mo::schedule const plan = mo::make_schedule(mo::gpipe{}, {.ranks = stages, .microbatches = 1});
  mo::context<> ctx;
  matrices const weights = weights_of(stages);
  outcome out{{}, zeros(stages)};
  for (int m = 0; m < microbatches; ++m) {
    std::vector<stage> parts;
    std::vector<stage::tape_type> tapes;
    std::vector<mo::matrix<double>> rows;
    rows.emplace_back(tokens, width);
    fill(m, rows[0].view());
    for (int s = 0; s < stages; ++s) parts.emplace_back(plan, s);
    for (int s = 0; s < stages; ++s) {
      auto const at = static_cast<std::size_t>(s);
      rows.emplace_back(tokens, width);
      tapes.push_back(parts[at].forward(weights, 0, std::as_const(rows[at]).view(), rows[at + 1].view(), {}));
    }
    mo::matrix<double> dy(tokens, width), dx(tokens, width);
    mo::task_loss const loss = mo::square_error(ctx, rows.back().view(), dy.view());
    out.task.sum += loss.sum, out.task.weight += loss.weight;
    for (std::size_t s = tapes.size(); s-- > 0; std::swap(dy, dx)) {
      parts[s].backward_input(weights, tapes[s], std::as_const(dy).view(), dx.view());
      parts[s].backward_weights(tapes[s], out.gradients);
    }
  }
  return out;
}

/// f(order, plan) of every order with one copy of each stage, on `ranks` ranks.
template <class F> void for_each_plan(int ranks, int microbatches, F const& f) {
  auto const with = [&]<class Order>(Order const& order) {
    for (int chunks : {1, 2}) {
      mo::pipeline_shape const shape{.ranks = ranks, .chunks = chunks, .microbatches = microbatches};
      if (mo::fault_of<Order>(shape) == mo::shape_fault::none) f(order, mo::make_schedule(order, shape));
    }
  };
  with(mo::gpipe{}), with(mo::gpipe_lifo{}), with(mo::one_f_one_b{}), with(mo::interleaved_1f1b{});
  with(mo::looped_bfs{}), with(mo::zb_h1{}), with(mo::zb_h2{}), with(mo::interleaved_zb1p{}), with(mo::zb_v{});
  with(mo::dual_pipe_v{}), with(mo::interleaved_1f1b_overlapped{});
}

/// The same of every order.
template <class F> void for_each_order(int ranks, int microbatches, F const& f) {
  for_each_plan(ranks, microbatches, f);
  mo::pipeline_shape const shape{.ranks = ranks, .chunks = 2, .microbatches = microbatches};
  if (mo::fault_of<mo::dual_pipe>(shape) == mo::shape_fault::none)
    f(mo::dual_pipe{}, mo::make_schedule(mo::dual_pipe{}, shape));
}

}  // namespace linear
