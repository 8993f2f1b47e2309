// SPDX-License-Identifier: Apache-2.0
// The command line: one table gives parsing, defaults and the text of --help.
#pragma once

#include <algorithm>
#include <charconv>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iomanip>
#include <ostream>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace lm {

struct options {
  std::string text, csv = "train_lm.csv";
  std::int64_t steps = 1000, batch = 16, context = 128, layers = 4, hidden = 128, heads = 4, sample = 400;
  std::uint64_t seed = 1;
  double rate = 3e-3, minutes = 0, temperature = 0.7;
  int threads = 0;
  bool balance = true, quiet = false, help = false;
};

/// A command line that cannot be obeyed.
struct usage_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace command_line {

struct option {
  std::string name, value, help;  // an empty value marks a switch
  std::function<void(std::string const&)> set;
};

inline void store(std::string const&, std::string const& text, std::string& to) { to = text; }

template <class Number>
requires std::integral<Number> || std::floating_point<Number>
void store(std::string const& name, std::string const& text, Number& to) {
  Number parsed{};
  char const* const end = text.data() + text.size();
  auto const [stop, error] = std::from_chars(text.data(), end, parsed);
  if (error != std::errc{} || stop != end) throw usage_error(name + " needs a number, not \"" + text + "\".");
  to = parsed;
}

template <class Value> option with_value(std::string name, std::string value, std::string const& help, Value& to) {
  std::ostringstream text;
  text << help;
  if (std::ostringstream current; current << to, !current.str().empty()) text << " [" << current.str() << ']';
  return {name, std::move(value), text.str(), [name, &to](std::string const& given) { store(name, given, to); }};
}

inline option flag(std::string name, std::string help, bool& to, bool value) {
  return {std::move(name), "", std::move(help), [&to, value](std::string const&) { to = value; }};
}

inline std::vector<option> table(options& o) {
  return {
      with_value("--text", "FILE", "text to learn; its last twentieth is held out", o.text),
      with_value("--steps", "N", "optimiser steps", o.steps),
      with_value("--batch", "N", "windows a step", o.batch),
      with_value("--context", "N", "bytes a window", o.context),
      with_value("--layers", "N", "layers", o.layers),
      with_value("--hidden", "N", "width: 64, 128 or 256; experts are as wide", o.hidden),
      with_value("--heads", "N", "attention heads", o.heads),
      with_value("--seed", "N", "seed of weights, windows and sample", o.seed),
      with_value("--lr", "X", "peak learning rate", o.rate),
      with_value("--minutes", "X", "stop after this time, 0: never; the schedule follows", o.minutes),
      with_value("--threads", "N", "threads, 0: one a processor", o.threads),
      flag("--no-balance", "measure the balance loss, but do not train on it", o.balance, false),
      with_value("--csv", "FILE", "one line a step", o.csv),
      with_value("--sample", "N", "bytes to sample at the end", o.sample),
      with_value("--temperature", "X", "temperature of the sample", o.temperature),
      flag("--quiet", "only the summary", o.quiet, true),
      flag("--help", "this text", o.help, true),
  };
}

}  // namespace command_line

inline void print_help(std::ostream& out, options defaults) {
  out << "train_lm: a byte-level language model with Mixture-of-Experts layers, trained on the CPU.\n\n";
  for (auto const& option : command_line::table(defaults))
    out << "  " << std::left << std::setw(18) << option.name + ' ' + option.value << option.help << '\n';
  out << "\nEvery layer has 16 experts, of which each byte takes 2; that is part of the type (experts.hpp).\n";
}

inline void check(options const& o) {
  auto const require = [](bool holds, char const* sentence) {
    if (!holds) throw usage_error(sentence);
  };
  require(o.steps > 0 && o.batch > 0 && o.context > 0 && o.layers > 0, "steps, batch, context and layers start at 1.");
  require(o.hidden == 64 || o.hidden == 128 || o.hidden == 256, "--hidden is 64, 128 or 256.");
  require(o.heads > 0 && o.hidden % (2 * o.heads) == 0, "--heads must divide half of --hidden.");
  require(o.rate > 0 && o.temperature > 0, "--lr and --temperature must be positive.");
  require(o.threads >= 0 && o.sample >= 0 && o.minutes >= 0, "--threads, --sample and --minutes must not be negative.");
}

/// Throws usage_error for an unknown option, a missing or malformed value, or a size that cannot work.
inline options parse(std::span<char const* const> arguments, options parsed = {}) {
  auto const known = command_line::table(parsed);
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    std::string const name = arguments[i];
    auto const found =
        std::find_if(known.begin(), known.end(), [&](auto const& option) { return option.name == name; });
    if (found == known.end()) throw usage_error("unknown option " + name + ".");
    if (!found->value.empty() && i + 1 == arguments.size()) throw usage_error(name + " needs a value.");
    found->set(found->value.empty() ? "" : arguments[++i]);
  }
  if (!parsed.help) check(parsed);
  return parsed;
}

}  // namespace lm
