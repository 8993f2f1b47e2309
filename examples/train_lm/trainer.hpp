// SPDX-License-Identifier: Apache-2.0
// One rank of a run: its part of the model, the engine, and the optimiser. All calls are collectives of the run.
//
//   trainer<Spec, Deployment> train{ctx, options, corpus};
//   step_record r = train.step(number, rate);       the windows of a step are shared by the ranks of a stage
//   double bits = train.score(windows);             a byte of the targets, in mean
//   std::string text = train.sample(prompt);        one rank draws a byte, all get it
#pragma once

#include "cross_entropy.hpp"
#include "experts.hpp"
#include "model.hpp"
#include "options.hpp"
#include "report.hpp"
#include "text.hpp"

#include <moiety/backend/kernel_list.hpp>
#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace lm {

/// Linear warm-up over the first twentieth, then a cosine down to a tenth. progress in [0, 1].
inline double learning_rate(double peak, double progress) {
  constexpr double warm_up = 0.05, floor = 0.1;
  if (progress < warm_up) return peak * progress / warm_up;
  double const along = (progress - warm_up) / (1 - warm_up);
  return peak * (floor + (1 - floor) * 0.5 * (1 + std::cos(std::numbers::pi * std::min(1.0, along))));
}

/// A byte drawn from softmax(logits / temperature) by a number in [0, 1).
template <class Real> byte draw_byte(Real const* logits, double temperature, double uniform) {
  std::vector<double> p(static_cast<std::size_t>(vocabulary));
  double const top = static_cast<double>(largest(one_thread{}, logits, vocabulary));
  double total = 0;
  for (std::size_t v = 0; v < p.size(); ++v)
    total += p[v] = mo::exp((static_cast<double>(logits[v]) - top) / temperature);
  double left = uniform * total;
  std::size_t v = 0;
  while (v + 1 < p.size() && left >= p[v]) left -= p[v++];
  return static_cast<byte>(v);
}

/// A window to score: `skipped` of its bytes are context alone.
struct scored_window {
  std::int64_t first, length, skipped;
};

