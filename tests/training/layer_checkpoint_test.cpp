// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/layer_checkpoint.hpp>

#include "layer/held.hpp"
#include "training/rank_files.hpp"
#include "training/two_layers.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

using namespace two_layers;

namespace {

template <class T> using sharded = mo::sharded_adamw<mo::sum_t<T>, mo::thread_communicator>;

template <class Optimiser, class T> Optimiser optimiser_of(mo::context<spread<T>>& ctx) {
  if constexpr (std::is_same_v<Optimiser, sharded<T>>)
    return Optimiser{mo::groups_of(ctx)};
  else
    return Optimiser{};
}

template <class T, class Optimiser> std::vector<mo::tensor_slice> slices(net<T>& model, Optimiser& optimiser) {
  std::vector<mo::tensor_slice> all;
  auto const add = [&](std::vector<mo::tensor_slice> const& more) { all.insert(all.end(), more.begin(), more.end()); };
  add(mo::slices_of(model.ctx, model.first, "layers.0."));
  add(mo::slices_of(model.ctx, std::as_const(model.second), "layers.1."));
  add(mo::state_slices_of(model.ctx, model.first, optimiser, "layers.0."));
  add(mo::state_slices_of(model.ctx, model.second, optimiser, "layers.1."));
  return all;
}

/// Trains steps [from, to): from a checkpoint, or from the start where none is named; then saves one.
template <class T, class Optimiser = sharded<T>>
void train(mo::layout const& shape, int from, int to, std::string const& load, std::string const& save) {
  on<T>(shape, [&](auto& ctx) {
    net<T> model(ctx, load.empty() ? 1 : 55);
    auto optimiser = optimiser_of<Optimiser, T>(ctx);
    if (!load.empty()) {
      optimiser.prepare(model.parameters());
      auto const metadata = mo::load_checkpoint(ctx.world(), load, slices(model, optimiser));
      optimiser.resume(std::stoll(metadata.at("step")));
    }
    for (int s = from; s < to; ++s) REQUIRE(model.step(optimiser, s).taken);
    mo::save_checkpoint(ctx.world(), save, slices(model, optimiser), {{"step", std::to_string(optimiser.steps())}});
  });
}

/// All tensors of a checkpoint of doubles; the state of a router is float.
tensors<double> read(std::string const& path) {
  mo::self_communicator alone;
  auto const header = mo::read_safetensors(mo::detail::posix_file::open_to_read(path));
  tensors<double> all;
  std::map<std::string, std::vector<float>> floats;
  std::vector<mo::tensor_slice> whole;
  for (auto const& [name, stored] : header.tensors)
    if (stored.type == mo::tensor_type::f64) {
      all[name].resize(values_of(stored.shape));
      whole.push_back(mo::whole_tensor(name, stored.shape, std::span(all[name])));
    } else {
      floats[name].resize(values_of(stored.shape));
      whole.push_back(mo::whole_tensor(name, stored.shape, std::span(floats[name])));
    }
  mo::load_checkpoint(alone, path, whole);
  for (auto const& [name, values] : floats) all[name].assign(values.begin(), values.end());
  return all;
}

std::vector<mo::layout> const layouts{{},
                                      {.data = 2},
                                      {.data = 3},
                                      {.data = 2, .expert = 2},
                                      {.data = 4, .expert = 2},
                                      {.data = 2, .tensor = 2, .expert = 4},
                                      {.data = 2, .expert_tensor = 2},
                                      {.data = 2, .tensor = 2, .expert = 2, .expert_tensor = 2}};

}  // namespace

TEST_CASE_TEMPLATE("what one layout saved, any other loads with the same bits, states of the optimiser too", T, double,
                   mo::bf16) {
  scratch_folder const folder;
  std::string const saved = folder.file("saved"), again = folder.file("again");
  for (mo::layout const& first :
       {mo::layout{.data = 4, .expert = 2}, mo::layout{.data = 3}}) {  // 3: slices of odd sizes
    train<T>(first, 0, 3, "", saved);
    for (mo::layout const& shape : layouts) {
      INFO(first, " then ", shape);
      train<T>(shape, 3, 3, saved, again);
      CHECK(contents(again) == contents(saved));
    }
  }
}

TEST_CASE("training goes on from a checkpoint as if it had not been cut, on the same layout to the bit") {
  scratch_folder const folder;
  std::string const saved = folder.file("saved"), uncut = folder.file("uncut"), resumed = folder.file("resumed");
  mo::layout const begun{.data = 4, .expert = 2};
  train<double>(begun, 0, 2, "", saved);
  train<double>(begun, 0, 4, "", uncut);
  train<double>(begun, 2, 4, saved, resumed);
  CHECK(contents(resumed) == contents(uncut));
  CHECK(contents(resumed) != contents(saved));
  auto const expected = read(uncut);
  CHECK(expected.contains("layers.1.router.selection_bias"));
  CHECK(expected.contains("layers.0.experts.down.second_moment"));
  CHECK(distance(read(saved), expected) > 1e-3);
  for (mo::layout const& shape : layouts) {
    INFO(shape);
    train<double>(shape, 2, 4, saved, resumed);
    CHECK(distance(read(resumed), expected) < 1e-10);
  }
}

TEST_CASE("adamw that is not sharded saves what sharded_adamw does") {
  scratch_folder const folder;
  std::string const sliced = folder.file("sliced"), whole = folder.file("whole");
  train<double>({}, 0, 2, "", sliced);
  train<double, mo::adamw<double>>({}, 0, 2, "", whole);
  CHECK(contents(whole) == contents(sliced));
  // On ranks that hold the same, one saves.
  train<double, mo::adamw<double>>({.data = 4, .expert = 2}, 2, 2, sliced, whole);
  CHECK(contents(whole) == contents(sliced));
}

