// SPDX-License-Identifier: Apache-2.0
// The options of train_lm.
#pragma once

#include "schedules.hpp"

#include "../command_line.hpp"

#include <moiety/moiety.hpp>

#include <cstdint>
#include <ostream>
#include <span>
#include <string>
#include <vector>

namespace lm {

struct options {
  std::string text, csv = "train_lm.csv", html = "train_lm.html", checkpoint, resume, schedule, backend = "host";
  std::int64_t steps = 1000, until = 0, batch = 16, context = 128, layers = 4, hidden = 128, heads = 4, sample = 400;
  std::uint64_t seed = 1;
  double rate = 3e-3, minutes = 0, temperature = 0.7;
  int threads = 0, pipeline = 1, chunks = 1, expert = 1, data = 1, micro_batches = 0, compared = 3;
  bool balance = true, mpi = false, compare = false, report = false, quiet = false, help = false;
};

inline std::vector<command_line::option> table(options& o) {
  using command_line::flag, command_line::with_value;
  return {
      with_value("--text", "FILE", "text to learn; its last twentieth is held out", o.text),
      with_value("--steps", "N", "optimiser steps", o.steps),
      with_value("--until", "N", "stop after this step of them, 0: never", o.until),
      with_value("--batch", "N", "windows a step, of all ranks together", o.batch),
      with_value("--context", "N", "bytes a window", o.context),
      with_value("--layers", "N", "layers", o.layers),
      with_value("--hidden", "N", "width: 64, 128 or 256; experts are as wide", o.hidden),
      with_value("--heads", "N", "attention heads", o.heads),
      with_value("--seed", "N", "seed of weights, windows and sample", o.seed),
      with_value("--lr", "X", "peak learning rate", o.rate),
      with_value("--minutes", "X", "stop after this time, 0: never; the schedule follows", o.minutes),
      with_value("--backend", "NAME", "where the model lives: host, or cuda, a device that the ranks share", o.backend),
      with_value("--threads", "N", "threads of a rank, 0: the processors, shared out", o.threads),
      flag("--no-balance", "measure the balance loss, but do not train on it", o.balance, false),
      with_value("--pipeline", "P", "ranks of a pipeline", o.pipeline),
      with_value("--expert", "E", "ranks that share the experts of a stage", o.expert),
      with_value("--data", "D", "such sets of ranks, each with windows of its own; P x E x D ranks in all", o.data),
      with_value("--micro-batches", "N", "parts of a step, 0: 1, or 2 P in a pipeline", o.micro_batches),
      with_value("--chunks", "N", "stages of a pipeline rank", o.chunks),
      with_value("--schedule", "NAME", "order of a pipeline's work: " + schedule_names(), o.schedule),
      flag("--mpi", "ranks are the processes of mpirun, not threads", o.mpi, true),
      flag("--compare-layouts", "train a few steps on one rank and on these ranks, and say what agrees", o.compare,
           true),
      with_value("--compare-steps", "N", "so many steps", o.compared),
      with_value("--checkpoint", "FILE", "write weights and optimiser at the end", o.checkpoint),
      with_value("--resume", "FILE", "go on from a checkpoint, of any layout", o.resume),
      with_value("--csv", "FILE", "one line a step", o.csv),
      with_value("--html", "FILE", "a page about the run", o.html),
      flag("--report", "a line a step, with the losses and loads of all layers", o.report, true),
      with_value("--sample", "N", "bytes to sample at the end", o.sample),
      with_value("--temperature", "X", "temperature of the sample", o.temperature),
      flag("--quiet", "only the summary", o.quiet, true),
      flag("--help", "this text", o.help, true),
  };
}

inline void print_help(std::ostream& out, options defaults) {
  out << "train_lm: a byte-level language model with Mixture-of-Experts layers, trained on the CPU or a GPU.\n\n";
  command_line::print(out, table(defaults));
  out << "\nEvery layer has 16 experts, of which each byte takes 2; that is part of the type (experts.hpp).\n";
}

/// The ranks of a run: the windows of a step are shared by expert · data ranks.
inline mo::layout layout_of(options const& o) {
  return {.data = o.data * o.expert, .pipeline = o.pipeline, .expert = o.expert};
}

inline int micro_batches_of(options const& o) {
  if (o.micro_batches > 0) return o.micro_batches;
  return o.pipeline == 1 ? 1 : 2 * o.pipeline;
}

inline std::string schedule_name(options const& o) {
  return !o.schedule.empty() ? o.schedule : o.chunks == 1 ? "one_f_one_b" : "interleaved_1f1b";
}
inline pipeline_plan plan_of(options const& o) {
  return make_plan(schedule_name(o), {.ranks = o.pipeline, .chunks = o.chunks, .microbatches = micro_batches_of(o)});
}

/// What concerns ranks.
inline void check_layout(options const& o) {
  using command_line::require;
  require(o.pipeline > 0 && o.expert > 0 && o.data > 0 && o.chunks > 0,
          "--pipeline, --expert, --data and --chunks start at 1.");
  require(o.micro_batches >= 0, "--micro-batches must not be negative.");
  require(o.pipeline <= 256 && o.expert <= 16 && o.data <= 256 && o.chunks <= 256,
          "--pipeline, --data and --chunks end at 256, --expert at 16.");
  require(16 % o.expert == 0, "--expert must divide the 16 experts.");
  require(o.batch % (std::int64_t{micro_batches_of(o)} * o.expert * o.data) == 0,
          "--batch must be a multiple of micro-batches x expert x data ranks (micro-batches are 2 P in a pipeline).");
  try {
    require(mo::schedule_view(plan_of(o).schedule).stages() <= o.layers + 2,
            "--pipeline and --chunks make more stages than the model has blocks: its layers, embedding and head.");
  } catch (mo::schedule_error const& error) {
    throw command_line::usage_error(error.what());
  }
}

inline void check(options const& o) {
  using command_line::require;
  require(o.steps > 0 && o.batch > 0 && o.context > 0 && o.layers > 0, "steps, batch, context and layers start at 1.");
  require(o.hidden == 64 || o.hidden == 128 || o.hidden == 256, "--hidden is 64, 128 or 256.");
  require(o.heads > 0 && o.hidden % (2 * o.heads) == 0, "--heads must divide half of --hidden.");
  require(o.rate > 0 && o.temperature > 0, "--lr and --temperature must be positive.");
  require(o.threads >= 0 && o.sample >= 0 && o.minutes >= 0 && o.until >= 0,
          "--threads, --sample, --minutes and --until must not be negative.");
  require(o.compared > 0, "--compare-steps starts at 1.");
  require(o.backend == "host" || o.backend == "cuda", "--backend is host or cuda.");
  require(o.backend == "host" || !o.mpi, "--mpi: ranks of cuda are threads that share a device.");
  check_layout(o);
}

/// Throws command_line::usage_error, also for a size that cannot work.
inline options parse(std::span<char const* const> arguments, options parsed = {}) {
  command_line::parse(arguments, table(parsed));
  if (!parsed.help) check(parsed);
  return parsed;
}

}  // namespace lm
