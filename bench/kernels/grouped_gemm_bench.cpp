// SPDX-License-Identifier: Apache-2.0
// Grouped products of an expert's up projection: forward (nt; nt2 with gate and up side by side), input gradient (nn),
// weight gradient (tn, overwriting); nt and nn also on packed weights; beside the peers. Experts rotate, so that weights come from memory as they do in a
// layer. A peer's result is compared with ours before it is timed.
#include "measure.hpp"
#include "peers/loaded.hpp"
#include "shapes.hpp"

#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using namespace bench;
using namespace moiety::kernels;

enum class weights { as_they_lie, packed };
enum class direction { nt, nn, tn, nt2 };
constexpr std::array directions{direction::nt, direction::nn, direction::tn, direction::nt2};
constexpr std::array direction_names{"nt", "nn", "tn", "nt2"};

/// Operands of type T and sums of type S for one shape, enough for every number of rows.
template <class T> struct operands {
  using S = moiety::sum_t<T>;
  expert_shape of;
  moiety::matrix<T> x, dy, gate, up;
  moiety::matrix<S> y, dx, gradient, theirs;
  moiety::buffer packed_nt, packed_nn;  // of gate
  std::set<std::string> checked;        // rows of peers whose result was compared
  std::string prepared;                 // the row that `plan` belongs to
  std::unique_ptr<peer_plan> plan;

  explicit operands(expert_shape const& shape)
      : of(shape),
        x(make<T>(rows(), of.hidden, 1)),
        dy(make<T>(rows(), of.ffn, 2)),
        gate(make<T>(of.experts * of.ffn, of.hidden, 5)),
        up(make<T>(of.experts * of.ffn, of.hidden, 6)),
        y(make<S>(rows(), of.ffn, 3)),
        dx(make<S>(rows(), of.hidden, 4)),
        gradient(make<S>(of.experts * of.ffn, of.hidden, 7)),
        theirs(make<S>(std::max(of.experts * of.ffn, rows()), of.hidden, 8)),
        packed_nt(of.experts * packed_bytes<T>(of.ffn, of.hidden), engine(1).memory()),
        packed_nn(of.experts * packed_bytes<T>(of.hidden, of.ffn), engine(1).memory()) {
    auto const w = grouped<T const>(gate);
    pack_nt(engine(1), of.experts, w, of.ffn, of.hidden, static_cast<std::byte*>(packed_nt.data()));
    pack_nn(engine(1), of.experts, w, of.hidden, of.ffn, static_cast<std::byte*>(packed_nn.data()));
  }

  std::int64_t rows() const {
    std::int64_t most = 0;
    for (std::int64_t const rows : rows_per_expert) most = std::max(most, rows * of.experts_for(rows));
    return most;
  }
  template <class V> static moiety::matrix<V> make(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
    moiety::matrix<V> made(rows, cols, engine(1).memory());
    fill(made.data(), rows * cols, seed);
    return made;
  }
  template <class V, class M> grouped_matrix<V> grouped(M& of_all) const {
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

/// One row of the table, without its contender.
struct gemm {
  expert_shape of;
  std::int64_t rows;
  direction d;
  int threads;

  std::int64_t experts() const { return of.experts_for(rows); }

  template <class T> work todo() const {
    double const all = static_cast<double>(experts() * rows), hidden = static_cast<double>(of.hidden);
    double const ffn = static_cast<double>(of.ffn), weights = static_cast<double>(experts()) * hidden * ffn;
    double const matrices = d == direction::nt2 ? 2 : 1, in = sizeof(T), out = sizeof(moiety::sum_t<T>);
    work done{2 * static_cast<double>(rows) * weights * matrices, 0, all};
    switch (d) {
      case direction::nt:
      case direction::nt2: done.bytes = weights * matrices * in + all * (hidden * in + ffn * out); break;
      case direction::nn: done.bytes = weights * in + all * (ffn * in + hidden * out); break;
      case direction::tn: done.bytes = all * (hidden + ffn) * in + weights * out, done.moves = traffic::write; break;
    }
    return done;
  }
};

/// Our product.
template <class T> void multiply(operands<T>& data, gemm const& g, weights w = weights::as_they_lie) {
  using S = moiety::sum_t<T>;
  expert_shape const& of = data.of;
  auto& on = engine(g.threads);
  std::vector<std::int64_t> offsets;
  for (std::int64_t e = 0; e <= g.experts(); ++e) offsets.push_back(e * g.rows);
  auto const gate = data.template grouped<T const>(data.gate), up = data.template grouped<T const>(data.up);
  rows_of<T> const x{data.x.data(), of.hidden}, dy{data.dy.data(), of.ffn};
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
  packed_matrix<T> const forth{static_cast<std::byte const*>(data.packed_nt.data()),
                               packed_bytes<T>(of.ffn, of.hidden)};
  packed_matrix<T> const back{static_cast<std::byte const*>(data.packed_nn.data()), packed_bytes<T>(of.hidden, of.ffn)};
  if (w == weights::packed && g.d == direction::nt)
    return grouped_gemm_nt<S>(on, g.experts(), offsets.data(), x, std::array{forth}, of.ffn, of.hidden, to_y);
  if (w == weights::packed && g.d == direction::nn)
    return grouped_gemm_nn<S>(on, g.experts(), offsets.data(), std::array{dy}, std::array{back}, of.hidden, of.ffn,
                              to_dx);
  switch (g.d) {
    case direction::nt:
      return grouped_gemm_nt<S>(on, g.experts(), offsets.data(), x, std::array{gate}, of.ffn, of.hidden, to_y);
    case direction::nt2:
      return grouped_gemm_nt<S>(on, g.experts(), offsets.data(), x, std::array{gate, up}, of.ffn, of.hidden, to_y);
    case direction::nn:
      return grouped_gemm_nn<S>(on, g.experts(), offsets.data(), std::array{dy}, std::array{gate}, of.hidden, of.ffn,
                                to_dx);
    case direction::tn:
      return grouped_gemm_tn<S>(on, g.experts(), offsets.data(), dy, x, data.template grouped<S>(data.gradient), of.ffn,
                                of.hidden, false);
  }
}

/// A peer's product: one queue of experts for all threads.
template <class T> void multiply(operands<T>& data, gemm const& g, peer_plan const& plan) {
  expert_shape const& of = data.of;
  engine(g.threads).parallel(g.experts(), [&](std::int64_t e, int) {
    T const *const x = data.x.row(e * g.rows), *const dy = data.dy.row(e * g.rows);
    float* const out = data.theirs.data();
    switch (g.d) {
      case direction::nt: return plan(e, x, nullptr, out + e * g.rows * of.ffn);
      case direction::nn: return plan(e, dy, nullptr, out + e * g.rows * of.hidden);
      default: return plan(e, dy, x, out + e * of.ffn * of.hidden);
    }
  });
}

/// The distance of a peer's result from ours, relative to ours.
template <class T> double distance(operands<T>& data, gemm const& g) {
  multiply(data, g);
  auto& ours = g.d == direction::nt ? data.y : g.d == direction::nn ? data.dx : data.gradient;
  std::int64_t const count = g.experts() * (g.d == direction::tn ? g.of.ffn : g.rows) * ours.cols();
  double difference = 0, norm = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    double const mine = ours.data()[i], theirs = data.theirs.data()[i];
    difference += (mine - theirs) * (mine - theirs), norm += mine * mine;
  }
  return std::sqrt(difference / norm);
}

template <class T> constexpr element element_of() { return std::is_same_v<T, float> ? element::f32 : element::bf16; }

template <class T> void run(benchmark::State& state, gemm const& g, weights w) {
  auto& data = operands<T>::get(g.of);
  measure<T>(state, g.threads, g.todo<T>(), [&] { multiply(data, g, w); });
}

template <class T> void run(benchmark::State& state, gemm const& g, peer const& with, std::string const& name) {
  auto& data = operands<T>::get(g.of);
  if (data.prepared != name) {
    problem const p{static_cast<product>(g.d), element_of<T>(), g.experts(), g.rows, g.of.ffn, g.of.hidden,
                    data.gate.data()};
    data.plan.reset(), data.plan = std::make_unique<peer_plan>(with, p), data.prepared = name;
  }
  if (!*data.plan) return state.SkipWithError("the library has no such product");
  if (data.checked.insert(name).second) {
    std::fill_n(data.theirs.data(), data.theirs.rows() * data.theirs.cols(), 0.0f);
    multiply(data, g, *data.plan);
    if (!(distance(data, g) <= 1e-5)) data.checked.erase(name);
  }
  if (!data.checked.contains(name)) return state.SkipWithError("the result is not ours");
  measure<T>(state, g.threads, g.todo<T>(), [&] { multiply(data, g, *data.plan); });
}

template <class T> void add_row(gemm const& g) {
  std::string const name = std::string("grouped_gemm/") + direction_names[static_cast<std::size_t>(g.d)] + '/' +
                           std::string(moiety::name_of<T>) + '/' + g.of.name + "/rows:" + std::to_string(g.rows);
  add(name + "/moiety", g.threads, [=](benchmark::State& state) { run<T>(state, g, weights::as_they_lie); });
  if constexpr (!std::is_same_v<T, double>) {
    if (g.d == direction::nt || g.d == direction::nn)
      add(name + "/moiety_packed", g.threads, [=](benchmark::State& state) { run<T>(state, g, weights::packed); });
    if (g.d == direction::nt2 || (g.threads > 1 && (g.rows < 16 || g.rows > 256))) return;
    for (peer const& with : peers())
      if (with.has(static_cast<product>(g.d), element_of<T>()))
        add(name + '/' + with.name, g.threads, [=, all = name + with.name](benchmark::State& state) {
          run<T>(state, g, with, all + std::to_string(g.threads));
        });
  }
}

template <class T> void add_all() {
  for (expert_shape const& of : expert_shapes)
    for (int const threads : thread_counts())
      for (std::int64_t const rows : rows_per_expert)
        for (direction const d : directions)
          if (!std::is_same_v<T, double> || rows == 64 || rows == 256) add_row<T>({of, rows, d, threads});
}

[[maybe_unused]] bool const added = (add_all<float>(), add_all<moiety::bf16>(), add_all<double>(), true);

}  // namespace
