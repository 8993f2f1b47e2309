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
#include "rows.hpp"
#include "tensors.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lm {

namespace detail {

/// Where the rows of heads lie. Row r of the work is position r mod length of group r / length, for which there are one row of
/// q, p and heads, and one of k and v.
struct head_rows {
  std::int64_t length, groups, each, heads, size;  // `each`: rows of a group in a block

  MOIETY_HD std::int64_t position(std::int64_t r) const { return r % length; }
  MOIETY_HD std::int64_t token(std::int64_t r) const { return r / length / heads * length + position(r); }
  MOIETY_HD std::int64_t column(std::int64_t r) const { return r / length % heads * size; }
  /// Of q, p and heads.
  MOIETY_HD std::int64_t query(std::int64_t r) const {
    std::int64_t const i = position(r);
    return (i / each * groups + r / length) * each + i % each;
  }
  /// The position of a row of p.
  MOIETY_HD std::int64_t position_of_query(std::int64_t query) const {
    return query / (groups * each) * each + query % each;
  }
};

template <class Real> struct split_rows {
  head_rows where;
  turns<Real> by;
  Real scale;
  mo::matrix_view<Real const> qkv;
  mo::matrix_view<Real> q, k, v;

  template <class Team> MOIETY_HD void operator()(Team const& team, std::int64_t r) const {
    Real const* const in = qkv.row(where.token(r)) + where.column(r);
    std::int64_t const hidden = qkv.cols() / 3;
    by.turn(team, where.position(r), in, q.row(where.query(r)), scale);
    by.turn(team, where.position(r), in + hidden, k.row(r), Real{1});
    team.columns(where.size, [&](std::int64_t i) { v.row(r)[i] = in[2 * hidden + i]; });
  }
};

template <class Real> struct merge_gradient_rows {
  head_rows where;
  turns<Real> by;
  Real scale;
  mo::matrix_view<Real const> q, k, v;
  mo::matrix_view<Real> qkv;

  template <class Team> MOIETY_HD void operator()(Team const& team, std::int64_t r) const {
    Real* const out = qkv.row(where.token(r)) + where.column(r);
    std::int64_t const hidden = qkv.cols() / 3;
    by.turn_back(team, where.position(r), q.row(where.query(r)), out, scale);
    by.turn_back(team, where.position(r), k.row(r), out + hidden, Real{1});
    team.columns(where.size, [&](std::int64_t i) { out[2 * hidden + i] = v.row(r)[i]; });
  }
};

/// Heads to the columns of their tokens, or back.
template <class Real> struct merge_rows {
  head_rows where;
  mo::matrix_view<Real> heads, merged;
  bool back;

  template <class Team> MOIETY_HD void operator()(Team const& team, std::int64_t r) const {
    Real *const head = heads.row(where.query(r)), *const token = merged.row(where.token(r)) + where.column(r);
    Real const* const from = back ? token : head;
    Real* const to = back ? head : token;
    team.columns(where.size, [&](std::int64_t i) { to[i] = from[i]; });
  }
};

/// Scores of the keys that a query sees become probabilities, and 0 behind them to the end of a block.
template <class Real> struct softmax_rows {
  head_rows where;
  mo::matrix_view<Real> p;

  template <class Team> MOIETY_HD void operator()(Team const& team, std::int64_t query) const {
    Real* const row = p.row(query);
    std::int64_t const seen = where.position_of_query(query) + 1;
    Real const top = largest(team, row, seen);
    team.columns(seen, [&](std::int64_t j) { row[j] = mo::exp(row[j] - top); });
    Real const inverse = Real{1} / sum(team, row, seen);
    std::int64_t const end = (seen + where.each - 1) / where.each * where.each;
    team.columns(end, [&](std::int64_t j) { row[j] = j < seen ? row[j] * inverse : Real{0}; });
  }
};

/// The gradient of probabilities becomes that of scores.
template <class Real> struct softmax_gradient_rows {
  head_rows where;
  mo::matrix_view<Real const> p;
  mo::matrix_view<Real> gradient;

  template <class Team> MOIETY_HD void operator()(Team const& team, std::int64_t query) const {
    Real const* const row = p.row(query);
    Real* const d = gradient.row(query);
    std::int64_t const seen = where.position_of_query(query) + 1;
    Real const mean = dot(team, row, d, seen);
    std::int64_t const end = (seen + where.each - 1) / where.each * where.each;
    team.columns(end, [&](std::int64_t j) { d[j] = j < seen ? row[j] * (d[j] - mean) : Real{0}; });
  }
};

}  // namespace detail

