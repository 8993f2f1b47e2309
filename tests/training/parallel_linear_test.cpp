// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/parallel_linear.hpp>

#include "thread_ranks.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace mo = moiety;

namespace {

constexpr std::int64_t outputs = 37, inputs = 29;

template <class T> mo::matrix<T> integers(std::int64_t rows, std::int64_t cols, unsigned seed) {
  std::mt19937 bits(seed);
  std::uniform_int_distribution<int> draw(-3, 3);
  mo::matrix<T> m(rows, cols);
  for (T& v : m) v = T(static_cast<float>(draw(bits)));
  return m;
}

template <class T> mo::matrix<T> reals(std::int64_t rows, std::int64_t cols, unsigned seed) {
  mo::matrix<T> m(rows, cols);
  auto const values = ranks::normals<float>(m.size(), seed);
  for (std::size_t i = 0; i < m.size(); ++i) m.data()[i] = T(values[i]);
  return m;
}

template <class T> mo::matrix<T> copy(mo::matrix_view<T const> from) {
  mo::matrix<T> to(from.rows(), from.cols());
  for (std::int64_t i = 0; i < from.rows(); ++i)
    for (std::int64_t j = 0; j < from.cols(); ++j) to(i, j) = from(i, j);
  return to;
}

template <class T> mo::matrix<T> columns(mo::matrix<T> const& m, mo::range_of r) {
  T const* const first = m.data() == nullptr ? nullptr : m.data() + r.first;
  return copy(mo::matrix_view<T const>(first, m.rows(), r.count, m.cols()));
}
template <class T> mo::matrix<T> rows(mo::matrix<T> const& m, mo::range_of r) { return copy(m.rows(r.first, r.count)); }

template <class T> bool same(mo::matrix<T> const& a, mo::matrix<T> const& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (static_cast<mo::sum_t<T>>(a.data()[i]) != static_cast<mo::sum_t<T>>(b.data()[i])) return false;
  return true;
}

template <class T> double far(mo::matrix<T> const& a, mo::matrix<T> const& b) {
  double most = a.rows() == b.rows() && a.cols() == b.cols() ? 0 : 1e30;
  for (std::size_t i = 0; i < a.size(); ++i)
    most = std::max(most, std::abs(static_cast<double>(a.data()[i]) - static_cast<double>(b.data()[i])));
  return most;
}

/// The whole map on one rank.
template <class T> struct whole {
  mo::matrix<T> x, w, dy, y, dx;
  mo::matrix<mo::sum_t<T>> dw;

  template <class Make>
  whole(std::int64_t tokens, Make const& make)
      : x(make(tokens, inputs, 1)),
        w(make(outputs, inputs, 2)),
        dy(make(tokens, outputs, 3)),
        y(tokens, outputs),
        dx(tokens, inputs),
        dw(outputs, inputs) {
    mo::host_engine engine(mo::host{.threads = 1});
    std::array<std::int64_t, 2> const all{0, tokens};
    mo::kernels::linear<T>(engine, x, w, nullptr, y);
    mo::kernels::linear_input_gradient<T>(engine, dy, w, nullptr, dx);
    mo::kernels::linear_weight_gradient<T>(engine, dy, x, nullptr, all.data(), dw, false);
  }
};

/// What one rank has of the map, and what it made of it.
template <class T> struct part {
  mo::matrix<T> x, w, dy, y, dx;
  mo::matrix<mo::sum_t<T>> dw;

  template <class Linear> void run(Linear& linear) {
    y = mo::matrix<T>(dy.rows(), dy.cols());
    dx = mo::matrix<T>(x.rows(), x.cols());
    dw = mo::matrix<mo::sum_t<T>>(w.rows(), w.cols());
    linear.forward(x, w, y);
    linear.backward(x, w, dy, dx, dw, false);
  }
};

mo::range_of held(std::int64_t tokens, mo::token_rows form, ranks::communicator& group) {
  if (form == mo::token_rows::everywhere) return {0, tokens};
  return mo::slice_of(tokens, group.rank(), group.size());
}

/// f(form, tokens, ranks' communicator) for both forms, numbers of tokens that no number of ranks divides, and 1 … 4 ranks.
template <class F> void for_each_form(F const& f) {
  for (auto const form : {mo::token_rows::everywhere, mo::token_rows::split})
    for (std::int64_t const tokens : {0, 3, 13})
      for (int const size : {1, 2, 3, 4}) ranks::run(size, [&](ranks::communicator& group) { f(form, tokens, group); });
}

}  // namespace

