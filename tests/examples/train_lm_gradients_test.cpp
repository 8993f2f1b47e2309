// SPDX-License-Identifier: Apache-2.0
// The parts of train_lm that are not the library's, against directional finite differences in double.
#include "../../examples/train_lm/attention.hpp"
#include "../../examples/train_lm/cross_entropy.hpp"
#include "../../examples/train_lm/embedding.hpp"
#include "../../examples/train_lm/experts.hpp"
#include "../../examples/train_lm/linear.hpp"
#include "../../examples/train_lm/model.hpp"
#include "../../examples/train_lm/norm.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <vector>

namespace {

namespace mo = moiety;

struct in_double : mo::deployment<> {
  using element = double;
};
using context = mo::context<in_double>;
using matrix = mo::matrix<double>;

matrix normal(context& ctx, std::int64_t rows, std::int64_t cols, int seed) {
  matrix m = ctx.matrix(rows, cols);
  mo::fill_normal(ctx, m, mo::seed{seed});
  return m;
}

double product(std::span<double const> a, std::span<double const> b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}
std::span<double const> all(matrix const& m) { return {m.data(), m.size()}; }

/// (f(w + εv) − f(w − εv)) / 2ε along a random direction v, which is returned by `along`.
template <class Function>
double difference(Function const& f, std::span<double> w, std::vector<double>& along, std::uint64_t stream) {
  constexpr double epsilon = 1e-5;
  along.resize(w.size());
  for (std::size_t i = 0; i < w.size(); ++i) along[i] = mo::normal(mo::seed{99}, stream, i);
  std::vector<double> const start(w.begin(), w.end());
  auto const at = [&](double sign) {
    for (std::size_t i = 0; i < w.size(); ++i) w[i] = start[i] + sign * epsilon * along[i];
    return f();
  };
  double const slope = (at(1) - at(-1)) / (2 * epsilon);
  std::copy(start.begin(), start.end(), w.begin());
  return slope;
}

template <class Function>
void check_gradient(Function const& f, std::span<double> w, std::span<double const> gradient) {
  double const norm = std::sqrt(product(gradient, gradient));
  REQUIRE(norm > 0);
  for (std::uint64_t stream = 0; stream < 3; ++stream) {
    std::vector<double> along;
    double const slope = difference(f, w, along, stream);
    CHECK(std::abs(slope - product(gradient, along)) <= 1e-7 * norm * std::sqrt(static_cast<double>(w.size())));
  }
}

/// Input and every parameter of a module, for the loss ⟨c, y⟩; backward(dy, dx) is called once.
template <class Module, class Forward, class Backward>
void check_module(context& ctx, Module& module, matrix& x, std::int64_t outputs, Forward const& forward,
                  Backward const& backward) {
  matrix y = ctx.matrix(x.rows(), outputs), dx = ctx.matrix(x.rows(), x.cols());
  matrix const c = normal(ctx, x.rows(), outputs, 7);
  auto const loss = [&] { return forward(y), product(all(c), all(y)); };
  loss();
  backward(c, dx);
  check_gradient(loss, {x.data(), x.size()}, all(dx));
  module.for_each_parameter([&](lm::parameter<double>& p, bool) { check_gradient(loss, p.values(), p.gradients()); });
}

}  // namespace

TEST_CASE("the gradients of linear are those of y = x W^T") {
  context ctx;
  lm::linear<context> map(ctx, "map", 12, 20, 0.3, mo::seed{1});
  matrix x = normal(ctx, 9, 12, 2);
  check_module(
      ctx, map, x, 20, [&](matrix& y) { map.forward(x, y); },
      [&](matrix const& dy, matrix& dx) { map.backward(x, dy, dx); });
}

TEST_CASE("the gradients of rms_norm; dx is added") {
  context ctx;
  lm::rms_norm<context> norm(ctx, "norm", 24);
  lm::rms_norm<context>::tape tape;
  matrix x = normal(ctx, 70, 24, 3);
  norm.for_each_parameter([](auto& p, bool) {
    for (std::uint64_t i = 0; double& gain : p.values()) gain += 0.3 * mo::normal(mo::seed{4}, 0, i++);
  });
  check_module(
      ctx, norm, x, 24, [&](matrix& y) { norm.forward(x, y, tape); },
      [&](matrix const& dy, matrix& dx) { norm.backward(x, tape, dy, dx); });
}

TEST_CASE("the gradients of attention, two sequences") {
  context ctx;
  for (std::int64_t const length : {1, 7, 33, 192}) {  // the last in three blocks of queries
    CAPTURE(length);
    lm::attention<context> attention(ctx, "attention", 16, 2, mo::seed{5});
    lm::attention<context>::tape tape;
    matrix x = normal(ctx, 2 * length, 16, 6);
    auto const forward = [&](matrix& y) { attention.forward(x, y, length, tape); };
    matrix y = ctx.matrix(2 * length, 16), dx = ctx.matrix(2 * length, 16);
    matrix const c = normal(ctx, 2 * length, 16, 7);
    auto const loss = [&] { return forward(y), product(all(c), all(y)); };
    loss();
    attention.backward(x, tape, c, dx);
    check_gradient(loss, {x.data(), x.size()}, all(dx));
    attention.for_each_parameter(
        [&](lm::parameter<double>& p, bool) { check_gradient(loss, p.values(), p.gradients()); });
  }
}

