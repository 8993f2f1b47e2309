// SPDX-License-Identifier: Apache-2.0
// The dense parameters of a block, or their gradients: matrices with what optimisers and checkpoints ask of them. Every rank
// of a stage holds all of each.
#pragma once

#include <moiety/moiety.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lm {

namespace mo = moiety;

template <class Context> using view = mo::matrix_view<typename Context::element>;
template <class Context> using const_view = mo::matrix_view<typename Context::element const>;

/// One of a block's parameters. Those without a fan in do not decay.
struct dense {
  std::string name;
  std::int64_t rows, cols, fan_in;
  double mean, deviation;  // of its first values
};

template <class Real> class tensors {
 public:
  /// Zeros.
  template <class Context> tensors(Context& ctx, std::vector<dense> const& all) {
    for (dense const& d : all) {
      about_.push_back({.name = d.name,
                        .shape = {d.rows, d.cols},
                        .part = {{0, d.rows}, {0, d.cols}},
                        .fan_in = d.fan_in,
                        .type = mo::name_of<Real>});
      values_.push_back(ctx.matrix(d.rows, d.cols));
    }
  }

  /// Normal values: element i is a function of (seed, prefix + name, i) alone.
  void initialise(std::vector<dense> const& all, mo::seed seed, std::string_view prefix) {
    for (std::size_t t = 0; t < all.size(); ++t) {
      std::uint64_t const stream = mo::stream_of(std::string(prefix) + all[t].name);
      for (std::uint64_t i = 0; Real & w : values_[t])
        w = static_cast<Real>(all[t].mean + all[t].deviation * mo::normal(seed, stream, i++));
    }
  }

  mo::matrix<Real>& operator[](std::size_t t) { return values_[t]; }
  mo::matrix<Real> const& operator[](std::size_t t) const { return values_[t]; }

  /// f(parameter, span of its values) for each.
  template <class F> void for_each(F&& f) {
    for (std::size_t t = 0; t < values_.size(); ++t)
      f(std::as_const(about_[t]), std::span<Real>(values_[t].data(), values_[t].size()));
  }
  template <class F> void for_each(F&& f) const {
    for (std::size_t t = 0; t < values_.size(); ++t)
      f(about_[t], std::span<Real const>(values_[t].data(), values_[t].size()));
  }

  /// Of gradients: those of a step begin at zero.
  void reset() {
    for (auto& m : values_) std::fill(m.begin(), m.end(), Real{0});
  }

 private:
  std::vector<mo::parameter> about_;
  std::vector<mo::matrix<Real>> values_;
};

/// Weights as initialise() makes them.
template <class Context>
auto make_tensors(Context& ctx, std::vector<dense> const& all, mo::seed seed, std::string_view prefix) {
  tensors<typename Context::element> made(ctx, all);
  made.initialise(all, seed, prefix);
  return made;
}

/// y = x + z, where y may be x or z
template <class Context> void add(Context& ctx, const_view<Context> x, const_view<Context> z, view<Context> y) {
  ctx.engine().for_blocks(y.rows(), 64, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i)
      for (std::int64_t j = 0; j < y.cols(); ++j) y(i, j) = x(i, j) + z(i, j);
  });
}

/// Gives m the shape [rows × cols]; a matrix that has it already keeps its memory and its values.
template <class Context>
void reshape(Context& ctx, mo::matrix<typename Context::element>& m, std::int64_t rows, std::int64_t cols) {
  if (m.rows() != rows || m.cols() != cols) m = ctx.matrix(rows, cols);
}

/// Rooms that forward takes and backward gives back, so that a step allocates little. Used by one thread at a time.
template <class Room> class spare_rooms {
 public:
  Room take() {
    if (spare_.empty()) return {};
    Room room = std::move(spare_.back());
    spare_.pop_back();
    return room;
  }
  void give(Room&& room) { spare_.push_back(std::move(room)); }

 private:
  std::vector<Room> spare_;
};

}  // namespace lm
