// SPDX-License-Identifier: Apache-2.0
// Losses that travel with the activations, as other systems have it, are the losses of the report: a second way to the same
// numbers, and the gradients of a stack that carries nothing.
#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace mo = moiety;

namespace {

constexpr std::int64_t hidden = 8;

struct block : mo::layer_spec<mo::dims{.hidden = hidden, .ffn = 6, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};
struct spread : mo::deployment<mo::dynamic> {
  using element = double;
};
using stack = mo::moe_stack<block, spread>;
using view = mo::matrix_view<double>;
using const_view = mo::matrix_view<double const>;

/// A stack whose rows have one more column: in the first row, the weighted losses of all layers so far.
struct carrying {
  using spec = block;
  using element = double;
  using weights_type = stack::weights_type;
  using gradients_type = stack::gradients_type;
  using tape_type = stack::tape_type;

  explicit carrying(stack its_layers) : inner(std::move(its_layers)) {}

  stack inner;

  static const_view rows(const_view m) { return {m.data(), m.rows(), hidden, m.stride()}; }
  static view rows(view m) { return {m.data(), m.rows(), hidden, m.stride()}; }

  std::int64_t width() const { return hidden + 1; }
  std::int64_t layers() const { return inner.layers(); }
  int chunks() const { return inner.chunks(); }
  int stage_of(int chunk) const { return inner.stage_of(chunk); }

  tape_type forward(weights_type const& weights, int chunk, const_view x, view y, mo::batch const& about) const {
    tape_type tape = inner.forward(weights, chunk, rows(x), rows(y), about);
    for (std::int64_t t = 0; t < y.rows(); ++t) y(t, hidden) = x(t, hidden);
    for (auto const& layer : tape.layers)
      y(0, hidden) += mo::loss_report<block>({mo::layer_record<block>(std::get<0>(layer))}).total();
    return tape;
  }
  void infer(weights_type const& weights, int chunk, const_view x, view y, mo::batch const& about) const {
    inner.infer(weights, chunk, rows(x), rows(y), about);
    for (std::int64_t t = 0; t < y.rows(); ++t) y(t, hidden) = x(t, hidden);
  }
  void backward_input(weights_type const& weights, tape_type& tape, const_view dy, view dx) const {
    inner.backward_input(weights, tape, rows(dy), rows(dx));
    for (std::int64_t t = 0; t < dx.rows(); ++t) dx(t, hidden) = 0;
  }
  void backward_weights(tape_type& tape, gradients_type& gradients) const { inner.backward_weights(tape, gradients); }
  void record(tape_type const& tape, mo::loss_ledger<block>& ledger) const { inner.record(tape, ledger); }
};
static_assert(mo::records_losses<carrying>);

using values = std::map<std::string, std::vector<double>>;

struct outcome {
  double reported = 0, carried = 0, norm = 0;
  values gradients;  // of this process's first rank
};

constexpr int micro = 4;

/// A step of four layers; Stage is the stack, or one that carries.
template <class Stage, class Order> outcome step_on(int stages, Order const& order) {
  return mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        stack layers{ctx,
                     mo::split_by_counts(std::vector<int>(static_cast<std::size_t>(stages), 4 / stages), 4),
                     {.losses = {mo::load_balance<>{.coefficient = 0.5f}, mo::router_z{.coefficient = 0.25f}}}};
        auto const weights = layers.make_weights(mo::seed{3});
        auto gradients = layers.make_gradients();
        Stage stage(std::move(layers));
        auto const plan = mo::make_schedule(order, {.ranks = stages, .microbatches = micro});
        double carried = 0;
        mo::pipeline_engine engine{ctx, plan, stage};
        auto const report = engine.step(
            weights, gradients, mo::equal_batches(micro, 20),
            [&](int m, view x) {
              for (std::int64_t t = 0; t < x.rows(); ++t)
                for (std::int64_t h = 0; h < x.cols(); ++h)
                  x(t, h) = h == hidden ? 0 : mo::normal(mo::seed{m}, 1, static_cast<std::uint64_t>(t * hidden + h));
            },
            [&](int, view y, view dy) {
              if (y.cols() > hidden) carried += y(0, hidden);
              mo::task_loss const found = mo::square_error(ctx, carrying::rows(y), carrying::rows(dy));
              if (y.cols() > hidden)
                for (std::int64_t t = 0; t < dy.rows(); ++t) dy(t, hidden) = 0;
              return found;
            });
        std::vector<double> from_last(static_cast<std::size_t>(ctx.pipeline().size()));
        ctx.pipeline().template all_gather<double>({&carried, 1}, from_last);
        outcome all{.reported = report.total(),
                    .carried = from_last.back() / micro,
                    .norm = mo::global_norm(ctx, gradients),
                    .gradients = {}};
        gradients.for_each([&](mo::parameter const& p, auto g) { all.gradients[p.name].assign(g.begin(), g.end()); });
        return all;
      },
      {}, {.pipeline = stages});
}

}  // namespace

TEST_CASE("losses carried with the activations are those of the report, on any number of stages") {
  outcome const plain = step_on<stack>(1, mo::gpipe{});
  CHECK(plain.reported > 0);
  CHECK(plain.carried == 0);
  auto const check = [&](outcome const& found) {
    CHECK(found.reported == plain.reported);
    CHECK(found.carried == doctest::Approx(plain.reported).epsilon(1e-12));
    CHECK(found.norm == plain.norm);
    for (auto const& [name, g] : found.gradients) CHECK(g == plain.gradients.at(name));
  };
  check(step_on<carrying>(1, mo::gpipe{}));
  check(step_on<carrying>(2, mo::one_f_one_b{}));
  check(step_on<carrying>(4, mo::one_f_one_b{}));
  check(step_on<carrying>(4, mo::zb_h1{}));
}
