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

#include <mpi.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <ratio>
#include <span>
#include <stdexcept>
#include <string>
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
using grouped = ranks::small<mo::router<mo::sigmoid, mo::selection_bias, mo::groups<4, 2>, mo::top_k<3>,
                                        mo::renormalised, mo::scale<std::ratio<5, 2>>>>;
struct limited : plain {
  using capacity = mo::capacity<std::ratio<3, 4>>;
};

struct block : mo::layer_spec<mo::dims{.hidden = 12, .ffn = 10, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>>;
};
template <class Transport> struct staged : mo::deployment<mo::dynamic> { using transport = Transport; };

using gradients_by_name = std::map<std::string, std::vector<float>>;

/// What this process has of a step: losses of 8 layers, the norm of their gradients, and its part of these.
struct outcome {
  std::vector<double> losses{};
  double norm = 0;
  gradients_by_name whole{};        // on one rank, or of its stage
  gradients_by_name own_experts{};  // its slices
  std::map<std::string, mo::parameter> parameters{};
};

struct broken : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr int micro = 8, layers = 8;
constexpr std::int64_t rows = 16;

template <class Transport, class Order>
outcome step(Order const& order, mo::layout const& shape, int chunks = 1, bool fails = false) {
  using deployment = staged<Transport>;
  return mo::run<deployment>(
      [&](mo::context<deployment>& ctx) {
        int const ranks = ctx.pipeline().size();
        mo::schedule const plan = mo::make_schedule(order, {.ranks = ranks, .chunks = chunks, .microbatches = micro});
        auto const split = mo::split_layers(std::vector<int>(layers, 1), mo::schedule_view(plan).stages());
        mo::moe_stack<block, deployment> stage{
            ctx, split, {.losses = {mo::load_balance<>{.coefficient = 0.1f}}}, Order::placed};
        auto const weights = stage.make_weights(mo::seed{3});
        auto gradients = stage.make_gradients();
        mo::pipeline_engine engine{ctx, mo::schedule_view(plan), stage};
        auto const mine = mo::slice_of(rows, ctx.stage().rank(), ctx.stage().size());
        auto const report = engine.step(
            weights, gradients, mo::equal_batches(micro, mine.count),
            [&](int m, auto x) { mo::fill_normal(ctx, x, mo::seed{7}, mo::first_row{rows * m + mine.first}); },
            [&](int m, auto y, auto dy) {
              if (fails && m == 3) throw broken("no loss");
              return mo::square_error(ctx, y, dy);
            });
        outcome out{report.template per_layer<mo::load_balance<>>()};
        gradients.for_each([&](mo::parameter const& p, std::span<float> values) {
          if (!p.of_experts) ctx.stage().all_reduce(values);
          (p.of_experts ? out.own_experts : out.whole)[p.name].assign(values.begin(), values.end());
          out.parameters[p.name] = p;
        });
        out.norm = mo::global_norm(ctx, gradients);
        return out;
      },
      {}, shape);
}

/// Losses to the bit, gradients too where the same terms are added in the same order.
void check_same(outcome const& many, outcome const& one, bool same_order, bool whole_batches) {
  CHECK(many.losses == one.losses);
  double const rounding = ranks::bound<float>(micro * rows);
  if (same_order && whole_batches) CHECK(many.norm == one.norm);
  CHECK(std::abs(many.norm / one.norm - 1) < rounding);
  CHECK_FALSE(many.whole.empty());
  for (auto const& gradient : many.whole) {
    INFO(gradient.first);
    auto const& wanted = one.whole.at(gradient.first);
    if (same_order && whole_batches) CHECK(ranks::same_bits(gradient.second, wanted));
    CHECK(ranks::distance(gradient.second, wanted) < rounding);
  }
  for (auto const& gradient : many.own_experts) {
    INFO(gradient.first);
    std::vector<float> wanted;
    auto const& all = one.own_experts.at(gradient.first);
    many.parameters.at(gradient.first).for_each_piece([&](std::int64_t first, std::int64_t count) {
      wanted.insert(wanted.end(), all.begin() + first, all.begin() + first + count);
    });
    if (same_order) CHECK(ranks::same_bits(gradient.second, wanted));
    CHECK(ranks::distance(gradient.second, wanted) < rounding);
  }
}

}  // namespace

TEST_CASE("layers on processes give what one rank gives") {
  same_as_one_rank<plain, mo::all_to_all>(layouts(processes()));
  same_as_one_rank<plain, mo::keep_rows<mo::chunked<2>>>(layouts(processes()));
  same_as_one_rank<grouped, mo::all_to_all>(layouts(processes()));
  same_as_one_rank<limited, mo::all_to_all>(layouts(processes()));
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

TEST_CASE("a pipeline of processes has the losses and gradients of one rank, in any order") {
  auto const one = step<mo::threads>(mo::gpipe{}, {});
  CHECK(one.norm > 0);
  int const all = processes();
  auto const check = [&](auto const& order, int chunks) {
    INFO(std::string(order.name));
    bool const same_order = order.gradients == mo::gradient_order::ascending;
    check_same(step<mo::mpi>(order, {.pipeline = all}, chunks), one, same_order, true);
    if (all == 4)
      check_same(step<mo::mpi>(order, {.data = 2, .pipeline = 2, .expert = 2}, chunks), one, same_order, false);
  };
  check(mo::one_f_one_b{}, 1);
  check(mo::zb_h1{}, 1);
  check(mo::interleaved_1f1b{}, 2);
  check(mo::zb_v{}, 2);
  check(mo::dual_pipe_v{}, 2);
  if (all % 2 == 0) check(mo::dual_pipe{}, 2);
}

TEST_CASE("a step that fails on one process ends on all, and the next run is whole") {
  auto const one = step<mo::threads>(mo::gpipe{}, {});
  int const all = processes(), rank = mo::mpi_communicator::world({}).rank();
  auto const check = [&](auto const& order, int chunks, int fails) {
    INFO(std::string(order.name));
    if (rank == fails)
      CHECK_THROWS_AS(step<mo::mpi>(order, {.pipeline = all}, chunks, true), broken);
    else
      CHECK_THROWS_AS(step<mo::mpi>(order, {.pipeline = all}, chunks, true), mo::comm_error);
    MPI_Barrier(MPI_COMM_WORLD);  // who failed may still be there
    check_same(step<mo::mpi>(order, {.pipeline = all}, chunks), one, true, true);
  };
  check(mo::one_f_one_b{}, 1, all - 1);
  check(mo::zb_v{}, 2, 0);  // the last stage is on the first rank
}
