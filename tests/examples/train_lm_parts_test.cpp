// SPDX-License-Identifier: Apache-2.0
// What surrounds the model of train_lm: options, text, windows, baselines, the learning rate, and the page about a run.
#include "../../examples/train_lm/html.hpp"
#include "../../examples/train_lm/ngram.hpp"
#include "../../examples/train_lm/options.hpp"
#include "../../examples/train_lm/text.hpp"
#include "../../examples/train_lm/train.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

namespace mo = moiety;

lm::options parse(std::vector<char const*> const& arguments) { return lm::parse(arguments); }

std::vector<lm::byte> bytes_of(std::string const& text) { return {text.begin(), text.end()}; }

/// The elements of well-formed text, by name; throws where a tag does not close, or closes another.
std::vector<std::string> elements_of(std::string_view text) {
  std::vector<std::string> open, all;
  for (std::size_t at = text.find('<'); at != text.npos; at = text.find('<', at)) {
    std::size_t const end = text.find('>', at);
    if (end == text.npos) throw std::runtime_error("a tag does not end");
    std::string_view tag = text.substr(at + 1, end - at - 1);
    at = end;
    if (tag.starts_with('!')) continue;
    std::string const name(tag.substr(0, tag.find_first_of(" /", 1)));
    if (tag.starts_with('/')) {
      if (open.empty() || '/' + open.back() != tag) throw std::runtime_error("not open: " + std::string(tag));
      open.pop_back();
      continue;
    }
    if (std::count(tag.begin(), tag.end(), '"') % 2 != 0) throw std::runtime_error("an odd quote: " + std::string(tag));
    all.push_back(name);
    if (!tag.ends_with('/')) open.push_back(name);
  }
  if (!open.empty()) throw std::runtime_error("not closed: " + open.back());
  return all;
}

std::string written(lm::page const& p) {
  std::ostringstream out;
  lm::write(out, p);
  return std::move(out).str();
}

/// A run of some steps with 2 layers and 16 experts, on a pipeline of 2.
lm::page page_of(int steps) {
  lm::page p{.title = "a <run> & more", .facts = {{"text", "\"a\" < b"}}, .schedule = "gpipe", .ranks = 2};
  for (int s = 1; s <= steps; ++s) {
    lm::step_record r{.step = s, .bits = 8.0 / s, .balance = 1.1, .load = 2};
    if (s % 10 == 0) r.validation = 9.0 / s;
    for (int l = 0; l < 2; ++l) r.loads.push_back(std::vector<std::int64_t>(16, 100 + 10 * l));
    r.loads[1][5] = 1000;
    p.steps.push_back(r);
  }
  mo::schedule const plan = mo::make_schedule(mo::gpipe{}, {.ranks = 2, .microbatches = 2});
  for (mo::timed_operation o : mo::planned_timeline(
           plan, mo::step_costs{.forward = 2'000'000, .input_gradient = 1'000'000, .weight_gradient = 3'000'000})) {
    o.begin += 7'000'000, o.end += 7'000'000;
    p.measured.push_back(o);
  }
  p.measured = lm::from_zero(p.measured);
  p.planned = lm::planned(plan, p.measured);
  p.prompt = "It is <a> truth", p.sample = "universally & \"ac\x01knowledged\"";
  return p;
}

}  // namespace

TEST_CASE("options: values, switches, and clear errors") {
  lm::options const o = parse({"--steps", "12", "--no-balance", "--lr", "1e-3", "--csv", "x.csv"});
  CHECK(o.steps == 12);
  CHECK(!o.balance);
  CHECK(o.rate == 1e-3);
  CHECK(o.csv == "x.csv");
  CHECK(o.batch == lm::options{}.batch);
  CHECK(parse({"--help", "--steps", "0"}).help);
  CHECK_THROWS_WITH_AS(parse({"--stepz", "1"}), "unknown option --stepz.", command_line::usage_error);
  CHECK_THROWS_WITH_AS(parse({"--steps"}), "--steps needs a value.", command_line::usage_error);
  CHECK_THROWS_WITH_AS(parse({"--steps", "1x"}), "--steps needs a number, not \"1x\".", command_line::usage_error);
  CHECK_THROWS_WITH_AS(parse({"--hidden", "96"}), "--hidden is 64, 128 or 256.", command_line::usage_error);
  CHECK_THROWS_WITH_AS(parse({"--heads", "3"}), "--heads must divide half of --hidden.", command_line::usage_error);
  CHECK_THROWS_AS(parse({"--steps", "0"}), command_line::usage_error);
  CHECK_THROWS_AS(parse({"--threads", "-1"}), command_line::usage_error);
}

