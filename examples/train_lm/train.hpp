// SPDX-License-Identifier: Apache-2.0
// The whole job, from options to a summary and a page: training, validation, sampling, baselines, on the ranks of a layout.
#pragma once

#include "gathered.hpp"
#include "html.hpp"
#include "ngram.hpp"
#include "options.hpp"
#include "report.hpp"
#include "saved.hpp"
#include "text.hpp"
#include "trainer.hpp"

#include <moiety/moiety.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace lm {

struct summary {
  double validation = 0, unigram = 0, bigram = 0;  // bits per byte of the held-out text
  double load = 0;                                 // max/mean load, mean over the last tenth of the steps
  double balance = 0;                              // the balance loss, over the same steps
  double seconds = 0, tokens_per_second = 0;       // of training
  std::int64_t steps = 0, parameters = 0;          // steps: of this run
  std::uint64_t fingerprint = 0;                   // of all weights
  std::string prompt, sample;
  bool speaks = true;  // not on the other processes of a job
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

/// Windows that overlap by half, so that all but the first half-window of bytes are predicted from at least half a context.
/// Every byte that follows the first is scored once.
inline std::vector<scored_window> all_windows(text_view text, std::int64_t context) {
  std::int64_t const size = std::ssize(text) - 1, stride = std::max<std::int64_t>(1, context / 2);
  std::vector<scored_window> all;
  for (std::int64_t done = 0; done < size; done = all.back().first + all.back().length) {
    std::int64_t const first = std::max<std::int64_t>(0, std::min(done - (context - stride), size - context));
    all.push_back({first, std::min(context, size - first), done - first});
  }
  return all;
}

/// A few whole windows, spread over the text.
inline std::vector<scored_window> some_windows(text_view text, std::int64_t context, std::int64_t count) {
  std::int64_t const places = std::ssize(text) - context;
  std::vector<scored_window> some;
  for (std::int64_t w = 0; w < count; ++w) some.push_back({w * places / count, context, 0});
  return some;
}

/// The first bytes of the held-out text.
inline std::string prompt_of(text_view validation) {
  text_view const first = validation.first(std::min<std::size_t>(validation.size(), 80));
  return {first.begin(), first.end()};
}

/// All steps from `begin` on, until they or the time are over, by rank 0's clock, which stands still while windows are scored.
template <class Trainer>
std::vector<step_record> train_steps(Trainer& t, text const& corpus, options const& o, std::int64_t begin) {
  auto& world = t.ctx().world();
  std::optional<reporter> out;
  if (world.rank() == 0) out.emplace(o);
  stopwatch const clock;
  double scoring = 0;
  auto const seconds = [&] {
    double now = clock.seconds() - scoring;
    world.broadcast(std::span(&now, 1), 0);
    return now;
  };
  auto const scored = some_windows(corpus.validation(), o.context, std::min<std::int64_t>(32, 2 * o.batch));
  std::int64_t const last = o.until > 0 ? std::min(o.until, o.steps) : o.steps;
  std::int64_t const often = std::max<std::int64_t>(1, o.steps / 20);
  std::vector<step_record> records;
  double behind = 0;
  for (std::int64_t step = begin; behind < 1 && step < last; ++step) {
    step_record r = t.step(step, learning_rate(o.rate, progress(o, step + 1, seconds())));
    r.seconds = seconds();
    r.tokens_per_second = static_cast<double>((r.step - begin) * o.batch * o.context) / r.seconds;
    behind = progress(o, r.step, r.seconds);
    bool const ends = behind >= 1 || r.step == last;
    if (r.step % often == 0 || ends) {
      double const start = clock.seconds();
      r.validation = t.score(corpus.validation(), scored);
      scoring += clock.seconds() - start;
    }
    r.left = r.seconds * std::max(0.0, 1 - behind) / behind;
    if (out) out->step(r, ends);
    records.push_back(std::move(r));
  }
  return records;
}

inline summary summarise(std::vector<step_record> const& records) {
  summary result;
  if (records.empty()) return result;
  std::size_t const last = (records.size() + 9) / 10;
  for (step_record const& r : std::span(records).last(last)) {
    result.load += r.load / static_cast<double>(last);
    result.balance += r.balance / static_cast<double>(last);
  }
  result.steps = std::ssize(records);
  result.seconds = records.back().seconds;
  result.tokens_per_second = records.back().tokens_per_second;
  return result;
}

inline std::string layout_words(options const& o) {
  return std::to_string(o.pipeline) + " pipeline x " + std::to_string(o.expert) + " expert x " +
         std::to_string(o.data) + " data " + (o.mpi ? "processes" : "thread ranks") +
         (o.backend == "cuda" ? " of a CUDA device" : "");
}

inline page page_of(summary const& s, options const& o, std::vector<step_record> steps) {
  auto const words = [](double x) { return svg::number(x, 3); };
  page made{.title = "train_lm: a language model with Mixture-of-Experts layers"};
  made.facts = {{"text", o.text},
                {"layout", layout_words(o)},
                {"step", std::to_string(o.batch) + " windows of " + std::to_string(o.context) + " bytes, in " +
                             std::to_string(micro_batches_of(o)) + " micro-batches"},
                {"model", std::to_string(o.layers) + " layers of width " + std::to_string(o.hidden) + ", " +
                              std::to_string(o.heads) + " heads, 16 experts of which a byte takes 2; " +
                              std::to_string(s.parameters) + " parameters"},
                {"learning rate", svg::short_number(o.rate) + (o.balance ? "" : "; not trained on the balance loss")},
                {"steps", std::to_string(s.steps) + " in " + svg::number(s.seconds) + " s, " +
                              svg::number(s.tokens_per_second, 0) + " bytes/s"},
                {"validation",
                 words(s.validation) + " bits per byte; bigram " + words(s.bigram) + ", unigram " + words(s.unigram)},
                {"max/mean load", words(s.load) + ", balance loss " + words(s.balance) + ", at the end"}};
  made.steps = std::move(steps);
  made.ranks = o.pipeline;
  made.prompt = s.prompt, made.sample = s.sample;
  return made;
}

/// The job of one rank.
template <class Trainer> summary train_rank(Trainer& t, text const& corpus, options const& o) {
  std::int64_t const begin = o.resume.empty() ? 0 : load(t, o.resume);
  std::vector<step_record> records = train_steps(t, corpus, o, begin);
  if (!o.checkpoint.empty()) save(t, o.checkpoint, records.empty() ? begin : records.back().step);
  summary result = summarise(records);
  result.speaks = t.ctx().world().rank() == 0;
  timed const measured = from_zero(t.times());
  auto const weights = gathered(t.ctx(), t.weights());
  result.parameters = count(weights);
  result.fingerprint = fingerprint(weights);
  result.validation = t.score(corpus.validation(), all_windows(corpus.validation(), o.context));
  result.prompt = prompt_of(corpus.validation());
  result.sample = t.sample(result.prompt);
  if (!result.speaks) return result;
  ngram const baseline(corpus.training());
  result.unigram = baseline.unigram_bits(corpus.validation());
  result.bigram = baseline.bigram_bits(corpus.validation());
  if (o.html.empty()) return result;
  page made = page_of(result, o, std::move(records));
  if (!measured.empty()) {
    made.schedule = t.plan().name();
    made.measured = measured, made.planned = planned(t.plan(), measured);
  }
  write_page(o.html, made);
  return result;
}

}  // namespace lm
