// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/layer_checkpoint.hpp>

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
