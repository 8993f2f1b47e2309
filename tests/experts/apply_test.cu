// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/apply.cuh>

#include <moiety/backend/host.hpp>
#include <moiety/moiety.hpp>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <random>
#include <ratio>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

using ::testing::device_values;

template <class T_, class Mlp_> struct of {
  using T = T_;
  using Mlp = Mlp_;
};

std::uint64_t fresh_seed() { return std::random_device{}(); }

template <class T> std::vector<T> normals(std::int64_t count, mo::seed key, std::uint64_t stream, double deviation) {
  std::vector<T> values(static_cast<std::size_t>(count));
  mo::normal_sequence next(key, stream, 0);
  for (T& v : values) v = static_cast<T>(static_cast<mo::sum_t<T>>(deviation * next.next()));
  return values;
}

/// Rows of tokens, and everything that the three calls read and write, in vectors of one kind of memory.
template <class T, class Mlp, template <class...> class Values> struct buffers {
  using S = mo::sum_t<T>;
  Values<T> x, dy;
  std::vector<Values<T>> weights;
  Values<S> row_weights;
  Values<std::int64_t> offsets;
  Values<std::int32_t> tokens;
  Values<T> z, a, o, dz, scaled, dx;
  Values<S> parts;
  std::vector<Values<S>> gradients;
  std::vector<Values<T>> biases;
  std::vector<Values<S>> bias_gradients;
  Values<S> one;
};

struct extents {
  std::int64_t experts, hidden, ffn, tokens, rows;
};

template <class Mlp, class V>
mo::expert_matrices<Mlp, V> matrices(std::array<V*, Mlp::inputs + 1> const& at, extents const& e) {
  mo::expert_matrices<Mlp, V> m;
  for (std::size_t i = 0; i < static_cast<std::size_t>(Mlp::inputs); ++i)
    m.inputs[i] = {at[i], e.ffn * e.hidden, e.hidden};
  m.down = {at[Mlp::inputs], e.ffn * e.hidden, e.ffn};
  return m;
}

/// Biases of the inputs and of down.
template <class Mlp, class V>
void add_biases(mo::expert_matrices<Mlp, V>& m, std::vector<V*> const& at, extents const& e) {
  for (std::size_t i = 0; i < at.size(); ++i)
    (i < m.count ? m.input_biases[i] : m.down_bias) =
        mo::kernels::grouped_matrix<V>{at[i], i < m.count ? e.ffn : e.hidden, 1};
}

template <class Values> auto data_of(std::vector<Values>& all) {
  std::vector<decltype(all[0].data())> pointers;
  for (auto& values : all) pointers.push_back(values.data());
  return pointers;
}

/// Rows that there might have been, beyond those that there are.
constexpr std::int64_t more_rows = 5;

/// Forward and both halves of backward, the weight half twice, so that it adds; router weights on the activation if
/// `inside`.
template <class Backend, class T, class Mlp, template <class...> class Values, class Engine>
void run(Engine& engine, extents const& e, buffers<T, Mlp, Values>& b, bool keep, bool inside) {
  using S = mo::sum_t<T>;
  using apply = mo::apply_experts<Mlp, Backend>;
  std::array<T*, Mlp::inputs + 1> w;
  std::array<S*, Mlp::inputs + 1> g;
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = b.weights[i].data(), g[i] = b.gradients[i].data();
  mo::expert_operands<Mlp, T> operands{.matrices = matrices<Mlp>(w, e)};
  add_biases(operands.matrices, data_of(b.biases), e);
  auto sums = matrices<Mlp>(g, e);
  add_biases(sums, data_of(b.bias_gradients), e);
  mo::expert_rows const rows{e.experts, b.offsets.data(), e.hidden, e.ffn, e.rows + more_rows};
  mo::kernels::rows_of<T> const x{b.x.data(), e.hidden, b.tokens.data()}, dy{b.dy.data(), e.hidden, b.tokens.data()};
  apply::forward(engine, rows, x, operands, keep ? b.z.data() : nullptr, b.a.data(), b.o.data(),
                 inside ? b.row_weights.data() : nullptr);
  if (!keep) return;
  S const* const row_weights = inside ? nullptr : b.row_weights.data();
  apply::backward_input(engine, rows, dy, operands, static_cast<T const*>(b.z.data()), row_weights, b.dz.data(),
                        b.scaled.data(), inside ? nullptr : b.parts.data(), b.dx.data());
  for (bool const accumulate : {false, true})
    apply::backward_weights(engine, rows, x, dy, static_cast<T const*>(b.dz.data()),
                            static_cast<T const*>(b.scaled.data()), sums, accumulate, {row_weights, b.one.data()});
}

