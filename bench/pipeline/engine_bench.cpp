// SPDX-License-Identifier: Apache-2.0
// What the engine costs: steps of stages that do nothing, with messages of a few rows. Items are the actions of one rank, so a
// row's time per item is the overhead of an action, its messages included.
#include "ranks.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <algorithm>
#include <cstdint>
#include <string>

namespace {

using namespace bench;

using deployment = moiety::deployment<moiety::dynamic>;
constexpr std::int64_t tokens = 16, width = 64;
constexpr int microbatches = 64;

struct idle_stage {
  using element = float;
  using weights_type = int;
  using gradients_type = int;
  using tape_type = int;
  using rows = moiety::matrix_view<float const>;
  using room = moiety::matrix_view<float>;

  int rank;

  std::int64_t width() const { return ::width; }
  int chunks() const { return 1; }
  int stage_of(int) const { return rank; }
  int forward(int, int, rows, room, moiety::batch const&) const { return 0; }
  void backward_input(int, int, rows, room) const {}
  void backward_weights(int, int&) const {}
  void infer(int, int, rows, room, moiety::batch const&) const {}
};

void idle_steps(benchmark::State& state, int ranks, bool recorded) {
  double busy = 0;
  auto const plan = moiety::make_schedule(moiety::one_f_one_b{}, {.ranks = ranks, .microbatches = microbatches});
  auto const body = [&](moiety::context<deployment>& ctx) {
    idle_stage stage{ctx.pipeline().rank()};
    moiety::pipeline_engine engine{ctx, plan, stage};
    moiety::timeline times;
    if (recorded) engine.record(times);
    auto const batches = moiety::equal_batches(microbatches, tokens);
    int gradients = 0;
    auto const step = [&] {
      times.clear();
      engine.step(
          0, gradients, batches, [](int, auto) {}, [](int, auto, auto) { return moiety::task_loss{}; });
    };
    step();  // the arena holds what a step needs before a clock starts
    double const share = measure_on_ranks(state, ctx.world(), 20, step);
    if (ctx.world().rank() == 0) busy = share;
  };
  moiety::run<deployment>(body, {}, moiety::layout{.pipeline = ranks}, moiety::host{.threads = 1});
  constexpr auto row_bytes = static_cast<double>(tokens * width * std::int64_t{sizeof(float)});
  double const sent = 2.0 * microbatches * (ranks - 1) * row_bytes;  // activations there, gradients back
  report<float>(state, std::min(ranks, moiety::available_processors()),
                {0, std::max(2 * sent, row_bytes), 2.0 * microbatches, traffic::copy}, busy);
}

[[maybe_unused]] bool const added = [] {
  for (int const ranks : {1, 2})
    for (bool const recorded : {false, true})
      add(std::string("pipeline/idle/") + (recorded ? "recorded" : "plain") + "/ranks:" + std::to_string(ranks),
          std::min(ranks, moiety::available_processors()),
          [=](benchmark::State& state) { idle_steps(state, ranks, recorded); });
  return true;
}();

}  // namespace
