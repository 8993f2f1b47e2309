// SPDX-License-Identifier: Apache-2.0
// Promises 1 to 3 of README.md. Sizes are odd, longer than every block of a sum, and wider than a block of columns.
#include "unit.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

namespace mo = moiety;

#define TEXT_OF(name) #name
#define NAME_OF(name) TEXT_OF(name)

#if defined(__AVX2__)
#define HAS_AVX2 true
#else
#define HAS_AVX2 false
#endif
#if defined(__AVX512F__)
#define HAS_AVX512 true
#else
#define HAS_AVX512 false
#endif
#if defined(__AVX512BF16__)
#define HAS_AVX512_BF16 true
#else
#define HAS_AVX512_BF16 false
#endif

unit const built{NAME_OF(MOIETY_ISA), MOIETY_HAS_FMA != 0, HAS_AVX2, HAS_AVX512, HAS_AVX512_BF16};

namespace {

using balance = mo::load_balance<>;
using global = mo::load_balance<mo::over::global_batch>;

struct block : mo::layer_spec<mo::dims{.hidden = 1037, .ffn = 261, .experts = 3}> {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>;
  using losses = mo::losses<balance, global, mo::router_z>;
};
constexpr std::int64_t hidden = mo::spec_of<block>::hidden;

template <class T, class Layout> struct in : mo::deployment<> {
  using element = T;
  using weight_layout = Layout;
};

using bytes = std::vector<unsigned char>;

template <class Values> void append(bytes& to, Values const& values) {
  auto const* const from = reinterpret_cast<unsigned char const*>(values.data());
  to.insert(to.end(), from, from + values.size() * sizeof(*values.data()));
}

bool sound = true;

void expect(bool holds, char const* type, char const* layout, std::int64_t tokens, char const* what) {
  if (!holds) std::printf("broken: %s, %s, %d tokens: %s\n", type, layout, static_cast<int>(tokens), what);
  sound = sound && holds;
}

template <class T, class Layout> struct step {
  using deployment = in<T, Layout>;
  using layer_type = mo::moe_layer<block, deployment>;

  mo::context<deployment> ctx;
  layer_type plain{ctx};
  layer_type trained{
      ctx, {.losses = {balance{.coefficient = 0.3f}, global{.coefficient = 0.15f}, mo::router_z{.coefficient = 0.1f}}}};
  typename layer_type::weights_type weights = plain.make_weights(mo::seed{5});
  typename layer_type::gradients_type gradients = plain.make_gradients();
  char const* type = mo::name_of<T>.data();
  char const* layout = Layout::name.data();

  explicit step(int threads) : ctx(mo::host{.threads = threads}) {}

  mo::matrix<T> normal(std::int64_t tokens, std::uint64_t key) {
    mo::matrix<T> values(tokens, hidden);
    mo::fill_normal(ctx, values, mo::seed{key});
    return values;
  }

  /// Everything that a step computes: the second backward adds to the gradients of the first.
  bytes run(std::int64_t tokens) {
    auto const x = normal(tokens, 1), dy = normal(tokens, 2);
    mo::matrix<T> y(tokens, hidden), dx(tokens, hidden);
    bytes all;
    gradients.reset();
    for (auto const* layer : {&trained, &plain}) {
      auto tape = layer->forward(weights, x, y);
      layer->backward(weights, tape, dy, dx, gradients);
      append(all, y);
      append(all, dx);
      append(all, std::span(tape.logits().data(), static_cast<std::size_t>(3 * tokens)));
      append(all, std::span(tape.routing().ids, static_cast<std::size_t>(2 * tokens)));
      append(all, std::span(tape.routing().weights, static_cast<std::size_t>(2 * tokens)));
      auto const report = layer->report(tape);
      append(all, std::vector{report.total(), report.template value<balance>(), report.template value<global>(),
                              report.template value<mo::router_z>()});
    }
    gradients.for_each([&](mo::parameter const&, auto values) { append(all, values); });
    return all;
  }

  /// Promise 1: y and dx of a token do not depend on its neighbours.
  void alone() {
    constexpr std::int64_t tokens = 37;
    auto const x = normal(tokens, 1), dy = normal(tokens, 2);
    mo::matrix<T> y(tokens, hidden), dx(tokens, hidden), inferred(tokens, hidden), one_y(1, hidden), one_dx(1, hidden);
    auto tape = plain.forward(weights, x, y);
    plain.backward_input(weights, tape, dy, dx);
    plain.infer(weights, x, inferred);
    auto const same = [](T const* a, T const* b) { return std::memcmp(a, b, hidden * sizeof(T)) == 0; };
    bool in_forward = true, in_infer = true, in_backward = true;
    for (std::int64_t t = 0; t < tokens; ++t) {
      in_infer = in_infer && same(inferred.row(t), y.row(t));
      auto one = plain.forward(weights, x.rows(t, 1), one_y);
      plain.backward_input(weights, one, dy.rows(t, 1), one_dx);
      in_forward = in_forward && same(one_y.row(0), y.row(t));
      in_backward = in_backward && same(one_dx.row(0), dx.row(t));
    }
    expect(in_infer, type, layout, tokens, "infer differs from forward");
    expect(in_forward, type, layout, tokens, "y of a token alone differs");
    expect(in_backward, type, layout, tokens, "dx of a token alone differs");
  }

  /// Promise 2: statistics of micro-batches merge without rounding, in any order.
  void merges() {
    constexpr std::int64_t tokens = 37;
    auto const x = normal(tokens, 1);
    mo::matrix<T> y(tokens, hidden);
    mo::loss_ledger<block> whole{ctx, 1}, forth{ctx, 1}, back{ctx, 1};
    auto const part = [&](auto& ledger, std::int64_t first, std::int64_t count) {
      ledger.record(0, trained.forward(weights, x.rows(first, count), y.rows(first, count)));
    };
    part(whole, 0, tokens);
    part(forth, 0, 4), part(forth, 4, 0), part(forth, 4, 33);
    part(back, 4, 33), part(back, 0, 4);
    auto const a = whole.reduce(), b = forth.reduce(), c = back.reduce();
    expect(a.counts() == b.counts() && a.template value<global>() == b.template value<global>(), type, layout, tokens,
           "micro-batches do not merge to their whole");
    expect(b.layer(0).sums == c.layer(0).sums && b.total() == c.total(), type, layout, tokens,
           "the order of micro-batches shows");
  }

  /// Promise 3: every token is counted once, and those beside it keep their bits.
  void counts() {
    constexpr std::int64_t tokens = 37;
    constexpr T nan = T(std::numeric_limits<float>::quiet_NaN());
    auto x = normal(tokens, 1);
    mo::matrix<T> y(tokens, hidden), clean(tokens, hidden);
    plain.infer(weights, x, clean);
    std::vector<std::uint8_t> mask(tokens, 1);
    for (std::size_t t = 0; t < 5; ++t) mask[7 * t] = 0;
    for (std::int64_t t = 0; t < tokens; t += 7) x(t, 3) = nan;  // 5 masked tokens, and token 35
    for (std::int64_t h = 0; h < hidden; ++h) x(9, h) = nan;
    layer_type const tolerant{ctx, {.non_finite = mo::non_finite::sanitise}};
    auto const tape = tolerant.forward(weights, x, y, {.mask = mask});
    auto const states = tolerant.report(tape).states();
    expect(states.masked == 5 && states.unroutable == 2 && states.sanitised == 0 && states.routed == tokens - 7, type,
           layout, tokens, "a token is not counted");
    bool same = true;
    for (std::int64_t t = 0; t < tokens; ++t)
      if (t % 7 != 0 && t != 9) same = same && std::memcmp(y.row(t), clean.row(t), hidden * sizeof(T)) == 0;
    expect(same, type, layout, tokens, "a token changes beside one that is masked or not finite");
  }
};

constexpr std::int64_t sizes[] = {0, 1, 5, 37, 800};  // the last fills several blocks of rows of an expert

template <class T> void check() {
  step<T, mo::row_major> one(1), two(2), four(4);
  step<T, mo::packed> packed(1), packed_four(4);
  for (std::int64_t const tokens : sizes) {
    bytes const expected = one.run(tokens);
    expect(tokens > 100 || one.run(tokens) == expected, one.type, one.layout, tokens, "a second run differs");
    expect(tokens > 100 || two.run(tokens) == expected, one.type, one.layout, tokens, "two threads differ");
    expect(four.run(tokens) == expected, one.type, one.layout, tokens, "four threads differ");
    expect(tokens > 100 || packed.run(tokens) == expected, packed.type, packed.layout, tokens, "packing shows");
    expect(packed_four.run(tokens) == expected, packed.type, packed.layout, tokens, "packing shows on four threads");
  }
  two.alone(), packed.alone();
  two.merges(), packed.merges();
  two.counts(), packed.counts();
}

template <class T> void print() {
  step<T, mo::row_major> in_place(2);
  step<T, mo::packed> packed(2);
  for (std::int64_t const tokens : sizes)
    for (bytes const& all : {in_place.run(tokens), packed.run(tokens)}) {
      std::uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
      for (unsigned char const byte : all) hash = (hash ^ byte) * 0x100000001b3u;
      std::printf("%s, %d tokens, %zu bytes: %016llx\n", in_place.type, static_cast<int>(tokens), all.size(),
                  static_cast<unsigned long long>(hash));
    }
}

}  // namespace

bool promises_hold() {
  check<float>();
  check<mo::bf16>();
  check<double>();
  return sound;
}

void print_hashes() {
  print<float>();
  print<mo::bf16>();
  print<double>();
}