template <class Spec, class Deployment> class trainer {
 public:
  using context = mo::context<Deployment>;
  using real = typename context::element;
  using stage_type = stage_of<Spec, Deployment>;
  using weights_type = typename stage_type::weights_type;
  using gradients_type = typename stage_type::gradients_type;

  trainer(context& ctx, options const& o, text const& corpus)
      : ctx_(ctx),
        options_(o),
        corpus_(corpus),
        plan_(plan_of(o)),
        stage_(make_stage<Spec, Deployment>(ctx, {o.layers, o.heads}, expert_options<Spec>(o.balance),
                                            mo::schedule_view(plan_.schedule).stages(), plan_.placed)),
        engine_(ctx, mo::schedule_view(plan_.schedule), stage_),
        weights_(stage_.make_weights(mo::seed{o.seed})),
        gradients_(stage_.make_gradients()),
        weights_here_(ctx, weights_),
        gradients_here_(ctx, gradients_),
        optimiser_(mo::groups_of(ctx), {.beta2 = 0.95, .weight_decay = 0.1}) {
    engine_.record(times_);
    weights_here_.load();
    int const shared_out = std::max(1, mo::thread_count(0) / ctx.world().size());
    if (!of_host) beside_.emplace(mo::host{.threads = o.threads > 0 ? o.threads : shared_out});
  }

  step_record step(std::int64_t number, double rate) {
    std::int64_t const each = options_.batch / micro_batches_of(options_);
    auto const mine = mo::slice_of(each, ctx_.stage().rank(), ctx_.stage().size());
    std::vector<part> micro;
    for (std::int64_t first = number * options_.batch + mine.first; first < (number + 1) * options_.batch;
         first += each)
      micro.emplace_back(ctx_.memory(), draw_windows(corpus_.training(), mine.count, options_.context,
                                                     mo::seed{options_.seed}, first));

    gradients_.reset();
    times_.clear();
    auto const report = engine_.step(
        weights_, gradients_, described(micro), mo::no_inputs,
        [&](int m, view<context> logits, view<context> gradient) {
          auto const nats = cross_entropy(ctx_, logits, micro[static_cast<std::size_t>(m)].targets(), gradient);
          return mo::task_loss{exact_total(nats), static_cast<double>(nats.size())};
        },
        number);
    mo::task_loss const task = engine_.task();
    step_record r{.step = number + 1, .bits = task.sum / task.weight / std::numbers::ln2, .rate = rate};
    r.norm = update(rate, task.weight);
    r.balance = report.template value<mo::load_balance<>>(), r.z = report.template value<mo::router_z>();
    r.load = report.max_over_mean();
    for (std::size_t l = 0; l < report.layers(); ++l) r.loads.push_back(report.counts(l));
    if (options_.report) r.report = (std::ostringstream() << report).str();
    return r;
  }

  /// Mean bits of the windows' scored bytes; about 2048 bytes at a time.
  double score(text_view text, std::span<scored_window const> all) {
    std::vector<part> micro;
    auto const each = static_cast<std::size_t>(std::max<std::int64_t>(1, 2048 / options_.context));
    for (std::size_t first = 0; first < all.size(); first += each) {
      auto const some = all.subspan(first, std::min(each, all.size() - first));
      auto const mine = mo::slice_of(std::ssize(some), ctx_.stage().rank(), ctx_.stage().size());
      windows drawn;
      for (std::int64_t w = mine.first; w < mine.first + mine.count; ++w) {
        scored_window const& window = some[static_cast<std::size_t>(w)];
        drawn.add(text, window.first, window.length, window.skipped);
      }
      micro.emplace_back(ctx_.memory(), std::move(drawn));
    }
    mo::task_loss const found =
        engine_.evaluate(weights_, described(micro), mo::no_inputs, [&](int m, const_view<context> logits) {
          part const& some = micro[static_cast<std::size_t>(m)];
          auto const& targets = some.drawn.targets;
          auto const scored = std::ssize(targets) - std::count(targets.begin(), targets.end(), -1);
          return mo::task_loss{exact_total(cross_entropy(ctx_, logits, some.targets())), static_cast<double>(scored)};
        });
    return found.sum / found.weight / std::numbers::ln2;
  }

  /// Continues the prompt, one byte at a time; each byte sees the last `context` bytes. The ranks of a stage do the same.
  std::string sample(std::string const& prompt) {
    std::vector<byte> bytes(prompt.begin(), prompt.end());
    std::uint64_t const stream = mo::stream_of("sample");
    int const root = plan().rank_of(plan().stages() - 1, 0) * ctx_.shape().stage();
    for (std::int64_t i = 0; i < options_.sample; ++i) {
      std::size_t const seen = std::min(bytes.size(), static_cast<std::size_t>(options_.context));
      windows last;
      last.inputs.assign(bytes.end() - static_cast<std::ptrdiff_t>(seen), bytes.end());
      last.sequences.push_back(last.tokens());
      std::vector<part> one;
      one.emplace_back(ctx_.memory(), std::move(last));
      byte next = 0;
      engine_.evaluate(weights_, described(one), mo::no_inputs, [&](int, const_view<context> logits) {
        double const uniform =
            mo::random_word(mo::seed{options_.seed}, stream, static_cast<std::uint64_t>(i)) * 0x1p-32;
        std::vector<real> row(static_cast<std::size_t>(vocabulary));
        ctx_.memory().load(row.data(), logits.row(logits.rows() - 1), vocabulary * std::int64_t{sizeof(real)});
        next = draw_byte(row.data(), options_.temperature, uniform);
        return mo::task_loss{};
      });
      ctx_.world().broadcast(std::span(&next, 1), root);
      bytes.push_back(next);
    }
    return {bytes.begin() + static_cast<std::ptrdiff_t>(prompt.size()), bytes.end()};
  }

  context& ctx() { return ctx_; }
  /// On the host: store() after a change.
  auto& weights() { return weights_here_; }
  auto& optimiser() { return optimiser_; }
  auto parameters() { return mo::parameters_of(weights_here_, gradients_here_); }
  mo::schedule_view plan() const { return plan_.schedule; }

  /// Of the last step, by the ranks of this pipeline.
  std::vector<mo::timed_operation> times() { return mo::timelines(ctx_.pipeline(), times_); }

 private:
  static constexpr bool of_host = std::is_same_v<typename context::backend, mo::host>;

  /// The windows of a micro-batch, whose bytes lie where kernels read them.
  struct part {
    windows drawn;
    mo::kernel_list<std::int32_t> inputs, wanted;

    part(mo::arena& memory, windows of)
        : drawn(std::move(of)), inputs(memory, drawn.inputs), wanted(memory, drawn.targets) {}
    std::span<std::int32_t const> ids() const { return {inputs.for_kernels(), drawn.inputs.size()}; }
    std::span<std::int32_t const> targets() const { return {wanted.for_kernels(), drawn.targets.size()}; }
  };

  static mo::microbatches described(std::vector<part> const& micro) {
    std::vector<std::int64_t> tokens;
    for (part const& p : micro) tokens.push_back(p.drawn.tokens());
    mo::microbatches batches(std::move(tokens));
    batches.describe([&micro](int m) {
      part const& p = micro[static_cast<std::size_t>(m)];
      return mo::batch{.sequences = p.drawn.sequences, .ids = p.ids()};
    });
    return batches;
  }

  /// Sums over ranks, one division by the bytes of the step, clipping to a norm of 1, AdamW. Returns the norm before clipping.
  double update(double rate, double tokens) {
    gradients_here_.load();
    auto const groups = mo::groups_of(ctx_);
    auto const list = mo::gradients_of<real>(parameters());
    mo::reduce_gradients(list, groups, {.where = mo::summed::slices});
    double const norm = mo::global_norm(ctx_, gradients_here_) / tokens;
    auto const factor = static_cast<real>(1 / (tokens * std::max(1.0, norm)));
    for (auto const& gradient : list)
      host().for_blocks(std::ssize(gradient.values), 8192, [&](std::int64_t first, std::int64_t last, int) {
        for (std::int64_t i = first; i < last; ++i) gradient.values[static_cast<std::size_t>(i)] *= factor;
      });
    optimiser_.step(parameters(), rate, norm, host());
    weights_here_.store();
    return norm;
  }

  /// The threads of the host that update weights: the context's, if it has some.
  mo::host_engine& host() {
    if constexpr (of_host)
      return ctx_.engine();
    else
      return *beside_;
  }

  context& ctx_;
  options options_;
  text const& corpus_;
  pipeline_plan plan_;
  stage_type stage_;
  mo::pipeline_engine<Deployment, stage_type> engine_;
  mo::timeline times_;
  weights_type weights_;
  gradients_type gradients_;
  mo::host_copy<weights_type> weights_here_;
  mo::host_copy<gradients_type> gradients_here_;
  std::optional<mo::host_engine> beside_;  // where the context has none
  mo::sharded_adamw<real, typename context::communicator> optimiser_;
};

}  // namespace lm
