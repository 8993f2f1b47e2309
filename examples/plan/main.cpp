// SPDX-License-Identifier: Apache-2.0
// plan: which pipeline order, layout and split suits a model on a number of ranks. plan --help.
#include "measured.hpp"
#include "planner.hpp"

#include <command_line.hpp>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <span>
#include <sstream>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

struct options {
  std::string model = "qwen3_30b_a3b", measured, svg, csv;
  int ranks = 16, microbatches = 64, show = 12;
  std::int64_t tokens = 4096, sequence = 4096, bytes_per_parameter = 16;
  double memory = 141, tflops = 400, link = 50;
  bool help = false;
};

std::vector<command_line::option> table(options& o) {
  using command_line::flag, command_line::with_value;
  return {
      with_value("--model", "NAME", "mixtral_8x7b, olmoe_1b_7b or qwen3_30b_a3b", o.model),
      with_value("--ranks", "N", "ranks in all", o.ranks),
      with_value("--memory", "GB", "memory of a rank", o.memory),
      with_value("--microbatches", "N", "micro-batches of a step, over all replicas", o.microbatches),
      with_value("--tokens", "N", "tokens of a micro-batch", o.tokens),
      with_value("--sequence", "N", "length of a sequence, which attention sees", o.sequence),
      with_value("--tflops", "X", "10^12 operations a second that a rank's products reach", o.tflops),
      with_value("--link", "GB/s", "what a rank sends at once", o.link),
      with_value("--bytes-per-parameter", "N", "weights, gradients and optimiser state", o.bytes_per_parameter),
      with_value("--measured", "FILE", "times of the blocks, instead of --tflops; see below", o.measured),
      with_value("--show", "N", "plans to list", o.show),
      with_value("--svg", "FILE", "write the drawing of the best plan", o.svg),
      with_value("--csv", "FILE", "write the actions of the best plan", o.csv),
      flag("--help", "this text", o.help, true),
  };
}

plan::question question_of(options const& o) {
  using command_line::require;
  require(o.ranks > 0 && o.microbatches > 0 && o.tokens > 0 && o.sequence > 0, "sizes start at 1.");
  require(o.ranks <= 4096 && o.microbatches <= 65536, "--ranks ends at 4096, --microbatches at 65536.");
  require(o.memory > 0 && o.tflops > 0 && o.link > 0 && o.bytes_per_parameter > 0, "speeds and memory are positive.");
  plan::machine const on{o.tflops * 1e12, o.link * 1e9, static_cast<std::int64_t>(o.memory * 1e9),
                         o.bytes_per_parameter};
  for (plan::model const& m : plan::models)
    if (m.name == o.model) {
      plan::question q{m, on, o.ranks, o.microbatches, o.tokens, o.sequence};
      if (!o.measured.empty()) q.measured = plan::read_measured(o.measured, plan::blocks_of(m));
      return q;
    }
  throw command_line::usage_error("no model is called " + o.model + ".");
}

/// 9 8 8 7 as it is; longer lists with runs shortened: 5 6×14 5.
std::string shortened(mo::layer_split<std::vector<int>> const& split) {
  std::ostringstream out;
  for (int s = 0, run = 1; s < split.stages(); s += run, run = 1) {
    while (s + run < split.stages() && split.count(s + run) == split.count(s)) ++run;
    out << (s > 0 ? " " : "") << split.count(s);
    if (run > 1) out << "×" << run;
  }
  return out.str();
}

void print(plan::proposal const& p, int number) {
  mo::schedule_view const schedule = p.schedule;
  std::ostringstream sizes;
  sizes << p.ranks.data << '/' << p.ranks.pipeline << '/' << p.ranks.expert;
  std::cout << std::right << std::setw(3) << number << "  " << std::left << std::setw(28) << schedule.name()
            << std::setw(12) << sizes.str() << std::right << std::setw(6) << schedule.shape().chunks << std::setw(7)
            << schedule.microbatches() << std::fixed << std::setprecision(1) << std::setw(11)
            << static_cast<double>(p.step()) / 1e6 << std::setw(10) << static_cast<double>(p.makespan) / 1e6
            << std::setw(8) << static_cast<double>(p.bubble) / 1e6 << std::setw(8) << p.idle * 100 << std::setw(8)
            << static_cast<double>(p.memory) / 1e9 << std::setw(9) << p.buffers << "  " << shortened(p.split) << '\n';
}

void print(plan::question const& q, plan::answer const& plans, options const& o) {
  std::cout << q.what.name << " on " << q.ranks << " ranks: " << q.what.layers << " layers, " << o.microbatches
            << " micro-batches of " << o.tokens << " tokens\n\n"
            << "  #  order                       data/pipe/exp chunks  m/rep    step ms  makespan  bubble  idle %      "
               "GB  buffers  "
               "blocks of each stage\n";
  int number = 0;
  for (plan::proposal const& p : plans.proposals)
    if (number < o.show) print(p, ++number);
  std::cout
      << "\nstep: the makespan and the sum of gradients over replicas; bubble: the makespan without the work of the\n"
         "busiest rank; buffers: messages that a rank holds at once, at most.\n\n"
      << plans.proposals.size() << " plans are possible.";
  if (!plans.impossible.empty()) std::cout << " Others are not:";
  std::cout << '\n';
  for (auto const& [reason, count] : plans.impossible) std::cout << std::setw(6) << count << "  " << reason << '\n';
  if (plans.proposals.empty()) return;
  plan::proposal const& best = plans.proposals.front();
  std::cout << "\nThe first one, in nanoseconds, then " << static_cast<double>(best.reduction) / 1e6
            << " ms for the sum of gradients over replicas:\n"
            << mo::draw(best.schedule, best.costs(), 150);
  if (!o.svg.empty()) {
    std::ofstream out(o.svg);
    mo::draw_svg(out, best.schedule, best.costs());
    if (!out.flush()) throw std::runtime_error("cannot write " + o.svg + ".");
  }
  if (!o.csv.empty()) {
    std::ofstream out(o.csv);
    out << mo::to_csv(best.schedule) << '\n';
    if (!out.flush()) throw std::runtime_error("cannot write " + o.csv + ".");
  }
}

}  // namespace

int main(int argc, char** argv) try {
  options o;
  command_line::parse({argv + 1, static_cast<std::size_t>(argc - 1)}, table(o));
  if (o.help) {
    options defaults;
    std::cout << "plan: which pipeline order, layout and split suits a model on a number of ranks.\n\n";
    command_line::print(std::cout, table(defaults));
    std::cout << "\nTimes are FLOPs over --tflops and bytes over --link: good for comparing plans, not for promising "
                 "speed.\nMeasured times are a line a block (embedding, layers, head): nanoseconds of forward, input "
                 "half and weight\nhalf of a micro-batch on one rank, without expert exchange, which --link gives.\n";
    return 0;
  }
  plan::question const q = question_of(o);
  plan::answer const plans = plan::make_plans(q);
  print(q, plans, o);
  return plans.proposals.empty() ? 1 : 0;
} catch (command_line::usage_error const& error) {
  std::cerr << "plan: " << error.what() << " See --help.\n";
  return 2;
} catch (std::exception const& error) {
  std::cerr << "plan: " << error.what() << '\n';
  return 1;
}
