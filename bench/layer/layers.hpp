// SPDX-License-Identifier: Apache-2.0
// A layer with everything that a step of it needs.
#pragma once

#include "measure.hpp"

#include <moiety/core/numbers.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/moe_layer.hpp>
#include <moiety/mesh/context.hpp>

#include <cstdint>
#include <memory>
#include <optional>

namespace bench {

/// H, I, E and k alone: softmax over all experts, weights renormalised, SwiGLU.
template <std::int64_t H, std::int64_t I, std::int64_t E, int K>
struct plain_spec : moiety::layer_spec<moiety::dims{.hidden = H, .ffn = I, .experts = E}> {
  using router = moiety::router<moiety::softmax, moiety::top_k<K>, moiety::renormalised>;
};

template <class T, class Layout = moiety::row_major> struct in_element : moiety::deployment<> {
  using element = T;
  using weight_layout = Layout;
};

template <class Spec, class T, class Layout = moiety::row_major> struct layer_fixture {
  using layer_type = moiety::moe_layer<Spec, in_element<T, Layout>>;

  moiety::context<in_element<T, Layout>> ctx;
  layer_type layer{ctx};
  typename layer_type::weights_type weights = layer.make_weights(moiety::seed{1});
  typename layer_type::gradients_type gradients = layer.make_gradients();
  moiety::matrix<T> x, y, dy, dx;
  std::optional<typename layer_type::tape_type> tape;

  layer_fixture(int threads, std::int64_t tokens)
      : ctx(moiety::host{.threads = threads}),
        x(random(tokens, 2)),
        y(random(tokens, 3)),
        dy(random(tokens, 4)),
        dx(random(tokens, 5)) {
    for (int step = 0; step < 2; ++step) forward_backward();  // the arena holds what a step needs before a clock starts
  }

  moiety::matrix<T> random(std::int64_t tokens, int seed) {
    auto made = ctx.matrix(tokens, Spec::size.hidden);
    moiety::fill_normal(ctx, made, moiety::seed{seed});
    return made;
  }

  void forward() { tape.emplace(layer.forward(weights, x.view(), y.view())); }
  void backward_input() { layer.backward_input(weights, *tape, dy.view(), dx.view()); }
  void backward_weights() { gradients.reset(), layer.backward_weights(*tape, gradients); }
  void infer() { layer.infer(weights, x.view(), y.view()); }
  void forward_backward() { forward(), backward_input(), backward_weights(); }

  /// One at a time for each kind of layer.
  static layer_fixture& get(int threads, std::int64_t tokens) {
    auto& kept = storage();
    if (!holds(threads, tokens)) kept.reset(), kept = std::make_unique<layer_fixture>(threads, tokens);
    return *kept;
  }
  static bool holds(int threads, std::int64_t tokens) {
    auto const& kept = storage();
    return kept && kept->ctx.engine().threads() == threads && kept->x.rows() == tokens;
  }
  static void drop() { storage().reset(); }

 private:
  static std::unique_ptr<layer_fixture>& storage() {
    static std::unique_ptr<layer_fixture> kept;
    return kept;
  }
};

/// Operations of `passes` forwards, each half of backward being one; weights are read once in each.
template <class Spec, class T> work layer_work(std::int64_t tokens, double passes) {
  auto const flops = static_cast<double>(moiety::forward_flops<Spec>(moiety::tokens{tokens}));
  auto const bytes = static_cast<double>(moiety::weight_bytes<Spec, in_element<T>>);
  return {passes * flops, passes * bytes, static_cast<double>(tokens)};
}

}  // namespace bench
