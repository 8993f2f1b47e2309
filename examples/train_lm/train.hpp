// SPDX-License-Identifier: Apache-2.0
// Training, validation and sampling; train() is the whole job, from options to a summary.
#pragma once

#include "adamw.hpp"
#include "experts.hpp"
#include "model.hpp"
#include "ngram.hpp"
#include "options.hpp"
#include "report.hpp"
#include "text.hpp"

#include <moiety/moiety.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <span>
#include <string>
#include <vector>

namespace lm {

struct summary {
  double validation = 0, unigram = 0, bigram = 0;  // bits per byte of the held-out text
  double load = 0;                                 // max/mean load, mean over the last tenth of the steps
  double balance = 0;                              // the balance loss, over the same steps
  double seconds = 0, tokens_per_second = 0;       // of training
  std::int64_t steps = 0, parameters = 0;
  std::uint64_t fingerprint = 0;  // of all weights
  std::string prompt, sample;
};

class stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// The part of the run that is behind us: of its steps or of its time, whichever is further.
inline double progress(options const& o, std::int64_t step, double seconds) {
  double const steps = static_cast<double>(step) / static_cast<double>(o.steps);
  return o.minutes > 0 ? std::max(steps, seconds / (60 * o.minutes)) : steps;
}

/// Busiest expert over mean, averaged over the layers.
template <class Block> double load_of(mo::loss_report<Block> const& report) {
  double sum = 0;
  for (std::size_t l = 0; l < report.layers(); ++l) sum += report.max_over_mean(l);
  return sum / static_cast<double>(report.layers());
}

/// One optimiser step: the step's windows, forward and backward, update.
template <class Block, class Model, class Optimiser, class Context>
step_record train_step(Context& ctx, Model& model, Optimiser& optimiser, text_view training, options const& o,
                       std::int64_t step, double rate) {
  windows const drawn = draw_windows(training, o.batch, o.context, mo::seed{o.seed}, step * o.batch);
  std::vector<std::int64_t> sequences;
  for (std::int64_t s = 0; s <= o.batch; ++s) sequences.push_back(s * o.context);
  std::int64_t const tokens = o.batch * o.context;
  mo::batch const batch{.sequences = sequences, .first_row = step * tokens, .step = step};

  mo::loss_ledger<Block> ledger{ctx, o.layers};
  model.clear_gradients();
  double const nats = model.accumulate(drawn.inputs, drawn.targets, batch, ledger);
  double const norm = optimiser.step(model, rate, 1 / static_cast<double>(tokens));
  mo::loss_report<Block> const report = ledger.reduce();
  return {.step = step + 1,
          .bits = nats / static_cast<double>(tokens) / std::numbers::ln2,
          .balance = report.template value<mo::load_balance<>>(),
          .z = report.template value<mo::router_z>(),
          .load = load_of(report),
          .rate = rate,
          .norm = norm};
}

/// Mean bits of the bytes that follow the first. Windows overlap by half, so that all but the first half-window of
/// bytes are predicted from at least half a context.
template <class Model> double validate(Model& model, text_view text, std::int64_t context) {
  std::int64_t const size = static_cast<std::int64_t>(text.size()) - 1, stride = std::max<std::int64_t>(1, context / 2);
  double nats = 0;
  for (std::int64_t done = 0; done < size;) {
    std::int64_t const first = std::max<std::int64_t>(0, std::min(done - (context - stride), size - context));
    std::int64_t const length = std::min(context, size - first);
    auto const& logits =
        model.infer(text.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(length)), length);
    for (; done < first + length; ++done) {
      auto const* const row = logits.row(done - first);
      nats += log_sum_exp(row, logits.cols()) - static_cast<double>(row[text[static_cast<std::size_t>(done + 1)]]);
    }
  }
  return nats / static_cast<double>(size) / std::numbers::ln2;
}

/// A byte drawn from softmax(logits / temperature) by a number in [0, 1).
template <class Real> byte draw_byte(Real const* logits, double temperature, double uniform) {
  std::vector<double> p(static_cast<std::size_t>(vocabulary));
  double const top = static_cast<double>(largest(logits, vocabulary));
  double total = 0;
  for (std::size_t v = 0; v < p.size(); ++v)
    total += p[v] = mo::exp((static_cast<double>(logits[v]) - top) / temperature);
  double left = uniform * total;
  std::size_t v = 0;
  while (v + 1 < p.size() && left >= p[v]) left -= p[v++];
  return static_cast<byte>(v);
}