TEST_CASE("blocks of queries change nothing that a query sees") {
  context ctx;
  lm::attention<context> attention(ctx, "attention", 16, 2, mo::seed{5});
  lm::attention<context>::tape whole, part;
  matrix x = normal(ctx, 192, 16, 8), y = ctx.matrix(192, 16);
  attention.forward(x, y, 192, whole);
  CHECK(whole.blocks == 3);
  for (std::int64_t const length : {33, 100, 191}) {
    matrix alone = ctx.matrix(length, 16);
    attention.forward(x.rows(0, length), alone, length, part);
    CHECK(part.blocks == 1);
    CHECK(std::equal(alone.begin(), alone.end(), y.begin()));
  }
}

TEST_CASE("attention is causal, and positions enter by their distance only") {
  context ctx;
  lm::attention<context> attention(ctx, "attention", 16, 2, mo::seed{5});
  lm::attention<context>::tape tape;
  matrix x = normal(ctx, 8, 16, 8), y = ctx.matrix(8, 16), changed = ctx.matrix(8, 16);
  attention.forward(x, y, 8, tape);
  for (double& value : std::span(x.row(5), 3 * 16)) value += 1;
  attention.forward(x, changed, 8, tape);
  CHECK(std::equal(y.row(0), y.row(5), changed.row(0)));
  CHECK(y(5, 0) != changed(5, 0));

  for (std::int64_t t = 0; t < 8; ++t) std::copy_n(x.row(t % 2), 16, x.row(t));  // a period of two …
  attention.forward(x, y, 8, tape);
  double const score = tape.p(4, 3) / tape.p(4, 1), shifted = tape.p(6, 5) / tape.p(6, 3);
  CHECK(score == doctest::Approx(shifted));  // … so equal distances give equal ratios
}

TEST_CASE("cross entropy is a sum over rows, and leaves its gradient in the logits") {
  context ctx;
  matrix logits = normal(ctx, 40, lm::vocabulary, 9), gradient = normal(ctx, 40, lm::vocabulary, 9);
  std::vector<lm::byte> targets;
  for (int t = 0; t < 40; ++t) targets.push_back(static_cast<lm::byte>(t * 37));
  auto const total = [&](matrix& m) {
    auto const nats = lm::cross_entropy(ctx, lm::view<context>(m), targets);
    return std::accumulate(nats.begin(), nats.end(), 0.0);
  };
  auto const loss = [&] {
    matrix copy = ctx.matrix(40, lm::vocabulary);
    std::copy(logits.begin(), logits.end(), copy.begin());
    return total(copy);
  };
  CHECK(total(gradient) == doctest::Approx(loss()));
  check_gradient(loss, {logits.data(), logits.size()}, all(gradient));
}

TEST_CASE("the gradient of the embedding sums over equal bytes") {
  context ctx;
  lm::embedding<context> table(ctx, "embedding", 8, mo::seed{1});
  std::vector<lm::byte> const bytes{3, 255, 3, 0};
  matrix y = ctx.matrix(4, 8);
  matrix const c = normal(ctx, 4, 8, 7);
  auto const loss = [&] { return table.forward(bytes, y), product(all(c), all(y)); };
  loss();
  table.backward(bytes, c);
  table.for_each_parameter([&](lm::parameter<double>& p, bool) { check_gradient(loss, p.values(), p.gradients()); });
}

TEST_CASE("the whole model: every gradient is that of the cross entropies' sum plus tokens times the experts' losses") {
  using block = lm::expert_block<64>;
  mo::layer_options<block> const strong{
      .losses = {mo::load_balance<>{.coefficient = 0.5f}, mo::router_z{.coefficient = 0.1f}}};
  context ctx;
  // With this seed no token is so near a tie that a step of the differences crosses it, where the loss jumps.
  lm::language_model<block, context> model(ctx, {.layers = 2, .hidden = 64, .heads = 2}, strong, mo::seed{4});
  std::vector<lm::byte> inputs, targets;
  for (std::uint64_t i = 0; i < 24; ++i) {
    inputs.push_back(static_cast<lm::byte>(mo::random_word(mo::seed{2}, 0, i)));
    targets.push_back(static_cast<lm::byte>(mo::random_word(mo::seed{3}, 0, i)));
  }
  std::vector<std::int64_t> const sequences{0, 12, 24};
  auto const loss = [&] {
    mo::loss_ledger<block> ledger(ctx, 2);
    double const nats = model.accumulate(inputs, targets, {.sequences = sequences}, ledger);
    return nats + 24 * ledger.reduce().total();
  };
  model.clear_gradients();
  loss();
  struct copied {
    std::string name;
    std::span<double> values;
    std::vector<double> gradients;
  };
  std::vector<copied> parameters;
  model.for_each_parameter([&](auto const& name, auto values, auto gradients, bool) {
    parameters.push_back({name, values, {gradients.begin(), gradients.end()}});
  });
  CHECK(parameters.size() == 3 + 2 * 8);
  for (copied& p : parameters) {
    CAPTURE(p.name);
    check_gradient(loss, p.values, p.gradients);
  }
}
