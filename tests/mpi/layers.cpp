// SPDX-License-Identifier: Apache-2.0
// Layers and pipelines on the processes of a job, against one rank in each of them.
#include "properties/ranks.hpp"

#include <moiety/dispatcher/all_gather.hpp>
#include <moiety/dispatcher/padded.hpp>
#include <moiety/dispatcher/two_level.hpp>
#include <moiety/moiety.hpp>
#include <moiety/mpi.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <ratio>
#include <utility>
#include <vector>

namespace {

namespace mo = moiety;

int processes() { return mo::detail::mpi_session::get(), mo::mpi_communicator::world({}).size(); }

/// Layouts of all processes: experts on all of them, or on some, or split.
std::vector<mo::layout> layouts(int ranks) {
  if (ranks == 1) return {{}};
  std::vector<mo::layout> all{{.data = ranks, .expert = ranks}, {.data = ranks}, {.data = ranks, .expert_tensor = 2}};
  if (ranks % 4 == 0) all.push_back({.data = ranks / 2, .tensor = 2, .expert = ranks / 2});
  return all;
}

/// Those in which the ranks that share experts are nodes of two.
std::vector<mo::layout> layouts_of_nodes(int ranks) {
  std::vector<mo::layout> all;
  if (ranks % 2 == 0) all.push_back({.data = ranks, .expert = ranks});
  if (ranks % 4 == 0) all.push_back({.data = ranks / 2, .tensor = 2, .expert = ranks});
  if (ranks % 4 == 0) all.push_back({.data = ranks, .expert = 2});
  return all;
}

template <class Spec, class Dispatcher> void same_as_one_rank(std::vector<mo::layout> const& shapes) {
  using T = float;
  auto const options = ranks::trained<Spec>();
  for (mo::layout const& shape : shapes) {
    INFO(mo::detail::sentence(shape));
    ranks::cut tokens;
    for (std::int64_t r = 0; r < shape.stage(); ++r) tokens.push_back(r == 1 ? 0 : 9 + 4 * r);
    auto const one = ranks::step_on<Spec, T>({}, {ranks::cut{ranks::total(tokens)}}, options);
    ranks::check_same(ranks::step_on<Spec, T, Dispatcher, mo::mpi>(shape, {tokens}, options), one, shape);
  }
}

using plain = ranks::small<mo::router<mo::softmax, mo::top_k<2>>>;
using chosen = ranks::small<mo::router<mo::softmax, mo::top_k<6>>>;
struct limited : plain {
  using capacity = mo::capacity<std::ratio<3, 4>>;
};

struct block : mo::layer_spec<mo::dims{.hidden = 12, .ffn = 10, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>>;
};
template <class Transport> struct staged : mo::deployment<mo::dynamic> { using transport = Transport; };

/// Losses of 4 layers, and the norm of their gradients.
template <class Transport> std::pair<std::vector<double>, double> step(mo::layout const& shape) {
  using deployment = staged<Transport>;
  return mo::run<deployment>(
      [](mo::context<deployment>& ctx) {
        int const ranks = ctx.pipeline().size();
        mo::schedule const plan = mo::make_schedule(mo::one_f_one_b{}, {.ranks = ranks, .microbatches = 4});
        auto const split = mo::split_layers(std::array{1, 1, 1, 1}, ranks);
        mo::moe_stack<block, deployment> stage{ctx, split, {.losses = {mo::load_balance<>{.coefficient = 0.1f}}}};
        auto const weights = stage.make_weights(mo::seed{3});
        auto gradients = stage.make_gradients();
        mo::pipeline_engine engine{ctx, plan, stage};
        auto const report = engine.step(
            weights, gradients, mo::equal_batches(4, 16),
            [&](int m, auto x) { mo::fill_normal(ctx, x, mo::seed{7}, mo::first_row{16 * m}); },
            [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
        return std::pair(report.template per_layer<mo::load_balance<>>(), mo::global_norm(ctx, gradients));
      },
      {}, shape);
}

}  // namespace

TEST_CASE("layers on processes give what one rank gives") {
  same_as_one_rank<plain, mo::all_to_all>(layouts(processes()));
  same_as_one_rank<plain, mo::keep_rows<mo::chunked<2>>>(layouts(processes()));
}

TEST_CASE("layers whose rows cross between nodes of two processes first, or travel in blocks of one size") {
  same_as_one_rank<plain, mo::two_level<2>>(layouts_of_nodes(processes()));
  same_as_one_rank<limited, mo::keep_rows<mo::padded_all_to_all<60>>>(layouts(processes()));
}

TEST_CASE("rows that MPI's own sums bring home are those of one rank to rounding") {
  auto const options = ranks::trained<chosen>();
  for (mo::layout const& shape : layouts(processes())) {
    INFO(mo::detail::sentence(shape));
    ranks::cut tokens;
    for (std::int64_t r = 0; r < shape.stage(); ++r) tokens.push_back(r == 1 ? 0 : 150 + 40 * r);
    auto const one = ranks::step_on<chosen, float>({}, {ranks::cut{ranks::total(tokens)}}, options);
    ranks::check_close(ranks::step_on<chosen, float, mo::all_gather_tokens, mo::mpi, mo::host, mo::numerics::fastest>(
                           shape, {tokens}, options),
                       one, shape);
  }
}

TEST_CASE("a pipeline of processes has the losses and gradients of one rank") {
  auto const one = step<mo::threads>({}), many = step<mo::mpi>({.pipeline = processes()});
  CHECK(many.first == one.first);
  CHECK(many.second == one.second);
  CHECK(one.second > 0);
}
