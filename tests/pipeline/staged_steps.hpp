// SPDX-License-Identifier: Apache-2.0
// Two steps of a small model on the ranks of a pipeline, whatever memory its rows lie in, and what each rank has then.
#pragma once

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace staged {

namespace mo = moiety;

using balance = mo::load_balance<mo::over::global_batch>;
struct small : mo::layer_spec<mo::dims{.hidden = 12, .ffn = 8, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<balance, mo::router_z>;
};
template <class Backend, class Transport = mo::threads> struct on : mo::deployment<mo::dynamic> {
  using element = double;
  using backend = Backend;
  using transport = Transport;
  using dispatcher = mo::all_to_all;
};

inline constexpr int count = 4, layers = 3;

/// What one rank has after a step.
struct of_rank {
  std::map<std::string, std::vector<double>> gradients;
  std::vector<double> losses;
  std::vector<std::int64_t> loads;
  mo::task_loss task, evaluated;
  friend bool operator==(of_rank const&, of_rank const&) = default;
};
using outcome = std::vector<of_rank>;

inline mo::layout layout_of(mo::schedule_view const& plan, int data) {
  return {.data = data, .pipeline = plan.ranks(), .expert = data};
}

/// The layers as even as they go; stages beyond them have none.
inline auto split_for(mo::schedule_view const& plan) {
  std::vector<int> of_stage(static_cast<std::size_t>(plan.stages()));
  for (int l = 0; l < layers; ++l) ++of_stage[static_cast<std::size_t>(l % plan.stages())];
  return mo::split_by_counts(of_stage, layers);
}

/// Two steps and an evaluation on one rank.
template <class Deployment, class Stage>
of_rank two_steps_of(mo::context<Deployment>& ctx, mo::schedule_view const& plan, Stage const& stage) {
  mo::context<> host;
  auto const fill = [&](int m, auto x) {
    mo::matrix<double> rows(x.rows(), x.cols());
    for (std::int64_t i = 0; i < x.rows(); ++i)
      for (std::int64_t j = 0; j < x.cols(); ++j)
        rows(i, j) = std::sin(static_cast<double>(7 * m + 3 * i + 11 * j + 5 * i * j + 29 * ctx.data().rank()));
    ctx.memory().store(x.data(), rows.data(), x.rows() * x.cols() * 8);
  };
  auto const loss_of = [&](auto y, mo::matrix<double>& dy) {
    mo::matrix<double> rows(y.rows(), y.cols());
    ctx.memory().load(rows.data(), y.data(), y.rows() * y.cols() * 8);
    dy = mo::matrix<double>(y.rows(), y.cols());
    return mo::square_error(host, rows.view(), dy.view());
  };
  auto const loss = [&](int, auto y, auto dy) {
    mo::matrix<double> found;
    mo::task_loss const of = loss_of(y, found);
    ctx.memory().store(dy.data(), found.data(), y.rows() * y.cols() * 8);
    return of;
  };
  auto const weights = stage.make_weights(mo::seed{3});
  auto gradients = stage.make_gradients();
  mo::pipeline_engine engine{ctx, plan, stage};
  std::vector<std::int64_t> tokens{3, 0, 5, 4};
  tokens[0] += ctx.data().rank();
  of_rank mine;
  for (int i = 0; i < 2; ++i) {
    auto const report = engine.step(weights, gradients, mo::microbatches(tokens), fill, loss, i);
    mine.losses = report.template per_layer<balance>();
    for (double const value : report.template per_layer<mo::router_z>()) mine.losses.push_back(value);
    for (std::size_t l = 0; l < layers; ++l)
      for (std::int64_t const load : report.counts(l)) mine.loads.push_back(load);
    mine.task = engine.task();
  }
  mine.evaluated = engine.evaluate(weights, mo::microbatches(tokens), fill, [&](int, auto y) {
    mo::matrix<double> unused;
    return loss_of(y, unused);
  });
  gradients.for_each([&](mo::parameter const& p, auto values) {
    auto& to = mine.gradients[p.name];
    to.resize(values.size());
    ctx.memory().load(to.data(), values.data(), static_cast<std::int64_t>(values.size_bytes()));
  });
  return mine;
}
template <class Deployment, class Order>
of_rank two_steps(mo::context<Deployment>& ctx, Order const&, mo::schedule_view const& plan) {
  return two_steps_of(ctx, plan, mo::moe_stack<small, Deployment>{ctx, split_for(plan), {}, Order::placed});
}

/// The same of a model whose odd layers keep what backward needs, and whose even ones compute it again.
template <class Deployment, class Order>
of_rank two_steps_recomputed(mo::context<Deployment>& ctx, Order const&, mo::schedule_view const& plan) {
  using layer = mo::moe_layer<small, Deployment>;
  using stack = mo::block_stack<Deployment, layer, mo::recomputed<layer>>;
  auto const build = [&](int l) -> typename stack::any_block {
    if (l % 2 == 0) return mo::recomputed{ctx, layer{ctx}};
    return layer{ctx};
  };
  return two_steps_of(ctx, plan, stack{ctx, split_for(plan), build, Order::placed});
}

}  // namespace staged
