// SPDX-License-Identifier: Apache-2.0
// The options of train_lm.
#pragma once

#include <command_line.hpp>

#include <cstdint>
#include <ostream>
#include <span>
#include <string>
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

inline std::vector<command_line::option> table(options& o) {
  using command_line::flag, command_line::with_value;
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

inline void print_help(std::ostream& out, options defaults) {
  out << "train_lm: a byte-level language model with Mixture-of-Experts layers, trained on the CPU.\n\n";
  command_line::print(out, table(defaults));
  out << "\nEvery layer has 16 experts, of which each byte takes 2; that is part of the type (experts.hpp).\n";
}

inline void check(options const& o) {
  using command_line::require;
  require(o.steps > 0 && o.batch > 0 && o.context > 0 && o.layers > 0, "steps, batch, context and layers start at 1.");
  require(o.hidden == 64 || o.hidden == 128 || o.hidden == 256, "--hidden is 64, 128 or 256.");
  require(o.heads > 0 && o.hidden % (2 * o.heads) == 0, "--heads must divide half of --hidden.");
  require(o.rate > 0 && o.temperature > 0, "--lr and --temperature must be positive.");
  require(o.threads >= 0 && o.sample >= 0 && o.minutes >= 0, "--threads, --sample and --minutes must not be negative.");
}

/// Throws command_line::usage_error, also for a size that cannot work.
inline options parse(std::span<char const* const> arguments, options parsed = {}) {
  command_line::parse(arguments, table(parsed));
  if (!parsed.help) check(parsed);
  return parsed;
}

}  // namespace lm