TEST_CASE("options of layouts: defaults, and why a layout is refused") {
  CHECK(lm::layout_of(parse({})) == mo::layout{});
  CHECK(lm::micro_batches_of(parse({})) == 1);
  lm::options const o = parse({"--pipeline", "2", "--expert", "2", "--data", "2"});
  CHECK(lm::layout_of(o) == mo::layout{.data = 4, .pipeline = 2, .expert = 2});
  CHECK(lm::micro_batches_of(o) == 4);
  CHECK(lm::schedule_name(o) == "one_f_one_b");
  CHECK(mo::schedule_view(lm::plan_of(o).schedule).microbatches() == 4);
  CHECK(lm::schedule_name(parse({"--pipeline", "2", "--chunks", "2"})) == "interleaved_1f1b");
  auto const says = [](std::vector<char const*> const& arguments, std::string const& expected) {
    std::string said;
    try {
      parse(arguments);
    } catch (command_line::usage_error const& error) {
      said = error.what();
    }
    INFO(said);
    CHECK(said.find(expected) != said.npos);
  };
  says({"--pipeline", "0"}, "start at 1");
  says({"--expert", "3"}, "must divide the 16 experts");
  says({"--data", "3"}, "--batch must be a multiple of");
  says({"--pipeline", "3"}, "--batch must be a multiple of");
  says({"--pipeline", "4", "--chunks", "2", "--micro-batches", "8"}, "more stages than the model has blocks");
  says({"--schedule", "gpipes"}, "--schedule is one of gpipe, one_f_one_b, zb_h1");
  says({"--pipeline", "2", "--schedule", "zb_v"}, "this order needs exactly two chunks a rank");
}

TEST_CASE("help names every option and its default") {
  std::ostringstream help;
  lm::print_help(help, {});
  for (char const* expected : {"--text FILE", "--no-balance", "--minutes X", "optimiser steps [1000]", "--pipeline P",
                               "--compare-layouts ", "dual_pipe_v", "--resume FILE"})
    CHECK(help.str().find(expected) != std::string::npos);
}

TEST_CASE("the last twentieth of the text is held out; a text too short for the window is refused") {
  lm::text const t = lm::split(bytes_of(std::string(1000, 'a') + std::string(60, 'b')), 20);
  CHECK(t.training().size() == 1007);
  CHECK(t.validation().size() == 53);
  CHECK(t.validation().front() == 'b');
  CHECK_THROWS_AS(lm::split(bytes_of(std::string(400, 'a')), 20), std::runtime_error);
  CHECK_THROWS_AS(lm::read_file("no such file"), std::runtime_error);
}

TEST_CASE("windows: targets are the inputs one byte later, and a window depends on its number alone") {
  std::vector<lm::byte> text(5000);
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<lm::byte>(i % 251);
  lm::windows const two = lm::draw_windows(text, 2, 16, mo::seed{3}, 10);
  CHECK(two.sequences == std::vector<std::int64_t>{0, 16, 32});
  REQUIRE(two.tokens() == 32);
  for (std::size_t i = 0; i < 32; ++i) CHECK((two.inputs[i] + 1) % 251 == two.targets[i]);
  lm::windows const second = lm::draw_windows(text, 1, 16, mo::seed{3}, 11);
  CHECK(std::equal(second.inputs.begin(), second.inputs.end(), two.inputs.begin() + 16));
  CHECK(lm::draw_windows(text, 2, 16, mo::seed{4}, 10).inputs != two.inputs);
}

