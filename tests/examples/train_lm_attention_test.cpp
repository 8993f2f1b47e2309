// SPDX-License-Identifier: Apache-2.0
// The parts of train_lm's blocks: norm, attention, cross entropy.
#include "../../examples/train_lm/attention.hpp"
#include "../../examples/train_lm/cross_entropy.hpp"
#include "../../examples/train_lm/norm.hpp"
#include "../../examples/train_lm/text.hpp"

#include "differences.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

using namespace differences;

TEST_CASE("the gradients of rms_norm, with and without a base") {
  context ctx;
  matrix x = normal(ctx, 70, 24, 3), gain = normal(ctx, 1, 24, 4), y = ctx.matrix(70, 24), dx = ctx.matrix(70, 24),
         d_gain = ctx.matrix(1, 24), with_base = ctx.matrix(70, 24);
  matrix const c = normal(ctx, 70, 24, 7), base = normal(ctx, 70, 24, 8);
  matrix inverse;
  auto const loss = [&] { return lm::rms_norm(ctx, x, gain, y, inverse), product(all(c), all(y)); };
  loss();
  lm::rms_norm_input(ctx, x, gain, inverse, c, {}, dx);
  lm::rms_norm_input(ctx, x, gain, inverse, c, base, with_base);
  lm::rms_norm_gain(ctx, x, inverse, c, d_gain);
  for (std::size_t i = 0; i < dx.size(); ++i)
    CHECK(with_base.data()[i] == doctest::Approx(dx.data()[i] + base.data()[i]));
  check_gradient(loss, {x.data(), x.size()}, all(dx));
  check_gradient(loss, {gain.data(), gain.size()}, all(d_gain));
}

TEST_CASE("the gradients of attention, two sequences") {
  context ctx;
  for (std::int64_t const length : {1, 7, 33, 192}) {  // the last in three blocks of queries
    CAPTURE(length);
    lm::attention<context> const attention(ctx, 16, 2);
    lm::attention<context>::tape tape;
    matrix x = normal(ctx, 2 * length, 16, 6), w = normal(ctx, 48, 16, 1), wo = normal(ctx, 16, 16, 2);
    for (double& value : w) value *= 0.25;
    matrix y = ctx.matrix(2 * length, 16), dx = ctx.matrix(2 * length, 16), dw = ctx.matrix(48, 16),
           dwo = ctx.matrix(16, 16);
    matrix const c = normal(ctx, 2 * length, 16, 7);
    auto const loss = [&] { return attention.forward(w, wo, x, y, length, tape), product(all(c), all(y)); };
    loss();
    attention.backward_input(w, wo, tape, c, dx);
    attention.backward_weights(x, c, tape, dw, dwo);
    check_gradient(loss, {x.data(), x.size()}, all(dx));
    check_gradient(loss, {w.data(), w.size()}, all(dw));
    check_gradient(loss, {wo.data(), wo.size()}, all(dwo));
  }
}

TEST_CASE("blocks of queries change nothing that a query sees") {
  context ctx;
  lm::attention<context> const attention(ctx, 16, 2);
  lm::attention<context>::tape whole, part;
  matrix x = normal(ctx, 192, 16, 8), y = ctx.matrix(192, 16);
  matrix const w = normal(ctx, 48, 16, 1), wo = normal(ctx, 16, 16, 2);
  attention.forward(w, wo, x, y, 192, whole);
  CHECK(whole.blocks == 3);
  for (std::int64_t const length : {33, 100, 191}) {
    matrix alone = ctx.matrix(length, 16);
    attention.forward(w, wo, x.rows(0, length), alone, length, part);
    CHECK(part.blocks == 1);
    CHECK(std::equal(alone.begin(), alone.end(), y.begin()));
  }
}