template <class Context> class attention {
 public:
  using real = typename Context::element;
  using matrix = matrix_of<Context>;
  struct tape {
    std::int64_t length = 0, blocks = 1;
    std::optional<row_groups> groups{};  // of the rows of one block
    matrix qkv, q, k, v, p, merged;
  };

  attention(Context& ctx, std::int64_t hidden, std::int64_t heads)
      : ctx_(&ctx), hidden_(hidden), heads_(heads), size_(hidden / heads), rotary_(ctx.memory(), size_) {
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
    row_groups const all = one_group(*ctx_, x);
    multiply_nt(*ctx_, all, x, w, saved.qkv);
    split(saved);
    for (std::int64_t b = 0; b < saved.blocks; ++b)
      multiply_nt(*ctx_, *saved.groups, block(saved, saved.q, b), saved.k, seen_by(saved, saved.p, b));
    for_rows(ctx_->engine(), saved.p.rows(), block_rows, detail::softmax_rows<real>{rows_of_heads(saved), saved.p});
    for (std::int64_t b = 0; b < saved.blocks; ++b)
      multiply_nn(*ctx_, *saved.groups, seen_by(saved, saved.p, b), saved.v, block(saved, work_.heads, b));
    merge(saved, saved.merged, /*back=*/false);
    multiply_nt(*ctx_, all, saved.merged, wo, y);
  }

  void backward_input(const_view<Context> w, const_view<Context> wo, tape& saved, const_view<Context> dy,
                      view<Context> dx) const {
    make_room(saved);
    row_groups const all = one_group(*ctx_, dy);
    multiply_nn(*ctx_, all, dy, wo, work_.merged);
    merge(saved, work_.merged, /*back=*/true);
    // The last block sees all keys, so it overwrites their gradients, and the others add.
    for (std::int64_t b = saved.blocks - 1; b >= 0; --b) {
      bool const add = b + 1 < saved.blocks;
      multiply_tn(*ctx_, *saved.groups, seen_by(saved, saved.p, b), block(saved, work_.heads, b), work_.v, add);
      multiply_nt(*ctx_, *saved.groups, block(saved, work_.heads, b), saved.v, seen_by(saved, work_.p, b));
    }
    for_rows(ctx_->engine(), saved.p.rows(), block_rows,
             detail::softmax_gradient_rows<real>{rows_of_heads(saved), saved.p, work_.p});
    for (std::int64_t b = saved.blocks - 1; b >= 0; --b) {
      bool const add = b + 1 < saved.blocks;
      multiply_nn(*ctx_, *saved.groups, seen_by(saved, work_.p, b), saved.k, block(saved, work_.q, b));
      multiply_tn(*ctx_, *saved.groups, seen_by(saved, work_.p, b), block(saved, saved.q, b), work_.k, add);
    }
    merge_gradient(saved);
    multiply_nn(*ctx_, all, saved.qkv, w, dx);
  }

  void backward_weights(const_view<Context> x, const_view<Context> dy, tape const& saved, view<Context> dw,
                        view<Context> dwo) const {
    row_groups const all = one_group(*ctx_, x);
    multiply_tn(*ctx_, all, dy, saved.merged, dwo, /*accumulate=*/true);
    multiply_tn(*ctx_, all, saved.qkv, x, dw, /*accumulate=*/true);
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
    std::vector<std::int64_t> begins(static_cast<std::size_t>(groups + 1));
    std::int64_t const each = length / saved.blocks;
    for (std::int64_t first = -each; std::int64_t & offset : begins) offset = first += each;
    saved.groups.emplace(ctx_->memory(), begins);
    reshape(*ctx_, saved.qkv, tokens, 3 * hidden_);
    reshape(*ctx_, saved.merged, tokens, hidden_);
    reshape(*ctx_, saved.p, rows, length);
    for (matrix* m : {&saved.q, &saved.k, &saved.v, &work_.heads}) reshape(*ctx_, *m, rows, size_);
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

  detail::head_rows rows_of_heads(tape const& saved) const {
    return {saved.length, saved.groups->count(), saved.length / saved.blocks, heads_, size_};
  }
  real scale() const { return real{1} / std::sqrt(static_cast<real>(size_)); }

  void split(tape& saved) const {
    for_rows(ctx_->engine(), saved.k.rows(), saved.length,
             detail::split_rows<real>{rows_of_heads(saved), rotary_.reach(saved.length), scale(), saved.qkv, saved.q,
                                      saved.k, saved.v});
  }
  void merge(tape const& saved, matrix& tokens, bool back) const {
    for_rows(ctx_->engine(), saved.k.rows(), saved.length,
             detail::merge_rows<real>{rows_of_heads(saved), work_.heads, tokens, back});
  }
  void merge_gradient(tape& saved) const {
    for_rows(ctx_->engine(), saved.k.rows(), saved.length,
             detail::merge_gradient_rows<real>{rows_of_heads(saved), rotary_.reach(saved.length), scale(), work_.q,
                                               work_.k, work_.v, saved.qkv});
  }

  static constexpr std::int64_t block_rows = 64;   // of a task of softmax
  static constexpr std::int64_t query_block = 64;  // fewer would leave the products few rows

  Context* ctx_;
  std::int64_t hidden_, heads_, size_;
  mutable rotary<real> rotary_;
  mutable workspace work_;
};

}  // namespace lm
