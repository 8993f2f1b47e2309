// SPDX-License-Identifier: Apache-2.0
// train_lm on a device: what it says of the first step has the bits of the host, and layouts of ranks that share the device
// agree with one.
#include "../../examples/train_lm/devices.cuh"
#include "../../examples/train_lm/ranks.hpp"

#include "device_memory.hpp"
#include "examples/train_lm_text.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace mo = moiety;

lm::options small() {
  lm::options o;
  o.csv = o.html = "";
  o.steps = o.compared = 2, o.batch = 4, o.context = 16, o.layers = 1, o.hidden = 64, o.heads = 2, o.sample = 3;
  o.quiet = true, o.micro_batches = 2;
  return o;
}

template <class Deployment> lm::trace traced(lm::text const& text, lm::options const& o) {
  return lm::on_ranks_with<lm::expert_block<64>, Deployment>(text, o, [&](auto& t) { return lm::trace_rank(t, o); });
}
template <class Deployment> lm::summary trained(lm::text const& text, lm::options const& o) {
  return lm::on_ranks_with<lm::expert_block<64>, Deployment>(text, o,
                                                             [&](auto& t) { return lm::train_rank(t, text, o); });
}

std::string table_of(lm::comparison const& found) { return (std::ostringstream() << found).str(); }

struct on_device : mo::deployment<> {
  using backend = mo::cuda;
};

/// Rows of a few lengths, of which one is no multiple of a team.
template <class D> std::vector<std::vector<float>> parts() {
  std::vector<std::vector<float>> all;
  mo::context<D> ctx;
  auto const normal = [&](std::int64_t rows, std::int64_t cols, int seed) {
    auto m = ctx.matrix(rows, cols);
    mo::fill_normal(ctx, m, mo::seed{seed});
    return m;
  };
  auto const keep = [&](auto const& m) {
    std::vector<float> values(m.size());
    ctx.memory().load(values.data(), m.data(), static_cast<std::int64_t>(values.size() * sizeof(float)));
    all.push_back(std::move(values));
  };
  for (std::int64_t const cols : {24, 37}) {
    auto const x = normal(70, cols, 1), gain = normal(1, cols, 2), dy = normal(70, cols, 3), base = normal(70, cols, 4);
    auto y = ctx.matrix(70, cols), dx = ctx.matrix(70, cols), dg = ctx.matrix(1, cols), inverse = ctx.matrix(70, 1);
    lm::rms_norm(ctx, x, gain, y, inverse), keep(y), keep(inverse);
    lm::rms_norm_input(ctx, x, gain, inverse, dy, base, dx), keep(dx);
    lm::rms_norm_input(ctx, x, gain, inverse, dy, {}, dx), keep(dx);
    lm::rms_norm_gain(ctx, x, inverse, dy, dg), keep(dg);
  }
  for (std::int64_t const length : {1, 7, 128}) {  // the last in two blocks of queries
    lm::attention<mo::context<D>> const attention(ctx, 16, 2);
    typename lm::attention<mo::context<D>>::tape tape;
    auto const x = normal(2 * length, 16, 6), w = normal(48, 16, 1), wo = normal(16, 16, 2),
               dy = normal(2 * length, 16, 7);
    auto y = ctx.matrix(2 * length, 16), dx = ctx.matrix(2 * length, 16), dw = ctx.matrix(48, 16),
         dwo = ctx.matrix(16, 16);
    attention.forward(w, wo, x, y, length, tape), keep(y), keep(tape.p);
    attention.backward_input(w, wo, tape, dy, dx), keep(dx);
    attention.backward_weights(x, dy, tape, dw, dwo), keep(dw), keep(dwo);
  }
  mo::kernel_list<std::int32_t> const targets(ctx.memory(), {3, 0, 255, 7, 77});
  auto const logits = normal(5, lm::vocabulary, 9);
  auto gradient = ctx.matrix(5, lm::vocabulary);
  for (double const n : lm::cross_entropy(ctx, logits, std::span(targets.for_kernels(), 5), gradient))
    all.push_back({static_cast<float>(n)});
  keep(gradient);
  return all;
}

}  // namespace

TEST_CASE("norms, attention and cross entropy on a device have the bits of the host") {
  auto const host = parts<mo::deployment<>>(), device = parts<on_device>();
  REQUIRE(host.size() == device.size());
  for (std::size_t i = 0; i < host.size(); ++i) {
    CAPTURE(i);
    CHECK(testing::same_bits(host[i], device[i]));
  }
}

TEST_CASE("a model on a device begins as on the host, and goes on as closely as another layout does") {
  lm::text const text = austen(16, 4000);
  lm::options const o = small();
  lm::trace const host = traced<lm::of_threads>(text, o), device = traced<lm::of_devices>(text, o);
  lm::options other = o;
  other.data = 2;  // tolerances of another order of sums
  lm::comparison const found = lm::compared(host, device, other);
  INFO(table_of(found));
  CHECK(found.agrees());
  for (std::size_t i = 0; i < 5; ++i) CHECK(found.lines[i].bits);
}

TEST_CASE("layouts of ranks that share a device agree") {
  lm::text const text = austen(16, 4000);
  lm::options const o = small();
  lm::trace const one = traced<lm::of_devices>(text, o);
  for (auto const& [pipeline, expert] : {std::pair{1, 2}, std::pair{2, 1}, std::pair{2, 2}}) {
    lm::options split = o;
    split.pipeline = pipeline, split.expert = expert;
    lm::comparison const found = lm::compared(one, traced<lm::of_devices>(text, split), split);
    INFO(lm::layout_words(split), '\n', table_of(found));
    CHECK(found.agrees());
    for (std::size_t i = 0; i < 5; ++i) CHECK(found.lines[i].bits);
  }
}

TEST_CASE("a checkpoint of a device goes on on the host, and one of the host on a device") {
  lm::text const text = austen(16, 4000);
  temporary const file;
  lm::options o = small();
  o.until = 1, o.checkpoint = file.path;
  lm::summary const device = trained<lm::of_devices>(text, o);
  CHECK(device.steps == 1);
  CHECK(device.sample.size() == 3);
  lm::options again = o;
  again.checkpoint = "", again.resume = file.path;
  CHECK(trained<lm::of_threads>(text, again).fingerprint == device.fingerprint);
  lm::summary const host = trained<lm::of_threads>(text, o);
  lm::summary const resumed = trained<lm::of_devices>(text, again);
  CHECK(resumed.fingerprint == host.fingerprint);
  CHECK(resumed.validation == doctest::Approx(host.validation).epsilon(1e-6));
}
