// SPDX-License-Identifier: Apache-2.0
#include <moiety/pipeline/stack_layers.hpp>

#include <moiety/moiety.hpp>
#include <moiety/schedule/partition.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace mo = moiety;
using mo::placement;
using mo::detail::layer_shape;
using mo::detail::stack_layers;

namespace {

struct spread : mo::deployment<mo::dynamic> {};
using context = mo::context<spread>;
using counts = std::vector<int>;

auto split_of(counts const& of) {
  int blocks = 0;
  for (int const n : of) blocks += n;
  return mo::split_by_counts(of, blocks);
}

/// "0: 0 1 2; 3: 5" for a rank with the stages 0 and 3, and the layers 0, 1, 2 and 5.
std::vector<std::string> placed(int ranks, counts const& of, placement where) {
  std::vector<std::string> all(static_cast<std::size_t>(ranks));
  mo::run<spread>(
      [&](context& ctx) {
        stack_layers const mine(ctx, split_of(of), where);
        std::string& words = all[static_cast<std::size_t>(ctx.pipeline().rank())];
        for (int c = 0; c < mine.chunks(); ++c) {
          words += (c > 0 ? "; " : "") + std::to_string(mine.stage_of(c)) + ':';
          for (std::size_t i = 0; i < mine.count(c); ++i) words += ' ' + std::to_string(mine.number(mine.begin(c) + i));
        }
      },
      {}, {.pipeline = ranks});
  return all;
}

/// Layers of these columns, {input, output} each: what the ranks find, or what they say.
std::string agreed(
    int ranks, counts const& of, std::vector<layer_shape> const& shapes,
    std::function<void(int, std::vector<layer_shape>&)> const& change = [](int, auto&) {}) {
  std::vector<std::string> all(static_cast<std::size_t>(ranks));
  mo::run<spread>(
      [&](context& ctx) {
        std::string& words = all[static_cast<std::size_t>(ctx.pipeline().rank())];
        stack_layers layers(ctx, split_of(of), placement::loop);
        std::vector<layer_shape> mine;
        for (std::size_t i = 0; i < layers.size(); ++i)
          mine.push_back(shapes[static_cast<std::size_t>(layers.number(i))]);
        change(ctx.pipeline().rank(), mine);
        try {
          layers.agree(ctx, mine);
          if (layers.all() != shapes) throw mo::state_error("other layers.");
          words = std::to_string(layers.input_width()) + ' ' + std::to_string(layers.width()) + ' ' +
                  std::to_string(layers.output_width());
        } catch (mo::config_error const& e) {
          words = e.what();
        }
      },
      {}, {.pipeline = ranks});
  for (std::string const& words : all) CHECK(words == all[0]);
  return all[0];
}

}  // namespace

TEST_CASE("stages and layers of each rank") {
  using words = std::vector<std::string>;
  CHECK(placed(1, {3}, placement::loop) == words{"0: 0 1 2"});
  CHECK(placed(1, {1, 2}, placement::v) == words{"0: 0; 1: 1 2"});
  CHECK(placed(2, {1, 2, 0, 2}, placement::loop) == words{"0: 0; 2:", "1: 1 2; 3: 3 4"});
  CHECK(placed(2, {1, 2, 0, 2}, placement::v) == words{"0: 0; 3: 3 4", "1: 1 2; 2:"});
  CHECK(placed(4, {2, 1, 1, 2}, placement::bidirectional) ==
        words{"0: 0 1; 3: 4 5", "1: 2; 2: 3", "1: 2; 2: 3", "0: 0 1; 3: 4 5"});
  CHECK(placed(2, {0, 1}, placement::bidirectional) == words{"0:; 1: 0", "0:; 1: 0"});
}

