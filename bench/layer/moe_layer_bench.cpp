// SPDX-License-Identifier: Apache-2.0
// A whole layer of Qwen3-30B-A3B's sizes with 32 experts, of which a token takes 4: a training step and its parts,
// beside PyTorch's, and a forward beside its bare products.
#include "layers.hpp"
#include "measure.hpp"
#include "peers/loaded.hpp"
#include "peers/torch.hpp"

#include <moiety/core/numbers.hpp>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace bench;

using spec = plain_spec<2048, 768, 32, 4>;
constexpr std::int64_t rows_an_expert[] = {16, 64, 256};

std::int64_t tokens_of(std::int64_t rows) { return rows * 32 / 4; }

enum class part { forward_backward, forward, backward_input, backward_weights, infer };
constexpr std::array part_names{"forward_backward", "forward", "backward_input", "backward_weights", "infer"};

/// One layer at a time: two may not fit.
template <class T> void drop_layers() {
  layer_fixture<spec, T>::drop();
  layer_fixture<spec, T, moiety::packed>::drop();
}

template <class T, class Layout> void run(benchmark::State& state, int threads, std::int64_t tokens, part p) {
  if (!layer_fixture<spec, T, Layout>::holds(threads, tokens)) drop_layers<T>();
  auto& f = layer_fixture<spec, T, Layout>::get(threads, tokens);
  auto const prepare = [&] {
    f.tape.reset();
    if (p == part::backward_input || p == part::backward_weights) f.forward();
    if (p == part::backward_weights) f.backward_input();
  };
  work const todo = layer_work<spec, T>(tokens, p == part::forward_backward ? 3 : 1);
  measure<T>(state, threads, todo, prepare, [&] {
    switch (p) {
      case part::forward_backward: return f.forward_backward();
      case part::forward: return f.forward();
      case part::backward_input: return f.backward_input();
      case part::backward_weights: return f.backward_weights();
      case part::infer: return f.infer();
    }
  });
}

template <class T> void run_torch(benchmark::State& state, std::int64_t tokens, torch_memory memory) {
  drop_layers<T>();
  std::vector<double> const& times = torch_layer(spec::size, 4, tokens, moiety::name_of<T>, memory);
  if (times.empty()) return state.SkipWithError("PyTorch does not run");
  static std::size_t next = 0;
  for (auto _ : state) state.SetIterationTime(times[next++ % times.size()]);
  report<T>(state, 1, layer_work<spec, T>(tokens, 3), 1);
}

/// The three products of every expert in a forward, by a peer that has packed the weights.
template <class T> struct bare_products {
  static constexpr std::int64_t hidden = spec::size.hidden, ffn = spec::size.ffn, experts = spec::size.experts;
  std::int64_t rows;
  std::vector<T> weights = random(experts * ffn * hidden, 1), x = random(rows * hidden, 2), h = random(rows * ffn, 3);
  std::vector<float> y = std::vector<float>(static_cast<std::size_t>(rows * hidden));
  peer_plan gate, up, down;

  bare_products(peer const& with, std::int64_t rows_of_one)
      : rows(rows_of_one),
        gate(with, describe(ffn, hidden)),
        up(with, describe(ffn, hidden)),
        down(with, describe(hidden, ffn)) {}

  static std::vector<T> random(std::int64_t count, std::uint64_t seed) {
    std::vector<T> made(static_cast<std::size_t>(count));
    fill(made.data(), count, seed);
    return made;
  }
  problem describe(std::int64_t n, std::int64_t k) const {
    return {product::nt, std::is_same_v<T, float> ? element::f32 : element::bf16, experts, rows, n, k, weights.data()};
  }
  void operator()() {
    for (std::int64_t e = 0; e < experts; ++e) {
      gate(e, x.data(), nullptr, y.data());
      up(e, x.data(), nullptr, y.data());
      down(e, h.data(), nullptr, y.data());
    }
  }
};

template <class T> void run_bare(benchmark::State& state, peer const& with, std::int64_t rows) {
  bare_products<T> products(with, rows);
  if (!products.gate || !products.down) return state.SkipWithError("the library has no such product");
  measure<T>(state, 1, layer_work<spec, T>(tokens_of(rows), 1), [&] { products(); });
}

template <class T> void add_all() {
  for (std::int64_t const rows : rows_an_expert) {
    auto const name = [=](part p) {
      return std::string("moe_layer/") + part_names[static_cast<std::size_t>(p)] + '/' +
             std::string(moiety::name_of<T>) + "/rows:" + std::to_string(rows) + '/';
    };
    std::int64_t const tokens = tokens_of(rows);
    for (int const threads : thread_counts())
      for (part const p :
           {part::forward_backward, part::forward, part::backward_input, part::backward_weights, part::infer})
        if (p == part::forward_backward || rows < 256)
          add(name(p) + "moiety", threads,
              [=](benchmark::State& state) { run<T, moiety::row_major>(state, threads, tokens, p); });
    for (part const p : {part::forward_backward, part::forward})
      if (p == part::forward_backward || rows == 64)
        add(name(p) + "moiety_packed", 1,
            [=](benchmark::State& state) { run<T, moiety::packed>(state, 1, tokens, p); });
    for (peer const& with : peers())
      if (with.name == std::string_view("libxsmm") && rows == 64)
        add(name(part::forward) + "libxsmm_products", 1,
            [=](benchmark::State& state) { run_bare<T>(state, with, rows); });
    if (has_torch)
      for (torch_memory const memory : {torch_memory::given_back, torch_memory::kept})
        add(name(part::forward_backward) + (memory == torch_memory::kept ? "torch_keeping_memory" : "torch"), 1,
            [=](benchmark::State& state) { run_torch<T>(state, tokens, memory); })
            ->Iterations(1);
  }
}

[[maybe_unused]] bool const added = (add_all<float>(), add_all<moiety::bf16>(), true);

}  // namespace
