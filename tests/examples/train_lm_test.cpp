// SPDX-License-Identifier: Apache-2.0
// train_lm at a smaller size: that it learns, gives the same bits for every number of threads and of pipeline ranks, agrees
// on every layout, goes on from a checkpoint on another one, and that its experts stay balanced because of the balance loss
// and not without it.
#include "../../examples/train_lm/ranks.hpp"

#include "examples/train_lm_text.hpp"
#include "instrumented.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace mo = moiety;

lm::options small() {
  lm::options o;
  o.csv = o.html = "";
  o.steps = 4, o.batch = 8, o.context = 32, o.layers = 2, o.hidden = 64, o.heads = 2, o.sample = 8;
  o.quiet = true;
  return o;
}

lm::options spread(lm::options o, int pipeline, int expert, int data, int chunks = 1,
                   std::string const& schedule = "") {
  o.pipeline = pipeline, o.expert = expert, o.data = data, o.chunks = chunks, o.schedule = schedule;
  o.micro_batches = 4;
  return o;
}

}  // namespace

TEST_CASE("what follows changes no bit of an earlier byte's logits") {
  using spec = lm::expert_block<64>;
  mo::context<> ctx;
  auto const stage = lm::make_stage<spec, mo::deployment<>>(ctx, {.layers = 2, .heads = 2},
                                                            lm::expert_options<spec>(true), 1, mo::placement::loop);
  auto const weights = stage.make_weights(mo::seed{1});
  std::string const text = "It is a truth universally acknowledged, that a single man";
  std::vector<std::int32_t> const ids(text.begin(), text.end());
  auto const logits = [&](std::size_t length) {
    auto const rows = static_cast<std::int64_t>(length);
    auto x = ctx.matrix(rows, 0), y = ctx.matrix(rows, lm::vocabulary);
    stage.infer(weights, 0, x, y, {.ids = std::span(ids).first(length)});
    return y;
  };
  auto const together = logits(ids.size());
  for (std::size_t const length : {1u, 16u, 33u}) {
    CAPTURE(length);
    auto const alone = logits(length);
    CHECK(std::equal(alone.begin(), alone.end(), together.begin()));
  }
}

TEST_CASE("same seed, same bits: any number of threads, and a second run") {
  lm::text const text = austen(32, 20000);
  lm::options o = small();
  o.threads = 1;
  lm::summary const first = lm::train(text, o);
  CHECK(first.steps == 4);
  CHECK(first.sample.size() == 8);
  for (int const threads : {1, 2, 3}) {
    CAPTURE(threads);
    o.threads = threads;
    lm::summary const again = lm::train(text, o);
    CHECK(again.fingerprint == first.fingerprint);
    CHECK(again.validation == first.validation);
    CHECK(again.sample == first.sample);
  }
  o.seed = 2;
  CHECK(lm::train(text, o).fingerprint != first.fingerprint);
}

TEST_CASE("pipelines give the bits of one rank: weights, validation, sample") {
  lm::text const text = austen(32, 20000);
  lm::options const o = small();
  lm::summary const one = lm::train(text, spread(o, 1, 1, 1));
  for (lm::options const& split :
       {spread(o, 2, 1, 1), spread(o, 4, 1, 1, 1, "zb_h1"), spread(o, 2, 1, 1, 2, "zb_v"), spread(o, 2, 1, 1, 2)}) {
    CAPTURE(lm::schedule_name(split));
    lm::summary const found = lm::train(text, split);
    CHECK(found.fingerprint == one.fingerprint);
    CHECK(found.validation == one.validation);
    CHECK(found.sample == one.sample);
    CHECK(found.parameters == one.parameters);
  }
}

TEST_CASE("layouts agree: the first forward to the bit, what follows within tolerances") {
  lm::text const text = austen(32, 20000);
  lm::options o = small();
  o.compared = 3;
  for (lm::options const& split : {spread(o, 1, 2, 1), spread(o, 1, 1, 2), spread(o, 2, 2, 1), spread(o, 2, 1, 2, 2),
                                   spread(o, 2, 1, 1, 2, "looped_bfs"), spread(o, 2, 2, 1, 2, "dual_pipe")}) {
    lm::comparison const found = lm::compare(text, split);
    std::ostringstream table;
    table << found;
    INFO(lm::layout_words(split), '\n', table.str());
    CHECK(found.agrees());
    REQUIRE(found.lines.size() == 2 + 3 * 5);
    for (std::size_t i = 0; i < 5; ++i) CHECK(found.lines[i].bits);
    CHECK(!found.lines.back().bits);
    CHECK(table.str().find("to the bit") != std::string::npos);
  }
  lm::comparison const pipeline = lm::compare(text, spread(o, 2, 1, 1));
  CHECK(std::all_of(pipeline.lines.begin(), pipeline.lines.end(), [](auto const& l) { return l.bits; }));
}

