// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/layer_tensors.hpp>

#include "layer/held.hpp"
#include "training/two_layers.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

using namespace two_layers;

namespace {

struct quick : mo::deployment<mo::layout{.data = 2}> {
  using numerics = mo::numerics::fastest;
};

mo::layout const one_rank{};
/// Layouts in which every expert has its gradient on one rank, and others.
std::vector<mo::layout> const whole_experts{{.data = 2, .expert = 2}, {.data = 2, .tensor = 2, .expert = 4}};
std::vector<mo::layout> const others{{.data = 2}, {.data = 4, .expert = 2}, {.data = 2, .expert_tensor = 2}};

std::vector<mo::layout> all_layouts() {
  std::vector<mo::layout> all{one_rank};
  all.insert(all.end(), whole_experts.begin(), whole_experts.end());
  all.insert(all.end(), others.begin(), others.end());
  return all;
}

/// Gradients whose values are those of value(name, logical index).
template <class Net, class Value> void fill(Net& model, Value const& value) {
  model.for_each_gradient([&](std::string const& name, mo::parameter const& p, auto values) {
    auto to = values.begin();
    p.for_each_piece([&](std::int64_t begin, std::int64_t count) {
      for (std::int64_t i = begin; i < begin + count; ++i) *to++ = static_cast<float>(value(name, i));
    });
  });
}

/// Gradients of several layers as one.
struct gradients_of_both {
  net<double>& of;
  template <class F> void for_each(F const& f) { of.first_gradients.for_each(f), of.second_gradients.for_each(f); }
};

double drawn(std::string const& name, std::int64_t i) {
  return std::ldexp(mo::normal(mo::seed{5}, mo::stream_of(name), static_cast<std::uint64_t>(i)),
                    static_cast<int>(i % 40));
}

/// What training was.
struct history {
  std::vector<step_result> steps;
  std::vector<tensors<double>> weights;
};

template <class Spoil>
history train(mo::layout const& shape, int steps, double max_norm, mo::summed where, Spoil const& spoil) {
  return on<double>(shape, [&](auto& ctx) {
    net<double> model(ctx);
    mo::sharded_adamw<double, mo::thread_communicator> optimiser{mo::groups_of(ctx), {.weight_decay = 0.1}};
    history all;
    for (int s = 0; s < steps; ++s) {
      all.steps.push_back(model.step(optimiser, s, max_norm, where, [&](auto& m) { spoil(m, s); }));
      all.weights.push_back(whole<double>(ctx, [&](auto const& f) { model.for_each_weight(f); }));
    }
    return all;
  });
}
history train(mo::layout const& shape, int steps, double max_norm, mo::summed where = mo::summed::slices) {
  return train(shape, steps, max_norm, where, [](auto&, int) {});
}

}  // namespace

TEST_CASE("the groups of a context sum as its deployment says") {
  CHECK(mo::run<quick>([](mo::context<quick>& ctx) { return mo::groups_of(ctx).fastest; }));
  on<float>({.data = 2}, [](auto& ctx) { CHECK_FALSE(mo::groups_of(ctx).fastest); });
}

TEST_CASE("the groups of a context are those that hold tensors") {
  on<float>({.data = 2, .context = 2, .pipeline = 3, .expert = 2}, [](auto& ctx) {
    auto const groups = mo::groups_of(ctx);
    int const rank = ctx.world().rank();
    CHECK(groups.world.size() == 12);
    CHECK(groups.stage.size() == 4);
    CHECK(groups.stage.rank() == rank % 4);
    CHECK(groups.data_context.size() == 4);
    CHECK(groups.expert_data.size() == 2);
    CHECK(groups.expert_data.rank() == rank % 4 / 2);
    CHECK(groups.tied.size() == (rank / 4 == 1 ? 4 : 8));
    std::int64_t const mine = rank;
    std::vector<std::int64_t> const tied = groups.tied.template all_gather_v<std::int64_t>({&mine, 1});
    CHECK(tied == (rank / 4 == 1 ? std::vector<std::int64_t>{4, 5, 6, 7}
                                 : std::vector<std::int64_t>{0, 1, 2, 3, 8, 9, 10, 11}));
  });
  on<float>({.data = 2, .tensor = 3, .expert_tensor = 3}, [](auto& ctx) {
    auto const groups = mo::groups_of(ctx);
    CHECK(groups.data_context.size() == 2);
    CHECK(groups.expert_data.size() == 2);
    CHECK(groups.tied.size() == 6);
  });
}

