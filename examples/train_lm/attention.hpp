// SPDX-License-Identifier: Apache-2.0
// Causal multi-head attention with rotary positions (Vaswani et al. 2017).
//
//   [q k v] = x Wᵀ;   q, k turned by their position;   p = softmax over j ≤ i of q_i · k_j / √d;   y = (p v) Woᵀ
//
// x, y [T × H], T = sequences · length, d = H / heads even. Each (sequence, head) is one group of the grouped products. The
// queries of a group are cut into blocks, which products take one after another, each with the keys up to its end: those
// behind are not seen. k and v are [groups · length × …]; q, p and heads are [blocks · groups · length / blocks × …].
//
// Backward has two halves: of dx, which leaves the gradient of [q k v] where forward had [q k v]; and of the weights. x, dy
// and the tape live until the second.
#pragma once

#include "gemm.hpp"
#include "rotary.hpp"
#include "row_math.hpp"
#include "tensors.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lm {

template <class Context> class attention {
 public:
  using real = typename Context::element;
  using matrix = mo::matrix<real>;
  struct tape {
    std::int64_t length = 0, blocks = 1;
    std::vector<std::int64_t> groups;  // of the rows of one block
    matrix qkv, q, k, v, p, merged;
  };

  attention(Context& ctx, std::int64_t hidden, std::int64_t heads)
      : ctx_(&ctx), hidden_(hidden), heads_(heads), size_(hidden / heads), rotary_(size_) {
    if (heads < 1 || hidden % (2 * heads) != 0)
      throw mo::config_error("attention needs heads of an even size: heads must divide hidden / 2.");
  }

  /// Names and first values of W and Wo.
  std::vector<dense> tensors_of(std::string const& name) const {
    double const deviation = 1 / std::sqrt(static_cast<double>(hidden_));
    return {{name + ".qkv", 3 * hidden_, hidden_, hidden_, 0.0, deviation},
            {name + ".out", hidden_, hidden_, hidden_, 0.0, deviation}};
  }

  void forward(const_view<Context> w, const_view<Context> wo, const_view<Context> x, view<Context> y,
               std::int64_t length, tape& saved) const {
    shape(saved, x.rows(), length);
    multiply_nt(*ctx_, one_group(x), x, w, saved.qkv);
    split(saved);
    for (std::int64_t b = 0; b < saved.blocks; ++b)
      multiply_nt(*ctx_, saved.groups, block(saved, saved.q, b), saved.k, seen_by(saved, saved.p, b));
    causal_softmax(saved);
    for (std::int64_t b = 0; b < saved.blocks; ++b)
      multiply_nn(*ctx_, saved.groups, seen_by(saved, saved.p, b), saved.v, block(saved, work_.heads, b));
    merge(saved);
    multiply_nt(*ctx_, one_group(x), saved.merged, wo, y);
  }

  void backward_input(const_view<Context> w, const_view<Context> wo, tape& saved, const_view<Context> dy,
                      view<Context> dx) const {
    make_room(saved);
    multiply_nn(*ctx_, one_group(dy), dy, wo, work_.merged);
    split_gradient(saved);
    // The last block sees all keys, so it overwrites their gradients, and the others add.
    for (std::int64_t b = saved.blocks - 1; b >= 0; --b) {
      bool const add = b + 1 < saved.blocks;
      multiply_tn(*ctx_, saved.groups, seen_by(saved, saved.p, b), block(saved, work_.heads, b), work_.v, add);
      multiply_nt(*ctx_, saved.groups, block(saved, work_.heads, b), saved.v, seen_by(saved, work_.p, b));
    }
    softmax_backward(saved);
    for (std::int64_t b = saved.blocks - 1; b >= 0; --b) {
      bool const add = b + 1 < saved.blocks;
      multiply_nn(*ctx_, saved.groups, seen_by(saved, work_.p, b), saved.k, block(saved, work_.q, b));
      multiply_tn(*ctx_, saved.groups, seen_by(saved, work_.p, b), block(saved, saved.q, b), work_.k, add);
    }
    merge_gradient(saved);
    multiply_nn(*ctx_, one_group(dy), saved.qkv, w, dx);
  }

  void backward_weights(const_view<Context> x, const_view<Context> dy, tape const& saved, view<Context> dw,
                        view<Context> dwo) const {
    multiply_tn(*ctx_, one_group(dy), dy, saved.merged, dwo, /*accumulate=*/true);
    multiply_tn(*ctx_, one_group(x), saved.qkv, x, dw, /*accumulate=*/true);
  }

 private:
  /// What lives within a call: the heads' outputs, and gradients of what a tape holds.
  struct workspace {
    matrix heads, merged, q, k, v, p;
  };

  void shape(tape& saved, std::int64_t tokens, std::int64_t length) const {
    std::int64_t const groups = tokens / length * heads_, rows = groups * length;
    saved.length = length;
    saved.blocks = length % query_block == 0 ? length / query_block : 1;
    saved.groups.resize(static_cast<std::size_t>(groups + 1));
    std::int64_t const each = length / saved.blocks;
    for (std::int64_t first = -each; std::int64_t & offset : saved.groups) offset = first += each;
    reshape(*ctx_, saved.qkv, tokens, 3 * hidden_);
    reshape(*ctx_, saved.merged, tokens, hidden_);
    reshape(*ctx_, saved.p, rows, length);
    for (matrix* m : {&saved.q, &saved.k, &saved.v, &work_.heads}) reshape(*ctx_, *m, rows, size_);
    rotary_.reach(length);
  }

  void make_room(tape const& saved) const {
    reshape(*ctx_, work_.merged, saved.merged.rows(), hidden_);
    reshape(*ctx_, work_.p, saved.p.rows(), saved.length);
    for (matrix* m : {&work_.q, &work_.k, &work_.v, &work_.heads}) reshape(*ctx_, *m, saved.q.rows(), size_);
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

  /// Calls f(token, its position, first column of the head, row of q, row of k) for every row of the groups.
  template <class Function> void for_each_head_row(tape const& saved, Function&& f) const {
    std::int64_t const length = saved.length;
    ctx_->engine().parallel(count(saved.groups), [&](std::int64_t group, int) {
      std::int64_t const head = group % heads_, first = group / heads_ * length, each = length / saved.blocks;
      for (std::int64_t i = 0; i < length; ++i)
        f(first + i, i, head * size_, (i / each * count(saved.groups) + group) * each + i % each, group * length + i);
    });
  }

  real scale() const { return real{1} / std::sqrt(static_cast<real>(size_)); }

  void split(tape& saved) const {
    for_each_head_row(
        saved, [&](std::int64_t t, std::int64_t position, std::int64_t column, std::int64_t row, std::int64_t key) {
          real const* const in = saved.qkv.row(t) + column;
          rotary_.turn(position, in, saved.q.row(row), scale());
          rotary_.turn(position, in + hidden_, saved.k.row(key), real{1});
          std::copy_n(in + 2 * hidden_, size_, saved.v.row(key));
        });
  }

  void merge(tape& saved) const {
    for_each_head_row(saved, [&](std::int64_t t, std::int64_t, std::int64_t column, std::int64_t row, std::int64_t) {
      std::copy_n(work_.heads.row(row), size_, saved.merged.row(t) + column);
    });
  }

  void split_gradient(tape const& saved) const {
    for_each_head_row(saved, [&](std::int64_t t, std::int64_t, std::int64_t column, std::int64_t row, std::int64_t) {
      std::copy_n(work_.merged.row(t) + column, size_, work_.heads.row(row));
    });
  }

  void merge_gradient(tape& saved) const {
    for_each_head_row(
        saved, [&](std::int64_t t, std::int64_t position, std::int64_t column, std::int64_t row, std::int64_t key) {
          real* const out = saved.qkv.row(t) + column;
          rotary_.turn_back(position, work_.q.row(row), out, scale());
          rotary_.turn_back(position, work_.k.row(key), out + hidden_, real{1});
          std::copy_n(work_.v.row(key), size_, out + 2 * hidden_);
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

  /// work_.p, the gradient of p, becomes that of the scores.
  void softmax_backward(tape const& saved) const {
    std::int64_t const each = saved.length / saved.blocks;
    ctx_->engine().for_blocks(saved.p.rows(), block_rows, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t row = first; row < last; ++row) {
        real const* const p = saved.p.row(row);
        real* const d = work_.p.row(row);
        std::int64_t const seen = position(saved, row) + 1;
        real const mean = dot(p, d, seen);
        for (std::int64_t j = 0; j < seen; ++j) d[j] = p[j] * (d[j] - mean);
        std::fill(d + seen, d + (seen + each - 1) / each * each, real{0});
      }
    });
  }

  static constexpr std::int64_t block_rows = 64;   // of a task of softmax
  static constexpr std::int64_t query_block = 64;  // fewer would leave the products few rows

  Context* ctx_;
  std::int64_t hidden_, heads_, size_;
  mutable rotary<real> rotary_;
  mutable workspace work_;
};

}  // namespace lm
