// SPDX-License-Identifier: Apache-2.0
#include <moiety/mesh/context.hpp>

#include <moiety/backend/host.hpp>
#include <moiety/core/random.hpp>
#include <moiety/kernels/fill_normal.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace mo = moiety;

namespace {

template <class T> struct in {
  using backend = mo::host;
  using element = T;
  using transport = mo::self;
  static constexpr mo::layout shape{};
};

}  // namespace

TEST_CASE("a context has an engine, memory and a communicator, and makes zeroed matrices") {
  mo::context<in<mo::bf16>> ctx{mo::host{.threads = 2}};
  CHECK(ctx.engine().threads() == 2);
  CHECK(ctx.data().size() == 1);
  CHECK(std::is_same_v<decltype(ctx)::sum, float>);
  auto const m = ctx.matrix(3, 4);
  CHECK(std::is_same_v<std::remove_const_t<decltype(m)>, mo::matrix<mo::bf16>>);
  for (auto const v : m) CHECK(v.bits == 0);
  ctx.synchronize();
}

TEST_CASE_TEMPLATE("a value of fill_normal depends on seed, logical row and column alone", T, float, double, mo::bf16) {
  mo::context<in<T>> one{mo::host{.threads = 1}}, four{mo::host{.threads = 4}};
  auto whole = one.matrix(300, 7), same = four.matrix(300, 7), part = four.matrix(20, 7), other = one.matrix(300, 7);
  mo::fill_normal(one, whole, mo::seed{3});
  mo::fill_normal(four, same, mo::seed{3});
  mo::fill_normal(four, part, mo::seed{3}, mo::first_row{131});
  mo::fill_normal(one, other, mo::seed{4});
  CHECK(std::memcmp(whole.data(), same.data(), whole.size() * sizeof(T)) == 0);
  CHECK(std::memcmp(whole.row(131), part.data(), part.size() * sizeof(T)) == 0);
  CHECK(std::memcmp(whole.data(), other.data(), whole.size() * sizeof(T)) != 0);
  CHECK(static_cast<double>(whole(2, 3)) ==
        static_cast<double>(static_cast<T>(static_cast<mo::sum_t<T>>(mo::normal(mo::seed{3}, 0, 17)))));
}

TEST_CASE("fill_normal writes a strided view and nothing beside it, and refuses null") {
  mo::context<in<float>> ctx;
  mo::matrix<float> m(5, 6);
  mo::fill_normal(ctx, mo::matrix_view<float>(m.data(), 5, 4, 6), mo::seed{1});
  for (int i = 0; i < 5; ++i) {
    CHECK(m(i, 3) != 0);
    CHECK(m(i, 4) == 0);
  }
  CHECK_THROWS_AS(mo::fill_normal(ctx, mo::matrix_view<float>(nullptr, 5, 4), mo::seed{1}), mo::data_error);
}
