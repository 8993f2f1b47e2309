// SPDX-License-Identifier: Apache-2.0
// Grouped products of an expert's up projection: forward (nt; nt2 with gate and up side by side), input gradient (nn),
// weight gradient (tn, overwriting). Experts rotate, so that weights come from memory as they do in a layer.
#include "measure.hpp"
#include "shapes.hpp"

#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace {

using namespace bench;
using namespace moiety::kernels;

template <class S> struct operands {
  expert_shape of;
  moiety::matrix<S> x, dy, y, dx, gate, up, gradient;

  explicit operands(expert_shape const& shape)
      : of(shape),
        x(make(rows(), of.hidden, 1)),
        dy(make(rows(), of.ffn, 2)),
        y(make(rows(), of.ffn, 3)),
        dx(make(rows(), of.hidden, 4)),
        gate(make(of.experts * of.ffn, of.hidden, 5)),
        up(make(of.experts * of.ffn, of.hidden, 6)),
        gradient(make(of.experts * of.ffn, of.hidden, 7)) {}

  std::int64_t rows() const { return of.experts * rows_per_expert.back(); }
  static moiety::matrix<S> make(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
    moiety::matrix<S> made(rows, cols, engine(1).memory());
    fill(made.data(), rows * cols, seed);
    return made;
  }
  template <class T> grouped_matrix<T> grouped(moiety::matrix<S>& of_all) const {
    return {of_all.data(), of.ffn * of.hidden, of.hidden};
  }

  /// Those of one shape at a time: rows of the same shape follow one another.
  static operands& get(expert_shape const& shape) {
    engine(1);  // made first, so that it outlives the operands in its memory
    static std::unique_ptr<operands> kept;
    if (!kept || kept->of.name != shape.name) kept.reset(), kept = std::make_unique<operands>(shape);
    return *kept;
  }
};

enum class direction { nt, nt2, nn, tn };

template <class S>
void run(benchmark::State& state, int threads, expert_shape const& of, std::int64_t rows, direction d) {
  auto& data = operands<S>::get(of);
  auto& on = engine(threads);
  std::vector<std::int64_t> offsets;
  for (std::int64_t g = 0; g <= of.experts; ++g) offsets.push_back(g * rows);
  double const all = static_cast<double>(of.experts * rows), matrices = d == direction::nt2 ? 2 : 1;
  double const weights = static_cast<double>(of.experts * of.hidden * of.ffn) * matrices;
  double const activations = all * static_cast<double>(of.hidden + of.ffn);
  work const todo{2 * static_cast<double>(rows) * weights, (weights + activations) * sizeof(S), all};
  auto const gate = data.template grouped<S const>(data.gate), up = data.template grouped<S const>(data.up);
  rows_of<S> const x{data.x.data(), of.hidden}, dy{data.dy.data(), of.ffn};
  auto const to_y = [&](std::int64_t, std::int64_t row, std::int64_t col, std::int64_t cols, auto const& sums) {
    S* const out = data.y.row(row) + col;
    if (sums.size() == 1)
      std::copy_n(sums[0], cols, out);
    else
      for (std::int64_t c = 0; c < cols; ++c) out[c] = sums.front()[c] * sums.back()[c];
  };
  auto const to_dx = [&](std::int64_t, std::int64_t row, std::int64_t col, std::int64_t cols, S const* sums) {
    std::copy_n(sums, cols, data.dx.row(row) + col);
  };
  measure<S>(state, threads, todo, [&] {
    if (d == direction::nt)
      grouped_gemm_nt<S>(on, of.experts, offsets.data(), x, std::array{gate}, of.ffn, of.hidden, to_y);
    else if (d == direction::nt2)
      grouped_gemm_nt<S>(on, of.experts, offsets.data(), x, std::array{gate, up}, of.ffn, of.hidden, to_y);
    else if (d == direction::nn)
      grouped_gemm_nn<S>(on, of.experts, offsets.data(), std::array{dy}, std::array{gate}, of.hidden, of.ffn, to_dx);
    else
      grouped_gemm_tn<S>(on, of.experts, offsets.data(), dy, x, data.template grouped<S>(data.gradient), of.ffn,
                         of.hidden, false);
  });
}

template <class S> void add_all() {
  struct row {
    char const* name;
    direction d;
  };
  for (expert_shape const& of : expert_shapes)
    for (std::int64_t const rows : rows_per_expert)
      for (row const& r :
           {row{"nt", direction::nt}, row{"nt2", direction::nt2}, row{"nn", direction::nn}, row{"tn", direction::tn}})
        add(std::string("grouped_gemm/") + r.name + '/' + std::string(moiety::name_of<S>) + '/' + of.name +
                "/rows:" + std::to_string(rows),
            [=](benchmark::State& state, int threads) { run<S>(state, threads, of, rows, r.d); });
}

[[maybe_unused]] bool const added = (add_all<float>(), add_all<double>(), true);

}  // namespace
