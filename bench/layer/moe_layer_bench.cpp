// SPDX-License-Identifier: Apache-2.0
// A whole layer: forward, the two halves of backward, and inference. Qwen3-30B-A3B with 16 of its 128 experts, so that
// weights and gradients fit small machines.
#include "measure.hpp"

#include <moiety/layer/costs.hpp>
#include <moiety/layer/moe_layer.hpp>
#include <moiety/layer/presets/qwen3.hpp>
#include <moiety/mesh/context.hpp>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace {

using namespace bench;

using spec = moiety::resized<moiety::presets::qwen3_30b_a3b, moiety::dims{.hidden = 2048, .ffn = 768, .experts = 16}>;
using layer_type = moiety::moe_layer<spec>;

struct fixture {
  moiety::context<> ctx;
  layer_type layer{ctx};
  layer_type::weights_type weights = layer.make_weights(moiety::seed{1});
  layer_type::gradients_type gradients = layer.make_gradients();
  moiety::matrix<float> x, y, dy, dx;

  fixture(int threads, std::int64_t tokens)
      : ctx(moiety::host{.threads = threads}),
        x(random(tokens, 2)),
        y(random(tokens, 3)),
        dy(random(tokens, 4)),
        dx(random(tokens, 5)) {}

  moiety::matrix<float> random(std::int64_t tokens, int seed) {
    auto made = ctx.matrix(tokens, spec::size.hidden);
    moiety::fill_normal(ctx, made, moiety::seed{seed});
    return made;
  }

  static fixture& get(int threads, std::int64_t tokens) {
    static std::unique_ptr<fixture> kept;
    if (!kept || kept->ctx.engine().threads() != threads || kept->x.rows() != tokens)
      kept.reset(), kept = std::make_unique<fixture>(threads, tokens);
    return *kept;
  }
};

enum class part { forward, backward_input, backward_weights, infer };

void run(benchmark::State& state, int threads, std::int64_t tokens, part p) {
  fixture& f = fixture::get(threads, tokens);
  std::optional<layer_type::tape_type> tape;
  // Each half of backward costs as much as forward.
  double const bytes = static_cast<double>(moiety::weight_bytes<spec>), count = static_cast<double>(tokens);
  work const todo{static_cast<double>(moiety::forward_flops<spec>(moiety::tokens{tokens})), bytes, count};
  auto const prepare = [&] {
    if (p == part::forward || p == part::infer) return tape.reset();
    tape.reset();
    tape.emplace(f.layer.forward(f.weights, f.x.view(), f.y.view()));
    if (p == part::backward_weights) f.layer.backward_input(f.weights, *tape, f.dy.view(), f.dx.view());
  };
  measure<float>(state, threads, todo, prepare, [&] {
    switch (p) {
      case part::forward: tape.emplace(f.layer.forward(f.weights, f.x.view(), f.y.view())); break;
      case part::backward_input: f.layer.backward_input(f.weights, *tape, f.dy.view(), f.dx.view()); break;
      case part::backward_weights: f.layer.backward_weights(*tape, f.gradients); break;
      case part::infer: f.layer.infer(f.weights, f.x.view(), f.y.view()); break;
    }
  });
}

[[maybe_unused]] bool const added = [] {
  struct row {
    char const* name;
    part p;
  };
  for (int const threads : thread_counts())
    for (std::int64_t const tokens : {32, 512})
      for (row const& r : {row{"forward", part::forward}, row{"backward_input", part::backward_input},
                           row{"backward_weights", part::backward_weights}, row{"infer", part::infer}})
        add(std::string("moe_layer/") + r.name + "/qwen3_of_16/tokens:" + std::to_string(tokens), threads,
            [=](benchmark::State& state) { run(state, threads, tokens, r.p); });
  return true;
}();

}  // namespace