TEST_CASE_TEMPLATE("parallel maps of small integers are the whole map exactly", T, float, double, mo::bf16) {
  for_each_form([](mo::token_rows form, std::int64_t tokens, ranks::communicator& group) {
    whole<T> const all(tokens, integers<T>);
    mo::host_engine engine(mo::host{.threads = 1});
    auto const here = held(tokens, form, group);
    {
      mo::column_parallel_linear<T, ranks::communicator> linear(engine, group, outputs, inputs, form);
      part<T> mine{rows(all.x, here), rows(all.w, linear.outputs()), columns(all.dy, linear.outputs()), {}, {}, {}};
      mine.run(linear);
      CHECK(same(mine.y, columns(all.y, linear.outputs())));
      CHECK(same(mine.dx, rows(all.dx, here)));
      CHECK(same(mine.dw, rows(all.dw, linear.outputs())));
    }
    mo::row_parallel_linear<T, ranks::communicator> linear(engine, group, outputs, inputs, form);
    part<T> mine{columns(all.x, linear.inputs()), columns(all.w, linear.inputs()), rows(all.dy, here), {}, {}, {}};
    mine.run(linear);
    CHECK(same(mine.y, rows(all.y, here)));
    CHECK(same(mine.dx, columns(all.dx, linear.inputs())));
    CHECK(same(mine.dw, columns(all.dw, linear.inputs())));
  });
}

TEST_CASE("what is not summed over ranks has the bits of the whole map, and the rest is close") {
  for_each_form([](mo::token_rows form, std::int64_t tokens, ranks::communicator& group) {
    whole<float> const all(tokens, reals<float>);
    mo::host_engine engine(mo::host{.threads = 1});
    auto const here = held(tokens, form, group);
    {
      mo::column_parallel_linear<float, ranks::communicator> linear(engine, group, outputs, inputs, form);
      part<float> mine{rows(all.x, here), rows(all.w, linear.outputs()), columns(all.dy, linear.outputs()), {}, {}, {}};
      mine.run(linear);
      CHECK(same(mine.y, columns(all.y, linear.outputs())));
      CHECK(same(mine.dw, rows(all.dw, linear.outputs())));
      CHECK(far(mine.dx, rows(all.dx, here)) < 1e-5);
    }
    mo::row_parallel_linear<float, ranks::communicator> linear(engine, group, outputs, inputs, form);
    part<float> mine{columns(all.x, linear.inputs()), columns(all.w, linear.inputs()), rows(all.dy, here), {}, {}, {}};
    mine.run(linear);
    CHECK(same(mine.dx, columns(all.dx, linear.inputs())));
    CHECK(same(mine.dw, columns(all.dw, linear.inputs())));
    CHECK(far(mine.y, rows(all.y, here)) < 1e-5);
  });
}

// ⟨dy, y⟩ over the ranks, each row once, is ⟨dx, x⟩ and ⟨dW, W⟩, as the map is linear in both.
TEST_CASE("backward is the adjoint of forward, by itself") {
  auto const inner = [](auto const& a, auto const& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a.data()[i] * b.data()[i];
    return sum;
  };
  for (int const size : {2, 3, 4})
    ranks::run(size, [&](ranks::communicator& group) {
      mo::host_engine engine(mo::host{.threads = 1});
      constexpr auto form = mo::token_rows::split;
      std::int64_t const tokens = 11;
      auto const seed = static_cast<unsigned>(group.rank());
      auto const here = mo::slice_of(tokens, group.rank(), group.size()).count;
      auto const check = [&](auto& linear, part<double> mine) {
        mine.run(linear);
        std::array<double, 3> products{inner(mine.dy, mine.y), inner(mine.dx, mine.x), inner(mine.dw, mine.w)};
        group.all_reduce(std::span<double>(products));
        CHECK(products[0] == products[1]);
        CHECK(products[0] == products[2]);
        CHECK(products[0] != 0);
      };
      mo::column_parallel_linear<double, ranks::communicator> column(engine, group, outputs, inputs, form);
      auto const n = column.outputs().count;
      check(column, {integers<double>(here, inputs, seed),
                     integers<double>(n, inputs, seed + 10),
                     integers<double>(tokens, n, seed + 20),
                     {},
                     {},
                     {}});
      mo::row_parallel_linear<double, ranks::communicator> row(engine, group, outputs, inputs, form);
      auto const k = row.inputs().count;
      check(row, {integers<double>(tokens, k, seed),
                  integers<double>(outputs, k, seed + 10),
                  integers<double>(here, outputs, seed + 20),
                  {},
                  {},
                  {}});
    });
}