namespace {

/// Four layers with a tensor each, and one that the first and the last layer share: those of a rank of a pipeline.
struct tied_model {
  explicit tied_model(mo::context<spread<float>>& ctx, std::uint64_t key) {
    for (int l = 0; l < 4; ++l) {
      if (l * ctx.pipeline().size() / 4 != ctx.pipeline().rank()) continue;
      for (auto* const all : {&weights, &gradients}) {
        all->add("layers." + std::to_string(l) + ".own", l, 9, false, key);
        if (l == 0 || l == 3) all->add("embedding", l, 21, true, key);
      }
      if (l == 3) weights[weights.size() - 1] = first_embedding(key);
    }
  }
  static std::vector<float> first_embedding(std::uint64_t key) {
    held::parts<float> all;
    all.add("embedding", 0, 21, true, key);
    return all[0];
  }
  /// A step by gradients that are drawn by step, layer and rank of the stage.
  void step(mo::context<spread<float>>& ctx, sharded<float>& optimiser, int number) {
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      held::parts<float> drawn;
      mo::parameter const& p = gradients.name(i);
      auto const key = static_cast<std::uint64_t>(1000 + 10 * number + ctx.stage().rank());
      drawn.add(p.name, p.layer, p.shape[0], p.tied, key);
      gradients[i] = drawn[0];
    }
    auto const groups = mo::groups_of(ctx);
    auto const list = mo::gradients_of<float>(mo::parameters_of(weights, gradients));
    mo::shared_parameters(ctx.pipeline(), gradients).sum(gradients);
    mo::reduce_gradients(list, groups, {.where = mo::summed::slices});
    double const norm = mo::global_norm(ctx, gradients);
    mo::clip_gradients(list, 0.5, norm);
    REQUIRE(optimiser.step(mo::parameters_of(weights, gradients), 1e-2, norm));
  }

  held::parts<float> weights{}, gradients{};
};

/// Steps [from, to) of the tied model, between checkpoints.
void train_tied(mo::layout const& shape, int from, int to, std::string const& load, std::string const& save) {
  on<float>(shape, [&](auto& ctx) {
    tied_model model(ctx, load.empty() ? 1 : 55);
    sharded<float> optimiser{mo::groups_of(ctx)};
    optimiser.prepare(mo::parameters_of(model.weights, model.gradients));
    auto const slices = [&] {
      auto all = mo::slices_of(ctx, model.weights);
      auto const states = mo::state_slices_of(ctx, model.weights, optimiser);
      all.insert(all.end(), states.begin(), states.end());
      return all;
    };
    if (!load.empty()) mo::load_checkpoint(ctx.world(), load, slices());
    optimiser.resume(from);
    for (int s = from; s < to; ++s) model.step(ctx, optimiser, s);
    mo::save_checkpoint(ctx.world(), save, slices());
  });
}

}  // namespace

TEST_CASE("a tensor that two stages hold is written once, and holders stay equal whatever ranks they are on") {
  scratch_folder const folder;
  std::string const saved = folder.file("saved"), uncut = folder.file("uncut"), again = folder.file("again"),
                    resumed = folder.file("resumed");
  for (int const data : {1, 3}) {
    train_tied({.data = data, .pipeline = 2}, 0, 2, "", saved);
    train_tied({.data = data, .pipeline = 2}, 0, 4, "", uncut);
    auto const header = mo::read_safetensors(mo::detail::posix_file::open_to_read(saved));
    CHECK(header.tensors.size() == 3 * (4 + 1));
    CHECK(header.tensors.contains("embedding.second_moment"));
    CHECK(contents(uncut) != contents(saved));
    for (int const stages : {1, 2, 4}) {
      INFO(data, ' ', stages);
      train_tied({.data = data, .pipeline = stages}, 2, 2, saved, again);
      CHECK(contents(again) == contents(saved));
      train_tied({.data = data, .pipeline = stages}, 2, 4, saved, resumed);
      CHECK(contents(resumed) == contents(uncut));
    }
  }
}

TEST_CASE("a rank without layers has nothing to save and nothing against it") {
  scratch_folder const folder;
  on<float>({.pipeline = 3}, [&](auto& ctx) {
    held::parts<float> weights, gradients;
    if (ctx.pipeline().rank() != 1)
      for (auto* const all : {&weights, &gradients}) all->add("own", ctx.pipeline().rank(), 4, true);
    sharded<float> optimiser{mo::groups_of(ctx)};
    optimiser.prepare(mo::parameters_of(weights, gradients));
    auto const slices = mo::state_slices_of(ctx, weights, optimiser);
    CHECK(slices.empty() == (ctx.pipeline().rank() == 1));
    mo::save_checkpoint(ctx.world(), folder.file("saved"), slices);
  });
}

TEST_CASE("an optimiser that is not prepared has nothing to save") {
  on<float>({.data = 2, .expert = 2}, [](auto& ctx) {
    net<float> model(ctx);
    sharded<float> optimiser{mo::groups_of(ctx)};
    CHECK_THROWS_WITH_AS(
        mo::state_slices_of(ctx, model.first, optimiser, "layers.0."),
        "the optimiser has no state of any tensor layers.0.…: it was not prepared, or with other tensors.",
        mo::state_error);
    optimiser.prepare(model.parameters());
    CHECK_FALSE(mo::state_slices_of(ctx, model.first, optimiser, "layers.0.").empty());
    CHECK_THROWS_AS(mo::state_slices_of(ctx, model.first, optimiser, "layers.2."), mo::state_error);
  });
}
