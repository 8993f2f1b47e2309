// SPDX-License-Identifier: Apache-2.0
// expect: this selection over the whole batch runs on mo::host: on another back end it needs runs_on<Backend> and
#include <moiety/cuda.cuh>

namespace mo = moiety;

/// Every token to the first expert.
struct first_expert {
  static constexpr std::string_view name = "first_expert";
  static constexpr int count = 1;
  static constexpr double average = 1;
#ifdef MOIETY_CORRECT
  template <class Backend> static constexpr bool runs_on = true;
#endif
  static constexpr std::int64_t rows(std::int64_t tokens, std::int64_t) { return tokens; }
  template <class S> static constexpr std::int64_t workspace_bytes(std::int64_t, std::int64_t) { return 0; }
  template <class S, class Engine> void select(Engine& engine, mo::batch_of_scores<S> const& of) const {
    engine.memory().zero(of.ids, of.scores.rows() * 4);
  }
};

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, first_expert>;
};

struct on_cuda : mo::deployment<> {
  using backend = mo::cuda;
};

int main() {
  mo::context<on_cuda> ctx;
  mo::moe_layer<mistaken, on_cuda> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(3, 16), y = ctx.matrix(3, 16);
  layer.infer(weights, x, y);
}
