// SPDX-License-Identifier: Apache-2.0
// Causal multi-head attention with rotary positions (Vaswani et al. 2017; Su et al. 2021).
//
//   [q k v] = x Wᵀ;   q, k turned by their position;   p = softmax over j ≤ i of q_i · k_j / √d;   y = (p v) Woᵀ
//
// x, y [T × H], T = sequences · length, d = H / heads even. Each (sequence, head) is one group of the grouped products. The
// queries of a group are cut into blocks, which products take one after another, each with the keys up to its end: those
// behind are not seen. k and v are [groups · length × …]; q, p and heads are [blocks · groups · length / blocks × …]. The
// tape keeps q, k, v, p and the heads' merged output; x is the caller's. Backward overwrites dx.
#pragma once

#include "gemm.hpp"
#include "linear.hpp"
#include "parameter.hpp"
#include "row_math.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace lm {

template <class Context> class attention {
 public:
  using real = typename Context::element;
  using matrix = mo::matrix<real>;
  /// cos and sin of position · base^(−2i/d), the angle of the pair (i, i + d/2).
  struct turn {
    real cos, sin;
  };
  struct tape {
    std::int64_t length = 0, blocks = 1;
    std::vector<std::int64_t> groups;  // of the rows of one block
    std::vector<turn> turns;           // [length × d/2]
    matrix qkv, q, k, v, p, heads, merged;
  };

  attention(Context& ctx, std::string const& name, std::int64_t hidden, std::int64_t heads, mo::seed seed)
      : ctx_(&ctx),
        hidden_(hidden),
        heads_(heads),
        size_(hidden / heads),
        qkv_(ctx, name + ".qkv", hidden, 3 * hidden, 1 / std::sqrt(static_cast<double>(hidden)), seed),
        out_(ctx, name + ".out", hidden, hidden, 1 / std::sqrt(static_cast<double>(hidden)), seed) {
    if (heads < 1 || hidden % (2 * heads) != 0)
      throw mo::config_error("attention needs heads of an even size: heads must divide hidden / 2.");
  }

  void forward(const_view<Context> x, view<Context> y, std::int64_t length, tape& saved) const {
    shape(saved, x.rows(), length);
    qkv_.forward(x, saved.qkv);
    split(saved);
    for (std::int64_t b = 0; b < saved.blocks; ++b)
      multiply_nt(*ctx_, saved.groups, block(saved, saved.q, b), saved.k, seen_by(saved, saved.p, b));
    causal_softmax(saved);
    for (std::int64_t b = 0; b < saved.blocks; ++b)
      multiply_nn(*ctx_, saved.groups, seen_by(saved, saved.p, b), saved.v, block(saved, saved.heads, b));
    merge(saved);
    out_.forward(saved.merged, y);
  }

  void backward(const_view<Context> x, tape const& saved, const_view<Context> dy, view<Context> dx) {
    shape(d_, x.rows(), saved.length);
    out_.backward(saved.merged, dy, d_.merged);
    split_gradient();
    // The last block sees all keys, so it overwrites their gradients, and the others add.
    for (std::int64_t b = saved.blocks - 1; b >= 0; --b) {
      bool const add = b + 1 < saved.blocks;
      multiply_tn(*ctx_, saved.groups, seen_by(saved, saved.p, b), block(saved, d_.heads, b), d_.v, add);
      multiply_nt(*ctx_, saved.groups, block(saved, d_.heads, b), saved.v, seen_by(saved, d_.p, b));
    }
    softmax_backward(saved);
    for (std::int64_t b = saved.blocks - 1; b >= 0; --b) {
      bool const add = b + 1 < saved.blocks;
      multiply_nn(*ctx_, saved.groups, seen_by(saved, d_.p, b), saved.k, block(saved, d_.q, b));
      multiply_tn(*ctx_, saved.groups, seen_by(saved, d_.p, b), block(saved, saved.q, b), d_.k, add);
    }
    merge_gradient();
    qkv_.backward(x, d_.qkv, dx);
  }

  template <class Function> void for_each_parameter(Function&& f) {
    qkv_.for_each_parameter(f);
    out_.for_each_parameter(f);
  }

 private:
  void shape(tape& saved, std::int64_t tokens, std::int64_t length) const {
    std::int64_t const groups = tokens / length * heads_, rows = groups * length;
    if (saved.length != length) saved.turns = turns(length);
    saved.length = length;
    saved.blocks = length % query_block == 0 ? length / query_block : 1;
    saved.groups.resize(static_cast<std::size_t>(groups + 1));
    std::int64_t const each = length / saved.blocks;
    for (std::int64_t first = -each; std::int64_t & offset : saved.groups) offset = first += each;
    reshape(*ctx_, saved.qkv, tokens, 3 * hidden_);
    reshape(*ctx_, saved.merged, tokens, hidden_);
    reshape(*ctx_, saved.p, rows, length);
    for (matrix* m : {&saved.q, &saved.k, &saved.v, &saved.heads}) reshape(*ctx_, *m, rows, size_);
  }

  std::vector<turn> turns(std::int64_t length) const {
    std::int64_t const half = size_ / 2;
    std::vector<turn> table;
    table.reserve(static_cast<std::size_t>(length * half));
    for (std::int64_t position = 0; position < length; ++position)
      for (std::int64_t i = 0; i < half; ++i) {
        double const exponent = -static_cast<double>(i) / static_cast<double>(half);
        double const angle = static_cast<double>(position) * std::pow(rotary_base, exponent);
        table.push_back({static_cast<real>(std::cos(angle)), static_cast<real>(std::sin(angle))});
      }
    return table;
  }

  /// The rows of block b of q, p or heads.
  static view<Context> block(tape const& saved, matrix const& of, std::int64_t b) {
    std::int64_t const rows = of.rows() / saved.blocks;
    return const_cast<matrix&>(of).rows(b * rows, rows);
  }
  /// Those of p, with the columns of the keys that they see.
  static view<Context> seen_by(tape const& saved, matrix const& of, std::int64_t b) {
    view<Context> const all = block(saved, of, b);
    return {all.data(), all.rows(), (b + 1) * (saved.length / saved.blocks), all.stride()};
  }

  /// Where a row of p stands in its sequence.
  static std::int64_t position(tape const& saved, std::int64_t row) {
    std::int64_t const each = saved.length / saved.blocks;
    return row / (saved.p.rows() / saved.blocks) * each + row % each;
  }

  /// Calls f(token, first column of the head, row of q, row of k, turns of the position) for every row of the groups.
  template <class Function> void for_each_head_row(tape const& saved, Function&& f) const {
    std::int64_t const length = saved.length;
    ctx_->engine().parallel(count(saved.groups), [&](std::int64_t group, int) {
      std::int64_t const head = group % heads_, first = group / heads_ * length, each = length / saved.blocks;
      for (std::int64_t i = 0; i < length; ++i)
        f(first + i, head * size_, (i / each * count(saved.groups) + group) * each + i % each, group * length + i,
          saved.turns.data() + i * (size_ / 2));
    });
  }

  void rotate(real const* in, real* out, turn const* turns, real scale) const {
    std::int64_t const half = size_ / 2;
    for (std::int64_t i = 0; i < half; ++i) {
      real const a = in[i] * scale, b = in[i + half] * scale;
      out[i] = a * turns[i].cos - b * turns[i].sin;
      out[i + half] = a * turns[i].sin + b * turns[i].cos;
    }
  }

  /// The transpose of rotate.
  void rotate_back(real const* in, real* out, turn const* turns, real scale) const {
    std::int64_t const half = size_ / 2;
    for (std::int64_t i = 0; i < half; ++i) {
      real const a = in[i] * scale, b = in[i + half] * scale;
      out[i] = a * turns[i].cos + b * turns[i].sin;
      out[i + half] = b * turns[i].cos - a * turns[i].sin;
    }
  }

  real scale() const { return real{1} / std::sqrt(static_cast<real>(size_)); }

  void split(tape& saved) const {
    for_each_head_row(saved,
                      [&](std::int64_t t, std::int64_t column, std::int64_t row, std::int64_t key, turn const* turns) {
                        real const* const in = saved.qkv.row(t) + column;
                        rotate(in, saved.q.row(row), turns, scale());
                        rotate(in + hidden_, saved.k.row(key), turns, real{1});
                        std::copy_n(in + 2 * hidden_, size_, saved.v.row(key));
                      });
  }

  void merge(tape& saved) const {
    for_each_head_row(saved, [&](std::int64_t t, std::int64_t column, std::int64_t row, std::int64_t, turn const*) {
      std::copy_n(saved.heads.row(row), size_, saved.merged.row(t) + column);
    });
  }

  void split_gradient() {
    for_each_head_row(d_, [&](std::int64_t t, std::int64_t column, std::int64_t row, std::int64_t, turn const*) {
      std::copy_n(d_.merged.row(t) + column, size_, d_.heads.row(row));
    });
  }

  void merge_gradient() {
    for_each_head_row(d_,
                      [&](std::int64_t t, std::int64_t column, std::int64_t row, std::int64_t key, turn const* turns) {
                        real* const out = d_.qkv.row(t) + column;
                        rotate_back(d_.q.row(row), out, turns, scale());
                        rotate_back(d_.k.row(key), out + hidden_, turns, real{1});
                        std::copy_n(d_.v.row(key), size_, out + 2 * hidden_);
                      });
  }

  void causal_softmax(tape& saved) const {
    std::int64_t const each = saved.length / saved.blocks;
    ctx_->engine().for_blocks(saved.p.rows(), block_rows, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t row = first; row < last; ++row) {
        real* const p = saved.p.row(row);
        std::int64_t const seen = position(saved, row) + 1;
        real const top = largest(p, seen);
        for (std::int64_t j = 0; j < seen; ++j) p[j] = mo::exp(p[j] - top);
        real const inverse = real{1} / sum(p, seen);
        for (std::int64_t j = 0; j < seen; ++j) p[j] *= inverse;
        std::fill(p + seen, p + (seen + each - 1) / each * each, real{0});
      }
    });
  }

  /// d_.p, the gradient of p, becomes that of the scores.
  void softmax_backward(tape const& saved) {
    std::int64_t const each = saved.length / saved.blocks;
    ctx_->engine().for_blocks(saved.p.rows(), block_rows, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t row = first; row < last; ++row) {
        real const* const p = saved.p.row(row);
        real* const d = d_.p.row(row);
        std::int64_t const seen = position(saved, row) + 1;
        real const mean = dot(p, d, seen);
        for (std::int64_t j = 0; j < seen; ++j) d[j] = p[j] * (d[j] - mean);
        std::fill(d + seen, d + (seen + each - 1) / each * each, real{0});
      }
    });
  }

  static constexpr double rotary_base = 10000;
  static constexpr std::int64_t block_rows = 64;   // of a task of softmax
  static constexpr std::int64_t query_block = 64;  // fewer would leave the products few rows

  Context* ctx_;
  std::int64_t hidden_, heads_, size_;
  linear<Context> qkv_, out_;
  tape d_;  // gradients of what a tape holds
};

}  // namespace lm