TEST_CASE("validation scores every byte but the first once, from half a context where there is one") {
  for (std::int64_t const size : {34, 35, 100, 1000}) {
    CAPTURE(size);
    std::vector<lm::byte> const text(static_cast<std::size_t>(size));
    std::vector<int> scored(static_cast<std::size_t>(size));
    for (lm::scored_window const& w : lm::all_windows(text, 32)) {
      CHECK((w.first == 0 || w.skipped >= 16));
      CHECK(w.length == 32);
      for (std::int64_t i = w.first + w.skipped; i < w.first + w.length; ++i)
        ++scored.at(static_cast<std::size_t>(i + 1));
    }
    CHECK(scored[0] == 0);
    CHECK(std::count(scored.begin(), scored.end(), 1) == size - 1);
    for (lm::scored_window const& w : lm::some_windows(text, 32, 8)) CHECK(w.first + w.length < size);
  }
}

TEST_CASE("baselines by hand") {
  std::vector<lm::byte> const training = bytes_of("abab"), held_out = bytes_of("ab");
  lm::ngram const counted(training);
  CHECK(counted.unigram('a') == doctest::Approx(3.0 / 260));
  CHECK(counted.bigram('a', 'b') == doctest::Approx((2 + 3.0 / 260) / 3));
  CHECK(counted.bigram('b', 'c') == doctest::Approx(1.0 / 260 / 2));
  CHECK(counted.unigram_bits(held_out) == doctest::Approx(std::log2(260 / 3.0)));
  double total = 0;
  for (int b = 0; b < 256; ++b) total += counted.bigram('b', static_cast<lm::byte>(b));
  CHECK(total == doctest::Approx(1));
}

TEST_CASE("the learning rate warms up, peaks, and falls to a tenth") {
  CHECK(lm::learning_rate(2, 0.025) == doctest::Approx(1));
  CHECK(lm::learning_rate(2, 0.05) == doctest::Approx(2));
  CHECK(lm::learning_rate(2, 0.525) == doctest::Approx(1.1));
  CHECK(lm::learning_rate(2, 1) == doctest::Approx(0.2));
}

TEST_CASE("the page is well-formed and whole for 1 step and for 1000; text is escaped") {
  for (int const steps : {0, 1, 30, 1000}) {
    CAPTURE(steps);
    std::string const html = written(page_of(steps));
    auto const elements = elements_of(html);
    auto const count = [&](char const* name) { return std::count(elements.begin(), elements.end(), name); };
    CHECK(count("svg") == 4 + (steps > 0 ? 3 : 0));
    CHECK(count("h2") == 4 + (steps > 0 ? 1 : 0));
    CHECK(html.size() < 400'000);
    for (char const* other : {"<script", "http://", "https://", "<link", "nan", "inf\"", "-nan"})
      CHECK(html.find(other) == html.npos);
    CHECK(html.find("a &lt;run&gt; &amp; more") != html.npos);
    CHECK(html.find("&quot;a&quot; &lt; b") != html.npos);
    CHECK(html.find("universally &amp; &quot;ac.knowledged&quot;") != html.npos);
  }
}

TEST_CASE("the page says the load of an expert over the mean, and both lengths of the step") {
  std::string const html = written(page_of(30));
  CHECK(html.find(">6.04</text>") != html.npos);  // 1000 over (15 · 110 + 1000) / 16
  CHECK(html.find("measured, 18.00 ms; and as planned, 18.00 ms") != html.npos);
  CHECK(html.find("0F0: 0.000 to 2.000 ms") != html.npos);
}

TEST_CASE("charts leave out what is not finite, and thin out many points") {
  std::ostringstream out;
  double const nan = std::numeric_limits<double>::quiet_NaN();
  lm::svg::line_chart(out, "some", {{"a", "#000", {{1, nan}, {2, 3}}}, {"b", "#111", {}}});
  CHECK_NOTHROW(elements_of(out.str()));
  CHECK(out.str().find("nan") == std::string::npos);
  std::vector<lm::svg::point> many;
  for (int i = 0; i < 1003; ++i) many.push_back({i, 2.0 * i});
  auto const few = lm::svg::thinned(many);
  REQUIRE(few.size() == 400);
  CHECK(few.front().second == 2 * few.front().first);
  CHECK(few.back().first == doctest::Approx(1001));
}