/// The same bits for chains of float and double, where erf is not asked for; else within the rounding of the element type.
template <class T, class Mlp, class V>
void compare(char const* what, std::vector<V> const& wanted, std::vector<V> got) {
  CAPTURE(std::string(what));
  REQUIRE(wanted.size() <= got.size());
  got.resize(wanted.size());  // behind it is room for rows that there might have been
  constexpr bool wide = std::same_as<T, float> || std::same_as<T, double>;
  if constexpr (wide && !std::same_as<typename Mlp::activation, mo::gelu>) {
    CHECK((wanted.empty() || std::memcmp(wanted.data(), got.data(), wanted.size() * sizeof(V)) == 0));
  } else {
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      auto const a = static_cast<double>(wanted[i]), b = static_cast<double>(got[i]);
      error += (a - b) * (a - b), norm += a * a;
    }
    CHECK(std::sqrt(error) <= (wide ? 1e-6 : 4e-3) * std::sqrt(norm));
  }
}

template <class T, class Mlp>
void check(extents const& e, std::vector<std::int64_t> const& offsets, bool keep = true, bool inside = false) {
  using S = mo::sum_t<T>;
  std::uint64_t const number = fresh_seed();
  INFO("seed ", number);
  mo::seed const key{number};
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(e.rows));
  for (std::size_t r = 0; r < tokens.size(); ++r)
    tokens[r] = static_cast<std::int32_t>(mo::random_word(key, 99, r) % static_cast<std::uint32_t>(e.tokens));

  buffers<T, Mlp, std::vector> host;
  host.x = normals<T>(e.tokens * e.hidden, key, 1, 1), host.dy = normals<T>(e.tokens * e.hidden, key, 2, 1);
  for (int i = 0; i <= Mlp::inputs; ++i)
    host.weights.push_back(normals<T>(e.experts * e.ffn * e.hidden, key, static_cast<std::uint64_t>(10 + i),
                                      1 / std::sqrt(static_cast<double>(i < Mlp::inputs ? e.hidden : e.ffn))));
  host.row_weights = normals<S>(e.rows, key, 3, 1);
  host.offsets = offsets, host.tokens = tokens, host.one = {S{1}};
  for (int i = 0; mo::has_biases<Mlp> && i <= Mlp::inputs; ++i)
    host.biases.push_back(
        normals<T>(e.experts * (i < Mlp::inputs ? e.ffn : e.hidden), key, static_cast<std::uint64_t>(20 + i), 1));
  auto const size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  auto const blank = [&]<class V>(std::vector<V>& v, std::int64_t n) { v.assign(size(n), ::testing::poison<V>()); };
  blank(host.z, e.rows * Mlp::inputs * e.ffn), blank(host.dz, e.rows * Mlp::inputs * e.ffn);
  blank(host.a, e.rows * e.ffn), blank(host.scaled, e.rows * e.ffn);
  blank(host.o, e.rows * e.hidden), blank(host.dx, e.rows * e.hidden);
  std::int64_t const blocks = mo::weight_parts<Mlp, S>(e.ffn), tiles = mo::weight_parts<Mlp, S, mo::cuda>(e.ffn);
  blank(host.parts, e.rows * blocks);
  host.bias_gradients.resize(host.biases.size());
  for (std::size_t i = 0; i < host.biases.size(); ++i)
    blank(host.bias_gradients[i], static_cast<std::int64_t>(host.biases[i].size()));
  host.gradients.resize(Mlp::inputs + 1);
  for (auto& g : host.gradients) blank(g, e.experts * e.ffn * e.hidden);

  auto const upload = []<class V>(std::vector<V> const& v) { return device_values<V>(v); };
  auto const upload_rows = [&](std::vector<T> v, std::int64_t columns) {
    v.resize(v.size() + size(more_rows * columns), ::testing::poison<T>());
    return device_values<T>(v);
  };
  buffers<T, Mlp, device_values> device{upload(host.x),
                                        upload(host.dy),
                                        {},
                                        upload(host.row_weights),
                                        upload(offsets),
                                        upload(tokens),
                                        upload_rows(host.z, Mlp::inputs * e.ffn),
                                        upload_rows(host.a, e.ffn),
                                        upload_rows(host.o, e.hidden),
                                        upload_rows(host.dz, Mlp::inputs * e.ffn),
                                        upload_rows(host.scaled, e.ffn),
                                        upload_rows(host.dx, e.hidden),
                                        device_values<S>(e.rows * tiles),
                                        {},
                                        {},
                                        {},
                                        upload(host.one)};
  for (auto const& w : host.weights) device.weights.push_back(upload(w));
  for (auto const& g : host.gradients) device.gradients.push_back(upload(g));
  for (auto const& v : host.biases) device.biases.push_back(upload(v));
  for (auto const& g : host.bias_gradients) device.bias_gradients.push_back(upload(g));

  mo::host_engine cpu{mo::host{.threads = 1}};
  mo::cuda_engine gpu{mo::cuda{}};
  run<mo::host>(cpu, e, host, keep, inside);
  run<mo::cuda>(gpu, e, device, keep, inside);
  compare<T, Mlp>("a", host.a, device.a.host());
  compare<T, Mlp>("o", host.o, device.o.host());
  if (!keep) return;
  compare<T, Mlp>("z", host.z, device.z.host());
  compare<T, Mlp>("dz", host.dz, device.dz.host());
  compare<T, Mlp>("scaled a", host.scaled, device.scaled.host());
  compare<T, Mlp>("dx", host.dx, device.dx.host());
  for (std::size_t i = 0; i < host.gradients.size(); ++i)
    compare<T, Mlp>("a weight gradient", host.gradients[i], device.gradients[i].host());
  for (std::size_t i = 0; i < host.bias_gradients.size(); ++i)
    compare<T, Mlp>("a gradient of biases", host.bias_gradients[i], device.bias_gradients[i].host());
  if (inside) return;
  auto const parts = device.parts.host();
  double error = 0, norm = 0;
  for (std::int64_t r = 0; r < e.rows; ++r) {
    double wanted = 0, got = 0;
    for (std::int64_t p = 0; p < blocks; ++p) wanted += host.parts[size(r * blocks + p)];
    for (std::int64_t p = 0; p < tiles; ++p) got += parts[size(r * tiles + p)];
    error += (wanted - got) * (wanted - got), norm += wanted * wanted;
  }
  CHECK(std::sqrt(error) <= (sizeof(T) >= 4 ? 1e-6 : 4e-3) * std::sqrt(norm));
}

}  // namespace