TEST_CASE("a layout that does something else is found out") {
  lm::text const text = austen(32, 20000);
  lm::options o = small();
  o.compared = 2;
  lm::options const split = spread(o, 1, 1, 2);
  lm::trace const one = lm::trace_on<lm::of_threads>(text, lm::alone(split));
  auto const agrees = [&](auto const& change) {
    lm::trace many = one;
    change(many);
    return lm::compared(one, many, split).agrees();
  };
  CHECK(agrees([](lm::trace&) {}));
  CHECK(!agrees([](lm::trace& t) { t.steps[0].bits += 1e-9; }));
  CHECK(!agrees([](lm::trace& t) { t.steps[0].loads[1][3] += 1; }));
  CHECK(!agrees([](lm::trace& t) { t.steps[1].balance *= 1.01; }));
  CHECK(!agrees([](lm::trace& t) { t.steps[1].norm *= 1.01; }));
  CHECK(!agrees([](lm::trace& t) { t.before.begin()->second[0] += 1e-6f; }));
  CHECK(!agrees([](lm::trace& t) { t.after.begin()->second.resize(1); }));
  CHECK(!agrees([](lm::trace& t) { t.after.erase(t.after.begin()); }));
  CHECK(!agrees([](lm::trace& t) {
    for (float& w : t.after["layers.1.experts.up"]) w *= 1.01f;
  }));
  lm::options const half = [&] {
    lm::options other = lm::alone(split);
    other.seed = 2;
    return other;
  }();
  CHECK(!lm::compared(one, lm::trace_on<lm::of_threads>(text, half), split).agrees());
}

TEST_CASE("a checkpoint of one layout goes on on another, with the same bits") {
  lm::text const text = austen(32, 20000);
  temporary const file, second;
  lm::options o = spread(small(), 1, 1, 1);
  lm::summary const whole = lm::train(text, o);
  o.until = 2, o.checkpoint = file.path;
  lm::summary const half = lm::train(text, o);
  CHECK(half.steps == 2);
  CHECK(half.fingerprint != whole.fingerprint);
  o.checkpoint = "", o.resume = file.path;
  for (lm::options const& split :
       {spread(o, 2, 2, 1), spread(o, 1, 2, 2), spread(o, 4, 1, 1), spread(o, 2, 1, 1, 2, "dual_pipe")}) {
    lm::summary const loaded = lm::train(text, split);  // no step is left to do
    CHECK(loaded.steps == 0);
    CHECK(loaded.fingerprint == half.fingerprint);
    CHECK(loaded.validation == half.validation);
  }
  o.until = 0;
  CHECK(lm::train(text, spread(o, 2, 1, 1)).fingerprint == whole.fingerprint);
  lm::options uneven = spread(o, 2, 2, 2, 2, "dual_pipe");
  uneven.batch = 16, uneven.checkpoint = second.path;
  lm::summary const spread_out = lm::train(text, uneven);
  uneven = spread(uneven, 1, 1, 1), uneven.resume = second.path, uneven.checkpoint = "";
  CHECK(lm::train(text, uneven).fingerprint == spread_out.fingerprint);
  o.layers = 3;
  CHECK_THROWS_AS(lm::train(text, o), mo::data_error);
}

TEST_CASE("a run that is out of time stops after the step it is in, on all ranks") {
  lm::options o = small();
  o.minutes = 1e-9;
  CHECK(lm::train(austen(32, 20000), o).steps == 1);
  CHECK(lm::train(austen(32, 20000), spread(o, 2, 2, 1)).steps == 1);
}

TEST_CASE("the CSV has a line for every step; the page shows the run") {
  temporary const csv, html;
  lm::options o = spread(small(), 2, 2, 1);
  o.csv = csv.path, o.html = html.path;
  lm::train(austen(32, 20000), o);
  std::ifstream file(csv.path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  REQUIRE(lines.size() == 5);
  CHECK(lines[0].starts_with("step,bits_per_byte,load_balance,router_z,max_over_mean_load,"));
  CHECK(lines[4].starts_with("4,"));
  std::ostringstream page;
  page << std::ifstream(html.path).rdbuf();
  for (char const* expected : {"2 pipeline x 2 expert x 1 data thread ranks", "layer 2", "one_f_one_b: measured",
                               "Sample", "expert 15", "1B3"})
    CHECK(page.str().find(expected) != std::string::npos);
  o.html = "/no/such/folder/page.html";
  CHECK_THROWS(lm::train(austen(32, 20000), o));
}

TEST_CASE("it learns, and without the balance loss the load is at least twice as uneven" *
          doctest::skip(instrumented)) {
  lm::options o = small();
  o.steps = 150, o.batch = 16, o.context = 64, o.layers = 2, o.sample = 0;
  lm::text const text = austen(o.context, 600000);
  lm::summary const balanced = lm::train(text, o);
  o.balance = false;
  lm::summary const unbalanced = lm::train(text, o);
  MESSAGE("max/mean load ", balanced.load, " with the balance loss, ", unbalanced.load, " without");
  MESSAGE("bits per byte ", balanced.validation, ", bigram ", balanced.bigram, ", unigram ", balanced.unigram);
  CHECK(balanced.validation < balanced.bigram);
  CHECK(unbalanced.balance > balanced.balance);
  CHECK(unbalanced.load >= 2 * balanced.load);
}