TEST_CASE("attention is causal, and positions enter by their distance only") {
  context ctx;
  lm::attention<context> const attention(ctx, 16, 2);
  lm::attention<context>::tape tape;
  matrix x = normal(ctx, 8, 16, 8), y = ctx.matrix(8, 16), changed = ctx.matrix(8, 16);
  matrix w = normal(ctx, 48, 16, 1);
  matrix const wo = normal(ctx, 16, 16, 2);
  for (double& value : w) value *= 0.25;
  attention.forward(w, wo, x, y, 8, tape);
  for (double& value : std::span(x.row(5), 3 * 16)) value += 1;
  attention.forward(w, wo, x, changed, 8, tape);
  CHECK(std::equal(y.row(0), y.row(5), changed.row(0)));
  CHECK(y(5, 0) != changed(5, 0));

  for (std::int64_t t = 0; t < 8; ++t) std::copy_n(x.row(t % 2), 16, x.row(t));  // a period of two …
  attention.forward(w, wo, x, y, 8, tape);
  double const score = tape.p(4, 3) / tape.p(4, 1), shifted = tape.p(6, 5) / tape.p(6, 3);
  CHECK(score == doctest::Approx(shifted));  // … so equal distances give equal ratios
}

TEST_CASE("cross entropy of four logits by hand; a constant on all of them changes nothing") {
  context ctx;
  double const p[] = {.839025, .113550, .041773, .005653};
  for (double const shift : {0.0, 10.0}) {
    matrix logits = ctx.matrix(1, 4), gradient = ctx.matrix(1, 4);
    logits(0, 0) = 3 + shift, logits(0, 1) = 1 + shift, logits(0, 2) = shift, logits(0, 3) = -2 + shift;
    std::vector<std::int32_t> const targets{1};
    CHECK(std::abs(lm::log_sum_exp(lm::one_thread{}, logits.row(0), 4) - (3.175515 + shift)) < 1e-6);
    CHECK(std::abs(lm::cross_entropy(ctx, logits, targets)[0] - 2.175515) < 1e-6);
    CHECK(std::abs(lm::cross_entropy(ctx, logits, targets, gradient)[0] - 2.175515) < 1e-6);
    for (int v = 0; v < 4; ++v) CHECK(std::abs(gradient(0, v) - (p[v] - (v == 1 ? 1 : 0))) < 1e-6);
  }
}

TEST_CASE("cross entropy is a sum over rows, with its gradient; a row without a target is left out") {
  context ctx;
  matrix logits = normal(ctx, 40, lm::vocabulary, 9), gradient = ctx.matrix(40, lm::vocabulary);
  std::vector<std::int32_t> targets;
  for (int t = 0; t < 40; ++t) targets.push_back(t * 37 % 256);
  auto const loss = [&] {
    auto const nats = lm::cross_entropy(ctx, logits, targets);
    return std::accumulate(nats.begin(), nats.end(), 0.0);
  };
  auto const nats = lm::cross_entropy(ctx, logits, targets, gradient);
  CHECK(std::accumulate(nats.begin(), nats.end(), 0.0) == doctest::Approx(loss()));
  check_gradient(loss, {logits.data(), logits.size()}, all(gradient));
  double const whole = loss();
  targets[7] = -1;
  CHECK(loss() == doctest::Approx(whole - nats[7]));
}

TEST_CASE("the total of cross entropies has the same bits in any order and parts") {
  std::vector<double> nats;
  for (std::uint64_t i = 0; i < 3000; ++i) nats.push_back(5 + std::abs(mo::normal(mo::seed{1}, 0, i)));
  double const whole = lm::exact_total(nats);
  CHECK(whole == doctest::Approx(std::accumulate(nats.begin(), nats.end(), 0.0)));
  std::span<double const> const view(nats);
  CHECK(lm::exact_total(view.first(1)) + (lm::exact_total(view.subspan(1, 77)) + lm::exact_total(view.subspan(78))) ==
        whole);
  std::reverse(nats.begin(), nats.end());
  CHECK(lm::exact_total(nats) == whole);
}