// A loss of a column-parallel map, a square, and a row-parallel one; differences of the loss against the gradients.
TEST_CASE("gradients of two maps in a row are those of finite differences") {
  for (auto const form : {mo::token_rows::everywhere, mo::token_rows::split})
    ranks::run(3, [&](ranks::communicator& group) {
      using column_map = mo::column_parallel_linear<double, ranks::communicator>;
      using row_map = mo::row_parallel_linear<double, ranks::communicator>;
      mo::host_engine engine(mo::host{.threads = 1});
      constexpr std::int64_t tokens = 7, hidden = 5, ffn = 8;
      column_map up(engine, group, ffn, hidden, form);
      row_map down(engine, group, hidden, ffn, form);
      auto const here = held(tokens, form, group);
      auto x = rows(reals<double>(tokens, hidden, 1), here);
      auto const target = rows(reals<double>(tokens, hidden, 2), here);
      auto w1 = rows(reals<double>(ffn, hidden, 3), up.outputs());
      auto w2 = columns(reals<double>(hidden, ffn, 4), down.inputs());
      auto const n = up.outputs().count;
      mo::matrix<double> z(tokens, n), a(tokens, n), y(here.count, hidden);
      auto const loss = [&] {
        up.forward(x, w1, z);
        for (std::size_t i = 0; i < z.size(); ++i) a.data()[i] = z.data()[i] * z.data()[i];
        down.forward(a, w2, y);
        double sum = 0;
        for (std::size_t i = 0; i < y.size(); ++i) sum += y.data()[i] * target.data()[i];
        if (form == mo::token_rows::split) group.all_reduce(std::span(&sum, 1));
        return sum;
      };
      loss();
      mo::matrix<double> da(tokens, n), dz(tokens, n), dx(here.count, hidden), dw1(n, hidden), dw2(hidden, n);
      down.backward(a, w2, target, da, dw2, false);
      for (std::size_t i = 0; i < z.size(); ++i) dz.data()[i] = 2 * z.data()[i] * da.data()[i];
      up.backward(x, w1, dz, dx, dw1, false);

      // One value of one rank moves; where rows are everywhere, x moves on all.
      auto const check = [&](mo::matrix<double>& values, mo::matrix<double> const& gradients, bool on_all) {
        for (int owner = 0; owner < (on_all ? 1 : group.size()); ++owner)
          for (std::size_t i = 0; i < 4; ++i) {
            bool const moves = on_all || owner == group.rank();
            double const was = values.data()[i], h = 1e-4;
            if (moves) values.data()[i] = was + h;
            double const above = loss();
            if (moves) values.data()[i] = was - h;
            double const below = loss();
            values.data()[i] = was;
            if (moves) CHECK(gradients.data()[i] == doctest::Approx((above - below) / (2 * h)).epsilon(1e-6));
          }
      };
      check(x, dx, form == mo::token_rows::everywhere);
      check(w1, dw1, false);
      check(w2, dw2, false);
    });
}

TEST_CASE("gradients of weights accumulate") {
  ranks::run(2, [](ranks::communicator& group) {
    mo::host_engine engine(mo::host{.threads = 1});
    mo::row_parallel_linear<float, ranks::communicator> linear(engine, group, 3, 4, mo::token_rows::split);
    auto const x = integers<float>(5, 2, 1), w = integers<float>(3, 2, 2);
    auto const dy = integers<float>(mo::slice_of(5, group.rank(), 2).count, 3, 3);
    mo::matrix<float> dx(5, 2), once(3, 2), twice(3, 2);
    linear.backward(x, w, dy, dx, once, false);
    linear.backward(x, w, dy, dx, twice, false);
    linear.backward(x, w, dy, dx, twice, true);
    for (std::size_t i = 0; i < once.size(); ++i) CHECK(twice.data()[i] == 2 * once.data()[i]);
  });
}

TEST_CASE("sizes and shapes that cannot work are errors before anything is sent") {
  ranks::run(3, [](ranks::communicator& group) {
    mo::host_engine engine(mo::host{.threads = 1});
    using column_map = mo::column_parallel_linear<float, ranks::communicator>;
    using row_map = mo::row_parallel_linear<float, ranks::communicator>;
    CHECK_THROWS_AS(column_map(engine, group, 2, 9), mo::config_error);
    CHECK_THROWS_AS(row_map(engine, group, 9, 2), mo::config_error);
    column_map linear(engine, group, 3, 4, mo::token_rows::split);
    mo::matrix<float> x(3, 4), w(1, 4), y(5, 1);
    CHECK_THROWS_WITH_AS(linear.forward(x, w, y), doctest::Contains("was given x [3 x 4] in place of ["),
                         mo::data_error);
  });
}