TEST_CASE("a layer's tensors have a prefix and the ranks that hold them, and biases do not decay") {
  struct biased : mo::layer_spec<mo::dims{.hidden = 4, .ffn = 4, .experts = 2}> {
    using router = mo::router<mo::softmax, mo::linear_bias, mo::top_k<1>>;
    using experts = mo::mlp<mo::relu, mo::biased>;
  };
  mo::context<> ctx;
  mo::moe_layer<biased> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  std::vector<std::string> words;
  mo::parameters_of(weights, gradients, "l.")([&](auto const& t) {
    CHECK(t.weights.size() == t.gradients.size());
    words.push_back(t.name + (t.over == mo::replicated::stage ? " stage" : " expert_data") +
                    (t.decays ? " decays" : ""));
  });
  CHECK(words == std::vector<std::string>{"l.router.weight stage decays", "l.router.bias stage",
                                          "l.experts.up expert_data decays", "l.experts.down expert_data decays",
                                          "l.experts.up_bias expert_data", "l.experts.down_bias expert_data"});
  auto const list = mo::gradients_of(gradients, "l.");
  REQUIRE(list.size() == words.size());
  CHECK(list[5].name == "l.experts.down_bias");
  CHECK(list[5].over == mo::replicated::expert_data);
  CHECK(mo::global_norm(ctx, gradients) == 0);
}

TEST_CASE("the norm has the same bits on every layout and every rank, and is that of the logical gradients") {
  long double squares = 0;
  std::vector<double> norms;
  for (mo::layout const& shape : all_layouts()) {
    on<double>(shape, [&](auto& ctx) {
      net<double> model(ctx);
      fill(model, drawn);
      double const norm = mo::global_norm(model.list(), mo::groups_of(ctx));
      double const lower = mo::global_norm(ctx, model.first_gradients),
                   upper = mo::global_norm(ctx, model.second_gradients);
      gradients_of_both both{model};
      CHECK(mo::global_norm(ctx, both) == norm);
      auto const all = ctx.world().template all_gather_v<double>({&norm, 1});
      CHECK(all == std::vector<double>(all.size(), norm));
      CHECK(norm == doctest::Approx(std::hypot(lower, upper)).epsilon(1e-14));
      if (ctx.world().rank() != 0) return;
      norms.push_back(norm);
      if (ctx.world().size() > 1) return;
      model.for_each_gradient([&](auto const&, auto const&, auto values) {
        for (double const v : values) squares += static_cast<long double>(v) * static_cast<long double>(v);
      });
    });
  }
  CHECK(norms == std::vector<double>(all_layouts().size(), norms[0]));
  CHECK(norms[0] == doctest::Approx(static_cast<double>(std::sqrt(squares))).epsilon(1e-14));
}

TEST_CASE("gradients of 3, 4 and 12 have the norm 13 on every layout") {
  for (mo::layout const& shape : all_layouts())
    on<float>(shape, [](auto& ctx) {
      net<float> model(ctx);
      fill(model, [](std::string const& name, std::int64_t i) {
        if (name == "layers.0.router.weight" && i == 0) return 3;
        if (name == "layers.1.experts.up" && i == 8 * 12 * 20 - 1) return 4;
        return name == "layers.0.shared.down" && i == 7 ? 12 : 0;
      });
      CHECK(mo::global_norm(model.list(), mo::groups_of(ctx)) == 13);
      mo::clip_gradients(model.list(), 6.5, 13);
      CHECK(mo::global_norm(ctx, model.first_gradients) == doctest::Approx(std::hypot(1.5, 6)));
      CHECK(mo::global_norm(ctx, model.second_gradients) == 2);
    });
}

