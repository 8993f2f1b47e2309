// SPDX-License-Identifier: Apache-2.0
// The dense parameters of a block, or their gradients: matrices with what optimisers and checkpoints ask of them. Every rank
// of a stage holds all of each.
#pragma once

#include "rows.hpp"

#include <moiety/moiety.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lm {

template <class Context> using view = mo::matrix_view<typename Context::element>;
template <class Context> using const_view = mo::matrix_view<typename Context::element const>;
/// In memory of the back end.
template <class Context> using matrix_of = decltype(std::declval<Context&>().matrix(0, 0));

/// One of a block's parameters. Those without a fan in do not decay.
struct dense {
  std::string name;
  std::int64_t rows, cols, fan_in;
  double mean, deviation;  // of its first values
};

template <class Context> class tensors {
  using real = typename Context::element;
  using matrix = matrix_of<Context>;

 public:
  /// Zeros.
  tensors(Context& ctx, std::vector<dense> const& all) : memory_(&ctx.memory()) {
    for (dense const& d : all) {
      about_.push_back({.name = d.name,
                        .shape = {d.rows, d.cols},
                        .part = {{0, d.rows}, {0, d.cols}},
                        .fan_in = d.fan_in,
                        .type = mo::name_of<real>});
      values_.push_back(ctx.matrix(d.rows, d.cols));
    }
  }

  /// Normal values: element i is a function of (seed, prefix + name, i) alone.
  void initialise(std::vector<dense> const& all, mo::seed seed, std::string_view prefix) {
    for (std::size_t t = 0; t < all.size(); ++t) {
      std::uint64_t const stream = mo::stream_of(std::string(prefix) + all[t].name);
      std::vector<real> first(values_[t].size());
      for (std::uint64_t i = 0; real & w : first)
        w = static_cast<real>(all[t].mean + all[t].deviation * mo::normal(seed, stream, i++));
      memory_->store(values_[t].data(), first.data(), bytes_of(values_[t]));
    }
  }

  matrix& operator[](std::size_t t) { return values_[t]; }
  matrix const& operator[](std::size_t t) const { return values_[t]; }

  /// f(parameter, span of its values) for each.
  template <class F> void for_each(F&& f) {
    for (std::size_t t = 0; t < values_.size(); ++t)
      f(std::as_const(about_[t]), std::span<real>(values_[t].data(), values_[t].size()));
  }
  template <class F> void for_each(F&& f) const {
    for (std::size_t t = 0; t < values_.size(); ++t)
      f(about_[t], std::span<real const>(values_[t].data(), values_[t].size()));
  }

  /// Of gradients: those of a step begin at zero.
  void reset() {
    for (matrix& m : values_) memory_->zero(m.data(), bytes_of(m));
  }

 private:
  static std::int64_t bytes_of(matrix const& m) { return static_cast<std::int64_t>(m.size() * sizeof(real)); }

  mo::arena* memory_;
  std::vector<mo::parameter> about_;
  std::vector<matrix> values_;
};

/// Weights as initialise() makes them.
template <class Context>
auto make_tensors(Context& ctx, std::vector<dense> const& all, mo::seed seed, std::string_view prefix) {
  tensors<Context> made(ctx, all);
  made.initialise(all, seed, prefix);
  return made;
}

template <class Real> struct added_rows {
  mo::matrix_view<Real const> x, z;
  mo::matrix_view<Real> y;

  template <class Team> MOIETY_HD void operator()(Team const& team, std::int64_t t) const {
    team.columns(y.cols(), [&](std::int64_t h) { y.row(t)[h] = x.row(t)[h] + z.row(t)[h]; });
  }
};

/// y = x + z, where y may be x or z
template <class Context> void add(Context& ctx, const_view<Context> x, const_view<Context> z, view<Context> y) {
  for_rows(ctx.engine(), y.rows(), 64, added_rows<typename Context::element>{x, z, y});
}

/// Gives m the shape [rows × cols]; a matrix that has it already keeps its memory and its values.
template <class Context> void reshape(Context& ctx, matrix_of<Context>& m, std::int64_t rows, std::int64_t cols) {
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