TEST_CASE("what does not fit the pipeline") {
  auto const refused = [](int ranks, counts const& of, placement where, char const* sentence) {
    CHECK_THROWS_WITH_AS(placed(ranks, of, where), sentence, mo::config_error);
  };
  refused(2, {1, 1, 1}, placement::v,
          "a split into 3 stages does not fit a pipeline of 2 ranks: mo::placement::v takes a multiple of that.");
  refused(
      2, {1, 1, 1, 1}, placement::bidirectional,
      "a split into 4 stages does not fit a bidirectional pipeline of 2 ranks: mo::placement::bidirectional takes as "
      "many stages as ranks.");
  refused(3, {1, 1, 1}, placement::bidirectional, "a bidirectional pipeline has an even number of ranks, not 3.");
  refused(1, {0}, placement::loop, "a model needs at least 1 layer.");
}

TEST_CASE("widths: of the input, between stages, of the output") {
  std::vector<layer_shape> const model{{0, 0, 8}, {1, 8, 8}, {2, 8, 8}, {1, 8, 20}};
  for (counts const& of : {counts{4}, {1, 3}, {2, 2}, {3, 1}, {1, 0, 3}, {1, 1, 1, 1}})
    CHECK(agreed(static_cast<int>(of.size()), of, model) == "0 8 20");
  CHECK(agreed(1, {1}, {{0, 3, 5}}) == "3 5 5");
  CHECK(agreed(2, {1, 1}, {{0, 3, 5}, {0, 5, 4}}) == "3 5 4");
  CHECK(agreed(2, {1, 0}, {{0, 3, 5}}) == "3 5 5");
  CHECK(agreed(2, {0, 1}, {{0, 3, 3}}) == "3 3 3");
  // Inside a stage layers may have any width.
  CHECK(agreed(2, {2, 2}, {{0, 4, 9}, {0, 9, 4}, {0, 4, 7}, {0, 7, 4}}) == "4 4 4");

  CHECK(agreed(2, {1, 1}, {{0, 3, 5}, {0, 6, 4}}) == "layer 1 takes rows of 6 columns, but layer 0 gives rows of 5.");
  CHECK(agreed(1, {2}, {{0, 3, 5}, {0, 0, 4}}) == "layer 1 takes rows of 0 columns, but layer 0 gives rows of 5.");
  CHECK(agreed(1, {1}, {{0, 3, 0}}) == "layer 0 makes rows of 0 columns from rows of 3.");
  CHECK(agreed(4, {1, 1, 1, 1}, {{0, 4, 4}, {0, 4, 6}, {0, 6, 4}, {0, 4, 4}}) ==
        "rows between stages have one width, but stage 1 takes 4 columns and stage 2 6.");
  CHECK(agreed(4, {0, 1, 1, 1}, {{0, 0, 4}, {0, 4, 4}, {0, 4, 4}}) ==
        "rows between stages have one width, but stage 1 takes 0 columns and stage 2 4.");
}

TEST_CASE("ranks that have made different models") {
  auto const refused = [](mo::layout const& shape, auto const& split_on, placement where, std::int64_t odd_kind,
                          char const* sentence) {
    CHECK_THROWS_WITH_AS(mo::run<spread>(
                             [&](context& ctx) {
                               int const rank = ctx.world().rank();
                               stack_layers layers(ctx, split_on(rank), where);
                               std::vector<layer_shape> mine(layers.size(), {0, 8, 8});
                               if (rank == ctx.world().size() - 1) mine.back().kind = odd_kind;
                               layers.agree(ctx, mine);
                             },
                             {}, shape),
                         sentence, mo::config_error);
  };
  auto const same = [](int) { return split_of({1, 1}); };
  refused({.data = 2, .pipeline = 2}, same, placement::loop, 1,
          "rank 3 has made layer 1 another block than a rank before it that holds it too.");
  refused({.pipeline = 2}, same, placement::bidirectional, 1,
          "rank 1 has made layer 1 another block than a rank before it that holds it too.");
  refused(
      {.pipeline = 2},
      [](int rank) {
        return rank == 0 ? split_of({2, 1}) : split_of({1, 2});
      },
      placement::loop, 0,
      "the ranks of a stack disagree on the layers of each stage: that of rank 1 is not that of rank 0 "
      "(rank 0: the layers of each stage=2 1; rank 1: the layers of each stage=1 2).");
}