/// Continues the prompt, one byte at a time; each byte sees the last `context` bytes.
template <class Model> std::string sample(Model& model, std::string const& prompt, options const& o) {
  std::vector<byte> bytes(prompt.begin(), prompt.end());
  mo::seed const seed = seed_of(mo::seed{o.seed}, "sample");
  for (std::int64_t i = 0; i < o.sample; ++i) {
    std::size_t const seen = std::min(bytes.size(), static_cast<std::size_t>(o.context));
    auto const& logits = model.infer(text_view(bytes).last(seen), static_cast<std::int64_t>(seen));
    double const uniform = mo::random_word(seed, 0, static_cast<std::uint64_t>(i)) * 0x1p-32;
    bytes.push_back(draw_byte(logits.row(logits.rows() - 1), o.temperature, uniform));
  }
  return {bytes.begin() + static_cast<std::ptrdiff_t>(prompt.size()), bytes.end()};
}

/// FNV-1a over the bits of all weights.
template <class Model> std::uint64_t fingerprint(Model& model) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  model.for_each_parameter([&](auto const&, auto values, auto, bool) {
    for (std::byte const b : std::as_bytes(std::span(values)))
      hash = (hash ^ static_cast<std::uint64_t>(b)) * 0x100000001b3u;
  });
  return hash;
}

template <class Model> std::int64_t parameters(Model& model) {
  std::int64_t count = 0;
  model.for_each_parameter(
      [&](auto const&, auto values, auto, bool) { count += static_cast<std::int64_t>(values.size()); });
  return count;
}

/// The first bytes of the held-out text.
inline std::string prompt_of(text_view validation) {
  text_view const first = validation.first(std::min<std::size_t>(validation.size(), 80));
  return {first.begin(), first.end()};
}

/// All steps, until they or the time are over.
template <class Block, class Model, class Context>
std::vector<step_record> train_steps(Context& ctx, Model& model, text_view training, options const& o) {
  adamw<Context> optimiser(ctx);
  reporter reporter(o);
  stopwatch const clock;
  std::vector<step_record> records;
  double behind = 0;
  for (std::int64_t step = 0; behind < 1; ++step) {
    double const rate = learning_rate(o.rate, progress(o, step + 1, clock.seconds()));
    step_record r = train_step<Block>(ctx, model, optimiser, training, o, step, rate);
    r.seconds = clock.seconds();
    r.tokens_per_second = static_cast<double>(r.step * o.batch * o.context) / r.seconds;
    behind = progress(o, r.step, r.seconds);
    r.left = r.seconds * std::max(0.0, 1 - behind) / behind;
    reporter.step(r, behind >= 1);
    records.push_back(r);
  }
  return records;
}

inline summary summarise(std::vector<step_record> const& records) {
  summary result;
  std::size_t const last = (records.size() + 9) / 10;
  for (step_record const& r : std::span(records).last(last)) {
    result.load += r.load / static_cast<double>(last);
    result.balance += r.balance / static_cast<double>(last);
  }
  result.steps = records.back().step;
  result.seconds = records.back().seconds;
  result.tokens_per_second = records.back().tokens_per_second;
  return result;
}

template <class Block, class Context> summary train_model(Context& ctx, text const& corpus, options const& o) {
  model_settings const settings{.layers = o.layers, .hidden = o.hidden, .heads = o.heads};
  language_model<Block, Context> model(ctx, settings, expert_options<Block>(o.balance), mo::seed{o.seed});
  summary result = summarise(train_steps<Block>(ctx, model, corpus.training(), o));
  result.parameters = parameters(model);
  result.fingerprint = fingerprint(model);
  result.validation = validate(model, corpus.validation(), o.context);
  result.prompt = prompt_of(corpus.validation());
  result.sample = sample(model, result.prompt, o);
  ngram const baseline(corpus.training());
  result.unigram = baseline.unigram_bits(corpus.validation());
  result.bigram = baseline.bigram_bits(corpus.validation());
  return result;
}

/// The whole job for a text that is split already.
inline summary train(text const& corpus, options const& o) {
  mo::context<> ctx{mo::host{.threads = o.threads}};
  switch (o.hidden) {
    case 64: return train_model<expert_block<64>>(ctx, corpus, o);
    case 128: return train_model<expert_block<128>>(ctx, corpus, o);
    case 256: return train_model<expert_block<256>>(ctx, corpus, o);
    default: throw command_line::usage_error("--hidden is 64, 128 or 256.");
  }
}

}  // namespace lm