TEST_CASE("stages of a pipeline hold other layers, and all of them count") {
  on<double>({.data = 2, .pipeline = 2, .expert = 2}, [](auto& ctx) {
    net<double> model(ctx);
    int const stage = ctx.pipeline().rank();
    fill(model, [&](std::string const& name, std::int64_t i) {
      if (name == "layers.1.experts.down" && i == 5) return stage == 0 ? 3 : 4;
      return name == "layers.0.router.weight" && i == 9 && stage == 1 ? 12 : 0;
    });
    CHECK(mo::global_norm(model.list(), mo::groups_of(ctx)) == 13);
  });
}

TEST_CASE("tensors that several stages hold count once, those of equal names that are not tied count each") {
  for (mo::layout const& shape : {one_rank, mo::layout{.pipeline = 2}, mo::layout{.data = 2, .pipeline = 4},
                                  mo::layout{.data = 2, .pipeline = 3, .expert = 2}})
    on<double>(shape, [&](auto& ctx) {
      int const stage = ctx.pipeline().rank(), last = ctx.pipeline().size() - 1;
      held::parts<double> mine;
      if (stage == 0) mine.add("own", 0, 1, false), mine.add("embedding", 0, 1, true);
      if (stage == last) mine.add("own", 9, 1, false), mine.add("embedding", 9, 1, true);
      for (std::size_t i = 0; i < mine.size(); ++i)
        mine[i][0] = mine.name(i).tied ? 4 : mine.name(i).layer == 0 ? 3 : 12;
      CHECK(mo::global_norm(ctx, mine) == 13);
    });
}

TEST_CASE("training on ranks gives the weights of one rank") {
  constexpr int steps = 4;
  history const one = train(one_rank, steps, 0.5);
  CHECK(one.steps[0].factor < 1);
  CHECK(distance(one.weights[0], one.weights[steps - 1]) > 1e-3);
  for (mo::layout const& shape : all_layouts())
    for (mo::summed const where : {mo::summed::slices, mo::summed::everywhere}) {
      if (where == mo::summed::everywhere && shape.data == 2) continue;
      INFO(shape);
      history const many = train(shape, steps, 0.5, where);
      CHECK(many.steps[0].norm == doctest::Approx(one.steps[0].norm).epsilon(1e-12));
      if (shape.expert_tensor == 1) CHECK(many.steps[0].balance == one.steps[0].balance);
      for (std::size_t s = 0; s < steps; ++s) {
        CHECK(many.steps[s].taken);
        CHECK(many.steps[s].norm == doctest::Approx(one.steps[s].norm).epsilon(1e-9));
        CHECK(many.steps[s].balance == doctest::Approx(one.steps[s].balance).epsilon(1e-9));
        CHECK(distance(many.weights[s], one.weights[s]) < 1e-10);
      }
    }
}

TEST_CASE("experts whose gradient is a sum of one rank have the bits of one rank after a step that clips nothing") {
  history const one = train(one_rank, 1, 1e9);
  CHECK(one.steps[0].factor == 1);
  for (mo::layout const& shape : whole_experts) {
    history const many = train(shape, 1, 1e9);
    int compared = 0;
    for (auto const& tensor : one.weights[0])
      if (tensor.first.find(".experts.") != std::string::npos) {
        INFO(shape, ' ', tensor.first);
        CHECK(same_bits(many.weights[0].at(tensor.first), tensor.second));
        ++compared;
      }
    CHECK(compared == 6);
  }
}

TEST_CASE("a gradient that is not finite skips the step on all ranks, and training goes on") {
  auto const spoil = [](auto& model, int step) {
    if (step != 1 || model.ctx.world().rank() != model.ctx.world().size() - 1) return;
    model.second_gradients.for_each([](mo::parameter const& p, auto values) {
      if (p.name == "experts.down") values[3] = std::numeric_limits<double>::quiet_NaN();
    });
  };
  for (mo::layout const& shape : {mo::layout{.data = 4, .expert = 4}, mo::layout{.data = 2}}) {
    INFO(shape);
    history const all = train(shape, 3, 0.5, mo::summed::slices, spoil);
    CHECK_FALSE(all.steps[1].taken);
    CHECK(std::isnan(all.steps[1].norm));
    for (auto const& [name, values] : all.weights[0])
      if (name != "layers.1.router.selection_bias") CHECK(same_bits(all.weights[1].at(name), values));
    CHECK(all.steps[2].taken);
    CHECK(distance(all.weights[2], all.weights[1]) > 1e-3);
  }
}
