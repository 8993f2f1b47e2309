// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/arguments.hpp>

#include <moiety/backend/host.hpp>
#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <string>

namespace mo = moiety;

TEST_CASE("overlap is that of the elements where strides are equal, else of the memory between first and last") {
  float memory[20] = {};
  mo::matrix_view<float const> const first(memory, 2, 4), next(memory + 8, 2, 4), crossing(memory + 7, 2, 4);
  CHECK(mo::detail::overlap<float>(first, first));
  CHECK(mo::detail::overlap<float>(first, crossing));
  CHECK_FALSE(mo::detail::overlap<float>(first, next));
  CHECK_FALSE(mo::detail::overlap<float>(first, mo::matrix_view<float const>(memory, 0, 4)));
  CHECK(mo::detail::overlap<float>({memory, 2, 3, 8}, {memory + 3, 2, 3, 9}));
}

TEST_CASE("views of one stride overlap where they share an element, and nowhere else") {
  constexpr std::int64_t stride = 5, size = 48;
  float memory[size] = {};
  auto const elements = [&](mo::matrix_view<float const> m) {
    std::uint64_t set = 0;
    for (std::int64_t i = 0; i < m.rows(); ++i)
      for (std::int64_t j = 0; j < m.cols(); ++j) set |= std::uint64_t{1} << (&m(i, j) - memory);
    return set;
  };
  mo::matrix_view<float const> const a[] = {{memory + 15, 3, 2, stride},
                                            {memory + 17, 1, 4, stride},
                                            {memory + 16, 2, 5, stride},
                                            {memory + 18, 3, 1, stride}};
  std::int64_t wrong = 0, shared = 0, cases = 0;
  for (auto const& one : a)
    for (std::int64_t rows = 0; rows <= 3; ++rows)
      for (std::int64_t cols = 1; cols <= stride; ++cols)
        for (std::int64_t at = 0; at + rows * stride <= size; ++at, ++cases) {
          mo::matrix_view<float const> const other(memory + at, rows, cols, stride);
          bool const together = (elements(one) & elements(other)) != 0;
          shared += together;
          for (bool const found : {mo::detail::overlap<float>(one, other), mo::detail::overlap<float>(other, one)})
            wrong += found != together;
        }
  CHECK(wrong == 0);
  CHECK(shared > 0);
  CHECK(shared < cases);
}

TEST_CASE("x and y, dy and dx are column halves of one buffer") {
  struct spec : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 8, .experts = 4}> {
    using router = mo::router<mo::softmax, mo::top_k<2>>;
  };
  mo::context<> ctx;
  mo::moe_layer<spec> const layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  auto x = ctx.matrix(9, 16), y = ctx.matrix(9, 16), dx = ctx.matrix(9, 16), both = ctx.matrix(9, 32);
  mo::fill_normal(ctx, x, mo::seed{2});
  mo::matrix_view<float> const left(both.data(), 9, 16, 32), right(both.data() + 16, 9, 16, 32);
  auto const fill = [&] {
    for (std::int64_t t = 0; t < 9; ++t) std::copy_n(x.row(t), 16, left.row(t));
  };
  auto const holds = [&](mo::matrix<float> const& in, mo::matrix_view<float> there) {
    for (std::int64_t t = 0; t < 9; ++t)
      if (!std::equal(in.row(t), in.row(t) + 16, there.row(t))) return false;
    return true;
  };
  auto tape = layer.forward(weights, x, y);
  layer.backward(weights, tape, x, dx, gradients);
  fill();
  layer.infer(weights, left, right);
  CHECK(holds(y, right));
  CHECK(holds(x, left));
  auto again = layer.forward(weights, x, y);
  layer.backward(weights, again, left, right, gradients);
  CHECK(holds(dx, right));
  CHECK(holds(x, left));
}

TEST_CASE("a message has the call, the name and both shapes") {
  mo::host_engine const engine{mo::host{}};
  float memory[20] = {};
  auto const said = [&](mo::matrix_view<float const> m, std::int64_t rows) {
    try {
      mo::detail::check_shape<float>(engine, "forward", "y", m, rows, 4);
    } catch (mo::data_error const& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  CHECK(said({memory, 3, 4}, 3).empty());
  CHECK(said({memory, 2, 4}, 3) == "forward needs y of the shape [3 x 4], but was given [2 x 4].");
  CHECK(said({memory, 3, 5}, 3) == "forward needs y of the shape [3 x 4], but was given [3 x 5].");
  CHECK(said({nullptr, 3, 4}, 3) == "forward was given a null y.");
  CHECK(said({nullptr, 0, 4}, 0).empty());
  auto const* const odd = reinterpret_cast<float const*>(reinterpret_cast<char const*>(memory) + 2);
  CHECK(said({odd, 3, 4}, 3) == "forward was given y at an address that is no multiple of 4 bytes.");
  CHECK(said({memory, 3, 4, 3}, 3) == "forward was given y with a stride of 3 for 4 columns.");
}

TEST_CASE("as many slots as rows have an index for, and no more") {
  mo::host_engine const engine{mo::host{}};
  auto const check = [&]<class Router>(Router const& router, std::int64_t count) {
    mo::detail::check_batch(engine, router, {}, count, 8);
  };
  mo::router<mo::softmax, mo::top_k<2>> const two;
  std::int64_t const most = std::int64_t{1} << 30;
  CHECK_NOTHROW(check(two, most - 1));
  CHECK_THROWS_WITH_AS(check(two, most), "1073741824 tokens of 2 slots each do not fit a row index of 32 bits.",
                       mo::data_error);
  mo::router<mo::softmax, mo::expert_choice<2>> const any;
  CHECK_NOTHROW(check(any, most / 4 - 1));
  CHECK_THROWS_AS(check(any, most / 4), mo::data_error);
}
