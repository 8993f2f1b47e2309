// SPDX-License-Identifier: Apache-2.0
// train_lm at a smaller size: its options, text, baselines and optimiser; that it learns, gives the same bits for every
// number of threads, and that its experts stay balanced because of the balance loss and not without it.
#include "../../examples/train_lm/train.hpp"

#include "instrumented.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace mo = moiety;

lm::options parse(std::vector<char const*> const& arguments) { return lm::parse(arguments); }

std::vector<lm::byte> bytes_of(std::string const& text) { return {text.begin(), text.end()}; }

lm::text austen(std::int64_t window, std::size_t size) {
  auto const path = std::filesystem::path(__FILE__).parent_path() / "../../examples/train_lm/data/austen.txt";
  std::vector<lm::byte> bytes = lm::read_file(path.string());
  bytes.resize(std::min(size, bytes.size()));
  return lm::split(std::move(bytes), window);
}

lm::options small() {
  lm::options o;
  o.csv = "";
  o.steps = 4, o.batch = 4, o.context = 32, o.layers = 1, o.hidden = 64, o.heads = 2, o.sample = 8;
  o.quiet = true;
  return o;
}

struct three_weights {
  std::vector<float> value{1, -2, 3}, gradient{40, -0.5f, 0};
  template <class Function> void for_each_parameter(Function&& f) {
    f(std::string("w"), std::span<float>(value), std::span<float>(gradient), /*decayed=*/true);
  }
};

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

TEST_CASE("help names every option and its default") {
  std::ostringstream help;
  lm::print_help(help, {});
  for (char const* expected : {"--text FILE", "--no-balance", "--minutes X", "optimiser steps [1000]"})
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
  for (std::size_t i = 0; i < 32; ++i) CHECK((two.inputs[i] + 1) % 251 == two.targets[i]);
  lm::windows const second = lm::draw_windows(text, 1, 16, mo::seed{3}, 11);
  CHECK(std::equal(second.inputs.begin(), second.inputs.end(), two.inputs.begin() + 16));
  CHECK(lm::draw_windows(text, 2, 16, mo::seed{4}, 10).inputs != two.inputs);
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

TEST_CASE("the first step of AdamW moves every weight by the rate, against the sign of its gradient") {
  mo::context<> ctx;
  three_weights model;
  lm::adamw<mo::context<>> optimiser(ctx);
  CHECK(optimiser.step(model, 0.1, 0.5) == doctest::Approx(std::sqrt(400 + 0.0625)));
  CHECK(model.value[0] == doctest::Approx(1 * 0.99 - 0.1));
  CHECK(model.value[1] == doctest::Approx(-2 * 0.99 + 0.1));
  CHECK(model.value[2] == doctest::Approx(3 * 0.99));
}

TEST_CASE("what follows changes no bit of an earlier byte's logits") {
  mo::context<> ctx;
  using block = lm::expert_block<64>;
  lm::language_model<block, mo::context<>> model(ctx, {.layers = 2, .hidden = 64, .heads = 2},
                                                 lm::expert_options<block>(true), mo::seed{1});
  std::vector<lm::byte> const text = bytes_of("It is a truth universally acknowledged, that a single man");
  auto const size = static_cast<std::int64_t>(text.size());
  mo::matrix<float> const& logits = model.infer(text, size);
  std::vector<float> const together(logits.begin(), logits.end());
  for (std::int64_t const length : {1, 16, 33}) {
    CAPTURE(length);
    mo::matrix<float> const& alone = model.infer(lm::text_view(text).first(static_cast<std::size_t>(length)), length);
    CHECK(std::equal(alone.begin(), alone.end(), together.begin()));
  }
}

TEST_CASE("same seed, same bits: any number of threads, and a second run") {
  lm::text const text = austen(32, 20000);
  lm::options o = small();
  o.threads = 1;
  lm::summary const first = lm::train(text, o);
  CHECK(first.steps == 4);
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

TEST_CASE("a run that is out of time stops after the step it is in") {
  lm::options o = small();
  o.minutes = 1e-9;
  CHECK(lm::train(austen(32, 20000), o).steps == 1);
}

TEST_CASE("the CSV has a line for every step") {
  auto const path = std::filesystem::temp_directory_path() / "train_lm_test.csv";
  lm::options o = small();
  o.csv = path.string();
  lm::train(austen(32, 20000), o);
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  std::filesystem::remove(path);
  REQUIRE(lines.size() == 5);
  CHECK(lines[0].starts_with("step,bits_per_byte,load_balance,router_z,max_over_mean_load,"));
  CHECK(lines[4].starts_with("4,"));
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
