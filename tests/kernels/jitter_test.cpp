// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/jitter.hpp>

#include <moiety/kernels/fill_normal.hpp>
#include <moiety/router/jitter.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace mo = moiety;

TEST_CASE_TEMPLATE("values are multiplied by their noise, on any number of threads, in place or not", T, float, double,
                   mo::bf16) {
  constexpr std::int64_t tokens = 70, width = 13, x_stride = 15, out_stride = 17;
  using S = mo::sum_t<T>;
  mo::jitter<std::ratio<1, 4>> const noise{.key = mo::seed{5}};
  mo::token_table const where{.first_row = 1000, .step = 3};
  std::vector<T> x(tokens * x_stride), poison(tokens * out_stride, static_cast<T>(-7.0f));
  mo::host_engine one{mo::host{.threads = 1}}, three{mo::host{.threads = 3}};
  mo::kernels::fill_normal<T>(one, {x.data(), tokens, x_stride}, 1, mo::seed{1}, 2, 0);
  std::vector<T> a = poison, b = poison, in_place = x;
  mo::matrix_view<T const> const from{x.data(), tokens, width, x_stride};
  mo::kernels::jitter_rows<T>(one, noise, where, from, {a.data(), tokens, width, out_stride});
  mo::kernels::jitter_rows<T>(three, noise, where, from, {b.data(), tokens, width, out_stride});
  mo::matrix_view<T> const same{in_place.data(), tokens, width, x_stride};
  mo::kernels::jitter_rows<T>(three, noise, where, same, same);
  CHECK(std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t h = 0; h < out_stride; ++h) {
      T const got = a[static_cast<std::size_t>(t * out_stride + h)];
      if (h >= width) {
        CHECK(static_cast<S>(got) == S(-7));
        continue;
      }
      S const wanted = static_cast<S>(from(t, h)) * noise.factor<S>(1000 + t, 3, h, width);
      CHECK(static_cast<S>(got) == static_cast<S>(static_cast<T>(wanted)));
      CHECK(static_cast<S>(same(t, h)) == static_cast<S>(got));
    }
}
