// SPDX-License-Identifier: Apache-2.0
// A layer with experts on two ranks, and a pipeline of such layers, in which one call of one rank goes wrong: for every call,
// all other ranks come to know in bounded time, whatever the call was for.
#include "backend/transport/clock_of_fault.hpp"
#include "backend/transport/faulty.hpp"
#include "backend/transport/thread_ranks.hpp"

#include <moiety/dispatcher/all_to_all.hpp>
#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <vector>

namespace {

struct faulty_threads {
  static constexpr bool single_rank = false;
  using communicator = faulty<mo::thread_communicator>;
};
struct spread : mo::deployment<mo::dynamic> {
  using transport = faulty_threads;
  using dispatcher = mo::all_to_all;
};
using context = mo::context<spread>;

struct small : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};

void of_layer(context& ctx) {
  mo::moe_layer<small, spread> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{4});
  auto gradients = layer.make_gradients();
  auto x = ctx.matrix(3, 6), y = ctx.matrix(3, 6), dx = ctx.matrix(3, 6);
  mo::fill_normal(ctx, x, mo::seed{1}, mo::first_row{std::int64_t{3} * ctx.stage().rank()});
  auto tape = layer.forward(weights, x, y);
  layer.backward(weights, tape, y, dx, gradients);
  static_cast<void>(layer.report(tape));
}

void of_pipeline(context& ctx) {
  mo::schedule const plan = mo::make_schedule(mo::one_f_one_b{}, {.ranks = 2, .microbatches = 3});
  mo::moe_stack<small, spread> stage{ctx, mo::split_layers(std::vector<int>{1, 1}, 2)};
  auto const weights = stage.make_weights(mo::seed{4});
  auto gradients = stage.make_gradients();
  mo::pipeline_engine engine{ctx, plan, stage};
  auto const fill = [&](int m, auto x) { mo::fill_normal(ctx, x, mo::seed{static_cast<std::uint64_t>(m)}); };
  engine.step(weights, gradients, mo::equal_batches(3, 2), fill,
              [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
}

struct program {
  mo::layout shape;
  void (*body)(context&);
};
program const layer{{.data = 2, .expert = 2}, of_layer}, pipeline{{.data = 2, .pipeline = 2, .expert = 2}, of_pipeline};

struct result {
  outcomes all;
  int calls = 0;
  bool happened = false;
};

result run(program const& of, fault_plan plan, bool clock = false) {
  result got;
  clock_of_fault::happened.store(false);
  plan.happened = &clock_of_fault::happened;
  mo::run_options options{.deadline = std::chrono::seconds(60)};
  if (clock) options.now = &clock_of_fault::now;
  auto const begin = std::chrono::steady_clock::now();
  got.all = thread_ranks(of.shape.world(), options).run([&](mo::thread_communicator& inner) {
    faulty<mo::thread_communicator> ranks(inner, plan);
    context ctx(mo::host{.threads = 1}, of.shape, ranks);
    of.body(ctx);
    ranks.barrier();
    if (ranks.rank() == 0) got.calls = ranks.calls();
  });
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(30));
  got.happened = clock_of_fault::happened.load();
  return got;
}

constexpr int last_calls = 2;  // start and finish of the barrier

int calls_of(program const& of) {
  result const healthy = run(of, {});
  for (auto const& outcome : healthy.all)
    if (outcome != nullptr) std::rethrow_exception(outcome);
  return healthy.calls;
}

void check_others(outcomes const& all, int rank, mo::comm_fault const* fault) {
  for (std::size_t r = 0; r < all.size(); ++r) {
    if (static_cast<int>(r) == rank) continue;
    auto const error = thrown<mo::comm_error>(all[r]);
    REQUIRE(error);
    if (fault == nullptr) continue;
    CHECK(error->fault == *fault);
    CHECK(error->rank == rank);
  }
}

}  // namespace

TEST_CASE("a rank that dies at any call of a layer or of a pipeline is known to all others") {
  mo::comm_fault const remote = mo::comm_fault::remote;
  for (program const& of : {layer, pipeline}) {
    int const calls = calls_of(of), ranks = of.shape.world();
    CHECK(calls > 30);
    int happened = 0;  // a rank may have fewer calls
    for (int call = 0; call < calls; ++call) {
      CAPTURE(call);
      int const rank = call % ranks;
      result const got = run(of, {.kind = fault::kill, .rank = rank, .call = call});
      if (!got.happened) continue;
      ++happened;
      CHECK_THROWS_AS(std::rethrow_exception(got.all[static_cast<std::size_t>(rank)]), killed);
      check_others(got.all, rank, &remote);
    }
    CHECK(2 * happened > calls);
  }
}

TEST_CASE("a call of a layer or of a pipeline that a rank leaves out or makes twice is an error of all others") {
  for (program const& of : {layer, pipeline}) {
    int const calls = calls_of(of) - last_calls, ranks = of.shape.world();
    for (fault const kind : {fault::drop, fault::duplicate}) {
      int happened = 0;
      for (int call = 0; call < calls; ++call) {
        CAPTURE(call);
        CAPTURE(static_cast<int>(kind));
        int const rank = (call + 1) % ranks;
        result const got = run(of, {.kind = kind, .rank = rank, .call = call}, true);
        if (!got.happened) continue;
        ++happened;
        check_others(got.all, rank, nullptr);
      }
      CHECK(2 * happened > calls);
    }
  }
}

TEST_CASE("a rank that is late at every call changes nothing") {
  for (program const& of : {layer, pipeline})
    for (int rank = 0; rank < of.shape.world(); ++rank)
      for (auto const& outcome : run(of, {.kind = fault::delay, .rank = rank, .call = fault_plan::every}).all)
        CHECK(outcome == nullptr);
}

TEST_CASE("a byte of a stage's message that changes on its way is a mismatch, as its label is another") {
  int seen = 0;
  int const calls = calls_of(pipeline);
  for (int call = 0; call < calls; ++call) {
    result const got = run(pipeline, {.kind = fault::corrupt, .rank = 0, .call = call}, true);
    for (auto const& outcome : got.all)
      if (auto const error = thrown<mo::comm_error>(outcome))
        seen += error->fault == mo::comm_fault::mismatch &&
                std::string(error->what()).find("was awaited") != std::string::npos;
  }
  CHECK(seen >= 3);
}
