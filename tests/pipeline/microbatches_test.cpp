// SPDX-License-Identifier: Apache-2.0
#include <moiety/pipeline/microbatches.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <exception>
#include <span>
#include <stdexcept>
#include <vector>

namespace mo = moiety;

TEST_CASE("micro-batches of any sizes, empty ones too") {
  mo::microbatches const some{{64, 0, 17}};
  CHECK(some.count() == 3);
  CHECK(some.tokens(2) == 17);
  CHECK(some.before(0) == 0);
  CHECK(some.before(2) == 64);
  CHECK(some.all() == 81);
  mo::microbatches const equal = mo::equal_batches(8, std::int64_t{1} << 40);
  CHECK(equal.count() == 8);
  CHECK(equal.tokens(7) == std::int64_t{1} << 40);
  CHECK(equal.all() == std::int64_t{1} << 43);
  CHECK(mo::microbatches{{}}.all() == 0);
}

TEST_CASE("sizes that cannot be") {
  CHECK_THROWS_WITH_AS((mo::microbatches{{4, -1}}), "a micro-batch cannot have -1 tokens.", mo::config_error);
  CHECK_THROWS_WITH_AS(mo::equal_batches(0, 4), "a step needs at least 1 micro-batch, but was given 0.",
                       mo::config_error);
  CHECK_THROWS_AS(mo::equal_batches(2, -4), mo::config_error);
}

TEST_CASE("square_error is a sum of squares, and dy its derivative") {
  mo::context<> ctx;
  mo::matrix<double> y(5, 7), dy(5, 7), unused(5, 7);
  mo::fill_normal(ctx, y.view(), mo::seed{3});
  mo::task_loss const loss = mo::square_error(ctx, y.view(), dy.view());
  CHECK(loss.weight == 5);
  double const step = 1e-5;
  for (std::int64_t i = 0; i < 5; ++i)
    for (std::int64_t j = 0; j < 7; ++j) {
      double const at = y(i, j);
      y(i, j) = at + step;
      double const up = mo::square_error(ctx, y.view(), unused.view()).sum;
      y(i, j) = at - step;
      double const down = mo::square_error(ctx, y.view(), unused.view()).sum;
      y(i, j) = at;
      CHECK(std::abs((up - down) / (2 * step) - dy(i, j)) < 1e-7);
    }
  mo::matrix<float> three(1, 2), slope(1, 2);
  three(0, 0) = 3, three(0, 1) = -0.5f;
  CHECK(mo::square_error(ctx, three.view(), slope.view()) == mo::task_loss{9.25, 1});
  CHECK(slope(0, 0) == 6);
  CHECK(slope(0, 1) == -1);
}

TEST_CASE("square_error of no row, of rows apart, of shapes that differ") {
  mo::context<> ctx;
  mo::matrix<mo::bf16> none(0, 4), all(3, 4), gradients(3, 4);
  CHECK(mo::square_error(ctx, none.view(), none.view()) == mo::task_loss{});
  for (auto& v : all) v = static_cast<mo::bf16>(2.0f);
  mo::matrix_view<mo::bf16> const apart{all.data(), 3, 2, 4}, to{gradients.data(), 3, 2, 4};
  CHECK(mo::square_error(ctx, apart, to) == mo::task_loss{24, 3});
  CHECK(static_cast<float>(gradients(2, 1)) == 4);
  CHECK(static_cast<float>(gradients(2, 2)) == 0);
  CHECK_THROWS_WITH_AS(mo::square_error(ctx, all.view(), to),
                       "square_error was given y of the shape [3 x 4] and dy of [3 x 2].", mo::data_error);
}

TEST_CASE("a micro-batch is what its description says, and says where it is in the step") {
  std::vector<std::int64_t> const sequences{0, 1, 3};
  std::vector<std::uint8_t> const mask{1, 0, 1};
  mo::microbatches batches{{2, 3, 0}};
  CHECK(batches.about(1).units() == 1);
  batches.describe([&](int m) {
    if (m != 1) return mo::batch{.first_row = 77, .step = 77};
    return mo::batch{.sequences = sequences, .mask = mask, .weight = 2.5};
  });
  CHECK(batches.about(1).units() == 2);
  mo::context<> ctx;
  auto const all = mo::batches_of_step(ctx, batches, 9);
  REQUIRE(all.size() == 3);
  for (std::size_t m = 0; m < 3; ++m) {
    CHECK(all[m].first_row == std::vector<std::int64_t>{0, 2, 5}[m]);
    CHECK(all[m].step == 9);
    CHECK(all[m].mask.size() == (m == 1 ? 3 : 0));
  }
  CHECK(all[1].weight == 2.5);
  CHECK(all[1].masked(1));
}

TEST_CASE("a description that does not fit its micro-batch") {
  std::vector<std::int32_t> const ids{1, 2, 3};
  auto batches =
      mo::equal_batches(2, 3).describe([&](int m) { return mo::batch{.ids = std::span(ids).first(m == 0 ? 3 : 2)}; });
  CHECK(batches.about(0).ids.size() == 3);
  CHECK_THROWS_WITH_AS(batches.about(1), "mo::batch{.ids} has 2 entries for a call of 3 tokens.", mo::data_error);
}

TEST_CASE("a description of one rank that does not fit is an error of all ranks, and the next one is in order") {
  struct spread : mo::deployment<mo::dynamic> {};
  std::vector<std::uint8_t> const mask{1, 1};
  mo::step_counts const counts(2);
  mo::batch const bad[]{{.mask = mask}, {.weight = -1}, {.counts = &counts}};
  for (mo::layout const& mesh : {mo::layout{.data = 3}, {.pipeline = 3}, {.data = 2, .pipeline = 2}})
    mo::run<spread>(
        [&](mo::context<spread>& ctx) {
          bool const mine = ctx.world().rank() == 1;
          for (mo::batch const& about : bad) {
            auto batches =
                mo::equal_batches(2, 3).describe([&](int m) { return mine && m == 1 ? about : mo::batch{}; });
            CHECK_THROWS_AS(mo::batches_of_step(ctx, batches, 0), mo::data_error);
          }
          CHECK_THROWS_AS(mo::batches_of_step(ctx, mo::equal_batches(mine ? 3 : 2, 3), 0, 2), mo::config_error);
          auto throwing = mo::equal_batches(2, 3).describe([&](int) -> mo::batch {
            if (mine) throw std::runtime_error("no data");
            return {};
          });
          try {
            mo::batches_of_step(ctx, throwing, 0);
            CHECK(false);
          } catch (std::exception const& error) {
            CHECK(doctest::String(error.what()) ==
                  (mine ? "no data"
                        : doctest::String(mo::detail::sentence("rank 1 of the ", ctx.world().size(),
                                                               " that call together refused: no data")
                                              .c_str())));
          }
          CHECK(mo::batches_of_step(ctx, mo::equal_batches(2, 3), 4)[1].step == 4);
        },
        {.deadline = std::chrono::seconds(20)}, mesh);
}

TEST_CASE("a description names no counts") {
  mo::step_counts const counts(2);
  auto const batches = mo::equal_batches(2, 3).describe([&](int) { return mo::batch{.counts = &counts}; });
  CHECK_THROWS_WITH_AS(batches.about(1),
                       "the description of micro-batch 1 names mo::batch{.counts}, which are of one layer: an engine "
                       "keeps those of each.",
                       mo::data_error);
}