TEST_CASE_TEMPLATE("experts on a device are those of the host", Case, of<float, mo::gated_mlp<mo::silu>>,
                   of<double, mo::mlp<mo::gelu_quick>>, of<float, mo::mlp<mo::gelu>>,
                   of<mo::bf16, mo::gated_mlp<mo::silu>>, of<mo::fp16, mo::mlp<mo::relu_squared>>,
                   of<mo::bf16, mo::mlp<mo::gelu_tanh>>, of<float, mo::clamped_swiglu<std::ratio<1>, mo::biased>>,
                   of<mo::bf16, mo::gated_mlp<mo::silu, mo::biased>>, of<double, mo::mlp<mo::relu, mo::biased>>) {
  check<typename Case::T, typename Case::Mlp>({3, 21, 270, 11, 14}, {0, 9, 9, 14});  // nothing is aligned
  check<typename Case::T, typename Case::Mlp>({4, 64, 136, 40, 171}, {0, 129, 129, 170, 171});
  check<typename Case::T, typename Case::Mlp>({2, 32, 48, 5, 33}, {0, 0, 33}, false);  // nothing is kept
  check<typename Case::T, typename Case::Mlp>({2, 29, 140, 5, 33}, {0, 3, 33}, true, true);
  check<typename Case::T, typename Case::Mlp>({2, 24, 128, 5, 9}, {0, 4, 9});  // whole tiles of columns
  check<typename Case::T, typename Case::Mlp>({2, 8, 16, 4, 0}, {0, 0, 0});    // no row
}
