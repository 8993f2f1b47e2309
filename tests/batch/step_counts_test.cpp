// SPDX-License-Identifier: Apache-2.0
#include <moiety/batch/step_counts.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

mo::routing_statistics made(std::int64_t tokens, std::int64_t first, std::int64_t second) {
  mo::routing_statistics s(2, 1);
  s.view().unit->tokens = tokens;
  s.view().experts[0].count = first, s.view().experts[1].count = second;
  return s;
}

std::vector<std::int64_t> all(mo::counts_view of) { return {of.tokens(), of[0], of[1]}; }

using integers = std::vector<std::int64_t>;

}  // namespace

TEST_CASE("counts of a step add up, and become those of the last step") {
  mo::step_counts counts(2);
  CHECK(counts.experts() == 2);
  CHECK(all(counts.so_far()) == integers{0, 0, 0});
  counts.add(made(3, 1, 2));
  counts.add(made(std::int64_t{1} << 40, std::int64_t{1} << 39, 5));
  CHECK(all(counts.so_far()) == integers{(std::int64_t{1} << 40) + 3, (std::int64_t{1} << 39) + 1, 7});
  CHECK(all(counts.last_step()) == integers{0, 0, 0});
  counts.next_step();
  CHECK(all(counts.so_far()) == integers{0, 0, 0});
  CHECK(all(counts.last_step()) == integers{(std::int64_t{1} << 40) + 3, (std::int64_t{1} << 39) + 1, 7});
  counts.add(made(4, 4, 0));
  CHECK(all(counts.so_far()) == integers{4, 4, 0});
  CHECK(counts.values().size() == 6);
  CHECK(counts.values()[4] == (std::int64_t{1} << 39) + 1);
  counts.next_step();
  CHECK(all(counts.last_step()) == integers{4, 4, 0});
}

TEST_CASE("what is counted of a step can be forgotten, and the last step stays") {
  mo::step_counts counts(2);
  counts.add(made(3, 1, 2));
  counts.next_step();
  counts.add(made(9, 4, 5));
  counts.restart();
  CHECK(all(counts.so_far()) == integers{0, 0, 0});
  CHECK(all(counts.last_step()) == integers{3, 1, 2});
}

TEST_CASE("a table adds its whole batch, once") {
  mo::statistics_table table(2, integers{0, 1, 4});
  table.view().unit(0).unit->tokens = 4;
  table.view().unit(0).experts[1].count = 3;
  table.view().unit(1).experts[1].count = 1;
  mo::step_counts counts(2);
  counts.add(table);
  CHECK(all(counts.so_far()) == integers{4, 0, 3});
}

TEST_CASE("a view of no counts is of no token") {
  mo::counts_view const none;
  CHECK(all(none) == integers{0, 0, 0});
}

TEST_CASE("counts and statistics are of the same experts") {
  CHECK_THROWS_WITH_AS(mo::step_counts(0), "counts need at least 1 expert, but were given 0.", mo::config_error);
  CHECK_THROWS_AS(mo::step_counts(-7), mo::config_error);
  mo::step_counts counts(3);
  CHECK_THROWS_WITH_AS(counts.add(made(1, 1, 0)), "statistics of 2 experts cannot be added to the counts of 3.",
                       mo::data_error);
}
