// SPDX-License-Identifier: Apache-2.0
// A model of unlike layers, whose blocks but for the MoE layers are written here: an embedding, a dense MLP around RMSNorm, and
// a head. All in double.
#pragma once

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <ratio>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace mixed {

namespace mo = moiety;

struct spread : mo::deployment<mo::dynamic> {
  using element = double;
};
using context = mo::context<spread>;
using in = mo::matrix_view<double const>;
using out = mo::matrix_view<double>;

constexpr std::int64_t hidden = 6, ffn = 5, vocabulary = 11;

/// Named matrices: the weights or the gradients of a block.
class tensors {
 public:
  std::vector<double>& add(std::string name, std::int64_t rows, std::int64_t cols, bool tied = false) {
    mo::parameter p{std::move(name), {rows, cols}, {{0, rows}, {0, cols}}, cols, "double"};
    p.tied = tied;
    all_.emplace_back(std::move(p), std::vector<double>(static_cast<std::size_t>(rows * cols)));
    return all_.back().second;
  }
  out operator[](std::size_t i) { return {all_[i].second.data(), all_[i].first.shape[0], all_[i].first.shape[1]}; }
  in operator[](std::size_t i) const { return {all_[i].second.data(), all_[i].first.shape[0], all_[i].first.shape[1]}; }
  template <class F> void for_each(F&& f) {
    for (auto& [p, v] : all_) f(p, std::span<double>(v));
  }
  template <class F> void for_each(F&& f) const {
    for (auto const& [p, v] : all_) f(p, std::span<double const>(v));
  }
  void reset() {
    for (auto& t : all_) t.second.assign(t.second.size(), 0);
  }

 private:
  std::vector<std::pair<mo::parameter, std::vector<double>>> all_;
};

/// Values that are a function of name and place.
inline void draw(tensors& all, mo::seed key, std::string_view prefix) {
  all.for_each([&](mo::parameter const& p, std::span<double> v) {
    auto const stream = mo::stream_of(std::string(prefix) + p.name);
    for (std::size_t i = 0; i < v.size(); ++i) v[i] = 0.5 * mo::normal(key, stream, i);
  });
}

/// What every block here has in common.
struct block {
  using element = double;
  using weights_type = tensors;
  using gradients_type = tensors;
};

/// y_t = table[id of t]
struct embedding : block {
  struct tape_type {
    std::span<std::int32_t const> ids;
    in dy{};
  };
  static std::int64_t input_width() { return 0; }
  static std::int64_t output_width() { return hidden; }
  static tensors make_gradients() {
    tensors all;
    all.add("table", vocabulary, hidden);
    return all;
  }
  static tensors make_weights(mo::seed key, std::string_view prefix) {
    tensors all = make_gradients();
    draw(all, key, prefix);
    return all;
  }
  static void infer(tensors const& w, in, out y, mo::batch const& about) {
    for (std::int64_t t = 0; t < y.rows(); ++t)
      for (std::int64_t h = 0; h < hidden; ++h) y(t, h) = w[0](about.ids[static_cast<std::size_t>(t)], h);
  }
  static tape_type forward(tensors const& w, in x, out y, mo::batch const& about) {
    infer(w, x, y, about);
    return {about.ids};
  }
  static void backward_input(tensors const&, tape_type& tape, in dy, out) { tape.dy = dy; }
  static void backward_weights(tape_type& tape, tensors& gradients) {
    for (std::int64_t t = 0; t < tape.dy.rows(); ++t)
      for (std::int64_t h = 0; h < hidden; ++h) gradients[0](tape.ids[static_cast<std::size_t>(t)], h) += tape.dy(t, h);
  }
};

/// y = x Wᵀ
struct head : block {
  struct tape_type {
    in x, dy{};
  };
  static std::int64_t input_width() { return hidden; }
  static std::int64_t output_width() { return vocabulary; }
  static tensors make_gradients() {
    tensors all;
    all.add("weight", vocabulary, hidden);
    return all;
  }
  static tensors make_weights(mo::seed key, std::string_view prefix) {
    tensors all = make_gradients();
    draw(all, key, prefix);
    return all;
  }
  static void infer(tensors const& w, in x, out y, mo::batch const&) {
    for (std::int64_t t = 0; t < x.rows(); ++t)
      for (std::int64_t v = 0; v < vocabulary; ++v) {
        y(t, v) = 0;
        for (std::int64_t h = 0; h < hidden; ++h) y(t, v) += x(t, h) * w[0](v, h);
      }
  }
  static tape_type forward(tensors const& w, in x, out y, mo::batch const& about) {
    infer(w, x, y, about);
    return {x};
  }
  static void backward_input(tensors const& w, tape_type& tape, in dy, out dx) {
    tape.dy = dy;
    for (std::int64_t t = 0; t < dy.rows(); ++t)
      for (std::int64_t h = 0; h < hidden; ++h) {
        dx(t, h) = 0;
        for (std::int64_t v = 0; v < vocabulary; ++v) dx(t, h) += dy(t, v) * w[0](v, h);
      }
  }
  static void backward_weights(tape_type& tape, tensors& gradients) {
    for (std::int64_t t = 0; t < tape.x.rows(); ++t)
      for (std::int64_t v = 0; v < vocabulary; ++v)
        for (std::int64_t h = 0; h < hidden; ++h) gradients[0](v, h) += tape.dy(t, v) * tape.x(t, h);
  }
};

/// The same with one matrix, which both hold.
template <class Block> struct with_shared_table : Block {
  static tensors make_gradients() {
    tensors all;
    all.add("table", vocabulary, hidden, true);
    return all;
  }
  static tensors make_weights(mo::seed key, std::string_view) {
    tensors all = make_gradients();
    draw(all, key, "");
    return all;
  }
};
using tied_embedding = with_shared_table<embedding>;
using tied_head = with_shared_table<head>;

/// y = x + down · tanh(up · n), n = gain ∘ x / r, r = √(mean x² + 0.01)
class dense : public block {
 public:
  struct tape_type {
    in x;
    mo::matrix<double> r, n, a;  // a: tanh(up · n)
    in dy{};
    mo::matrix<double> dn{}, db{};  // db: gradient before tanh
  };

  explicit dense(context& ctx) : ctx_(&ctx) {}
  static std::int64_t input_width() { return hidden; }
  static std::int64_t output_width() { return hidden; }
  static tensors make_gradients() {
    tensors all;
    all.add("norm", 1, hidden), all.add("up", ffn, hidden), all.add("down", hidden, ffn);
    return all;
  }
  static tensors make_weights(mo::seed key, std::string_view prefix) {
    tensors all = make_gradients();
    draw(all, key, prefix);
    for (std::int64_t h = 0; h < hidden; ++h) all[0](0, h) += 1;
    return all;
  }

  tape_type forward(tensors const& w, in x, out y, mo::batch const&) const {
    std::int64_t const rows = x.rows();
    tape_type tape{x, ctx_->matrix(rows, 1), ctx_->matrix(rows, hidden), ctx_->matrix(rows, ffn)};
    for (std::int64_t t = 0; t < rows; ++t) {
      double squares = 0;
      for (std::int64_t h = 0; h < hidden; ++h) squares += x(t, h) * x(t, h);
      tape.r(t, 0) = std::sqrt(squares / static_cast<double>(hidden) + 0.01);
      for (std::int64_t h = 0; h < hidden; ++h) tape.n(t, h) = w[0](0, h) * x(t, h) / tape.r(t, 0);
      for (std::int64_t i = 0; i < ffn; ++i) {
        for (std::int64_t h = 0; h < hidden; ++h) tape.a(t, i) += w[1](i, h) * tape.n(t, h);
        tape.a(t, i) = std::tanh(tape.a(t, i));
      }
      for (std::int64_t h = 0; h < hidden; ++h) {
        y(t, h) = x(t, h);
        for (std::int64_t i = 0; i < ffn; ++i) y(t, h) += w[2](h, i) * tape.a(t, i);
      }
    }
    return tape;
  }
  void infer(tensors const& w, in x, out y, mo::batch const& about) const { forward(w, x, y, about); }

  void backward_input(tensors const& w, tape_type& tape, in dy, out dx) const {
    tape.dy = dy;
    tape.dn = ctx_->matrix(dy.rows(), hidden), tape.db = ctx_->matrix(dy.rows(), ffn);
    for (std::int64_t t = 0; t < dy.rows(); ++t) {
      for (std::int64_t i = 0; i < ffn; ++i) {
        for (std::int64_t h = 0; h < hidden; ++h) tape.db(t, i) += dy(t, h) * w[2](h, i);
        tape.db(t, i) *= 1 - tape.a(t, i) * tape.a(t, i);
        for (std::int64_t h = 0; h < hidden; ++h) tape.dn(t, h) += tape.db(t, i) * w[1](i, h);
      }
      double const r = tape.r(t, 0);
      double along = 0;
      for (std::int64_t h = 0; h < hidden; ++h) along += tape.dn(t, h) * w[0](0, h) * tape.x(t, h);
      for (std::int64_t h = 0; h < hidden; ++h)
        dx(t, h) = dy(t, h) + tape.dn(t, h) * w[0](0, h) / r -
                   tape.x(t, h) * along / (static_cast<double>(hidden) * r * r * r);
    }
  }

  static void backward_weights(tape_type& tape, tensors& gradients) {
    for (std::int64_t t = 0; t < tape.dy.rows(); ++t)
      for (std::int64_t h = 0; h < hidden; ++h) {
        gradients[0](0, h) += tape.dn(t, h) * tape.x(t, h) / tape.r(t, 0);
        for (std::int64_t i = 0; i < ffn; ++i) {
          gradients[1](i, h) += tape.db(t, i) * tape.n(t, h);
          gradients[2](h, i) += tape.dy(t, h) * tape.a(t, i);
        }
      }
  }

 private:
  context* ctx_;
};

using balance = mo::load_balance<>;
using by_sequence = mo::load_balance<mo::over::sequence>;

struct wide : mo::layer_spec<mo::dims{.hidden = hidden, .ffn = 5, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>;
  using losses = mo::losses<balance, mo::router_z>;
};
/// Draws noise, drops tokens, and passes its input on.
struct noisy : mo::layer_spec<mo::dims{.hidden = hidden, .ffn = 3, .experts = 4}> {
  using router = mo::router<mo::jitter<std::ratio<1, 10>>, mo::logit_noise, mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<balance, by_sequence>;
  using capacity = mo::capacity<std::ratio<1>>;
};
using wide_layer = mo::moe_layer<wide, spread>;
using noisy_layer = mo::moe_layer<noisy, spread>;

inline mo::layer_options<wide> wide_options() {
  return {.losses = {balance{.coefficient = 0.3f}, mo::router_z{.coefficient = 0.02f}}};
}
inline mo::layer_options<noisy> noisy_options() {
  return {.losses = {balance{.coefficient = 0.1f}, by_sequence{.coefficient = 0.2f}}};
}

using wide_again = mo::recomputed<wide_layer>;
using noisy_again = mo::recomputed<noisy_layer>;
using dense_again = mo::recomputed<dense>;
using model = mo::block_stack<spread, embedding, dense, wide_layer, noisy_layer, head, dense_again, wide_again,
                              noisy_again, tied_embedding, tied_head>;
using any_block = model::any_block;

/// By layer: e embedding, d dense, w and n the MoE layers, h head; D, W and N keep less and compute it again;
/// t and u: embedding and head with one matrix.
constexpr std::string_view kinds = "edwndwnh", recomputing = "eDWNDWNh";
constexpr int layers = static_cast<int>(kinds.size());

inline any_block make(context& ctx, char kind) {
  switch (kind) {
    case 'e': return embedding{};
    case 'd': return dense{ctx};
    case 'w': return wide_layer{ctx, wide_options()};
    case 'n': return noisy_layer{ctx, noisy_options()};
    case 'D': return mo::recomputed{ctx, dense{ctx}};
    case 'W': return mo::recomputed{ctx, wide_layer{ctx, wide_options()}};
    case 'N': return mo::recomputed{ctx, noisy_layer{ctx, noisy_options()}};
    case 't': return tied_embedding{};
    case 'u': return tied_head{};
    default: return head{};
  }
}

/// build(layer) of the model whose layers are of these kinds.
inline auto build(context& ctx, std::string_view of = kinds) {
  return [&ctx, of](int layer) { return make(ctx, of[static_cast<std::size_t>(layer)]); };
}

inline auto split_of(std::vector<int> const& counts) {
  int blocks = 0;
  for (int const n : counts) blocks += n;
  return mo::split_by_counts(counts, blocks);
}

inline std::vector<std::int32_t> ids(std::int64_t tokens, std::uint64_t of) {
  std::vector<std::int32_t> all;
  for (std::int64_t t = 0; t < tokens; ++t)
    all.push_back(static_cast<std::int32_t>(mo::random_word(mo::seed{9}, of, static_cast<std::uint64_t>(t)) %
                                            static_cast<std::uint32_t>(vocabulary)));
  return all;
}

using values = std::map<std::string, std::vector<double>>;
template <class Part> values values_of(Part&& part) {
  values all;
  part.for_each([&](mo::parameter const& p, auto v) { all[p.name].assign(v.begin(), v.end()); });
  return all;
}

inline bool same(mo::matrix<double> const& a, mo::matrix<double> const& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
}

template <class F> void alone(F const& f) { mo::run<spread>(f, {}, mo::layout{}); }

}  // namespace mixed
