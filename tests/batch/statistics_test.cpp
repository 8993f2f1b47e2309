// SPDX-License-Identifier: Apache-2.0
#include <moiety/batch/statistics.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

mo::routing_statistics made(std::int64_t tokens, std::int64_t count, double probability) {
  mo::routing_statistics s(2, 1);
  mo::statistics_view const view = s.view();
  view.unit->tokens = tokens;
  view.unit->lse_squared.add(probability);
  view.experts[1].count = count;
  view.experts[1].probability.add(probability);
  return s;
}

}  // namespace

TEST_CASE("statistics add up exactly") {
  mo::routing_statistics a = made(3, 2, 0.1);
  a += made(std::int64_t{1} << 40, std::int64_t{1} << 33, 0.2);
  CHECK(a.tokens() == (std::int64_t{1} << 40) + 3);
  CHECK(a.counts() == std::vector<std::int64_t>{0, (std::int64_t{1} << 33) + 2});
  mo::exact_sum expected;
  expected.add(0.2);
  expected.add(0.1);
  CHECK(a.probabilities()[1] == expected.value());
  CHECK(a.lse_squared() == expected.value());
  mo::routing_statistics b = made(std::int64_t{1} << 40, std::int64_t{1} << 33, 0.2);
  b += made(3, 2, 0.1);
  CHECK(a == b);
}

TEST_CASE("empty statistics take the first that are added; different ones do not mix") {
  mo::routing_statistics none;
  none += made(3, 2, 0.1);
  CHECK(none == made(3, 2, 0.1));
  CHECK_THROWS_WITH_AS(none += mo::routing_statistics(3, 1),
                       "statistics of 1 of 3 experts cannot be added to those of 1 of 2.", mo::data_error);
  CHECK_THROWS_AS(none += mo::routing_statistics(2, 2), mo::data_error);
}

TEST_CASE("tokens that groups are sent add up; statistics of different groups do not mix") {
  mo::routing_statistics a(4, 2, 2), b(4, 2, 2);
  a.view().experts[0].reached = 3, a.view().experts[2].reached = std::int64_t{1} << 40;
  b.view().experts[2].reached = 5;
  a += b;
  CHECK(a.groups() == 2);
  CHECK(a.reached() == std::vector<std::int64_t>{3, (std::int64_t{1} << 40) + 5});
  CHECK(mo::routing_statistics(4, 2).reached().empty());
  CHECK_THROWS_WITH_AS(a += mo::routing_statistics(4, 2),
                       "statistics of 0 groups of experts cannot be added to those of 2.", mo::data_error);
}

TEST_CASE("units know the counts of other micro-batches, where there are some") {
  mo::statistics_table table(2);
  mo::batch_statistics all = table.view();
  CHECK(all.unit(0).earlier.tokens() == 0);
  CHECK(all.unit(0).last_step.tokens() == 0);
  std::vector<std::int64_t> const counts{7, 1, 6, 9, 4, 5};
  all.step_counts = counts.data();
  CHECK(all.unit(0).earlier.tokens() == 7);
  CHECK(all.unit(0).earlier[1] == 6);
  CHECK(all.unit(0).last_step.tokens() == 9);
  CHECK(all.unit(0).last_step[0] == 4);
}

TEST_CASE("a copy of a view is a value of its own") {
  mo::routing_statistics a = made(3, 2, 0.1);
  mo::routing_statistics const copy(a.view());
  a += a;
  CHECK(copy == made(3, 2, 0.1));
  CHECK(a.tokens() == 6);
  CHECK(a.experts() == 2);
}

TEST_CASE("units weigh by their tokens; a batch without a weight weighs its unmasked tokens") {
  std::vector<std::int64_t> const sequences{0, 3, 3, 8};
  mo::statistics_table table(2, sequences);
  mo::batch_statistics const all = table.view();
  CHECK(all.count == 4);
  for (std::int64_t const t : {0, 1, 2}) CHECK(all.sequence_of(t) == 1);
  for (std::int64_t const t : {3, 7}) CHECK(all.sequence_of(t) == 3);
  CHECK(all.weight(0, -1) == 0);
  all.states->unroutable = 5;  // no token counts: then no sequence does
  CHECK(all.weight(0, -1) == 5);
  for (std::int64_t const u : {1, 2, 3}) CHECK(all.weight(u, -1) == 0);
  for (std::int64_t const u : {1, 2, 3}) CHECK(all.weight(u, 9) == 0);
  all.units[0].tokens = 6, all.units[1].tokens = 2, all.units[3].tokens = 4;
  *all.states = {6, 1, 0, 1};  // one token of the batch is padding
  CHECK(all.weight(0, -1) == 7);
  CHECK(all.weight(0, 0.5) == 0.5);
  CHECK(all.weight(0, 0) == 0);
  CHECK(all.weight(1, 9) == 3);
  CHECK(all.weight(2, 9) == 0);
  CHECK(all.weight(3, 9) == 6);
}

TEST_CASE("a table is a copy of what a back end holds") {
  mo::arena memory(*std::pmr::new_delete_resource());
  std::vector<std::int64_t> const sequences{0, 1, 4};
  mo::statistics_table table(2, sequences, 2);
  table.view().expert_units[5].count = 3;
  table.view().expert_units[4].reached = 8;
  table.view().units[2].tokens = 2;
  table.view().states->masked = 1;
  mo::statistics_table copy(table.view(), memory);
  CHECK(copy.view().count == 3);
  CHECK(copy.view().unit(2).experts[1].count == 3);
  CHECK(copy.view().unit(2).experts[0].reached == 8);
  CHECK(copy.view().groups == 2);
  CHECK(copy.view().unit(2).tokens() == 2);
  CHECK(copy.view().states->masked == 1);
  CHECK(copy.view().sequence_of(3) == 2);
  mo::statistics_table one(2);
  CHECK(mo::statistics_table(one.view(), memory).view().count == 1);
}

TEST_CASE("what a back end holds becomes what a table has, but for sequences") {
  mo::arena memory(*std::pmr::new_delete_resource());
  std::vector<std::int64_t> const sequences{0, 1, 4}, others{0, 2, 4};
  mo::statistics_table from(2, sequences, 0, true), held(2, others, 0, true);
  from.view().units[2].tokens = 2;
  from.view().expert_units[5].count = 3;
  from.view().expected_loads[4].add(0.25);
  from.view().states->masked = 1;
  held.view().units[1].tokens = 7;
  from.store(held.view(), memory);
  CHECK(held.view().units[1].tokens == 0);
  CHECK(held.view().units[2].tokens == 2);
  CHECK(held.view().expert_units[5].count == 3);
  CHECK(held.view().expected_loads[4].value() == 0.25);
  CHECK(held.view().states->masked == 1);
  CHECK(held.view().sequences[1] == 2);
}

TEST_CASE("expected loads are summed where they are asked for, and statistics with and without do not mix") {
  std::vector<std::int64_t> const sequences{0, 2, 5};
  mo::statistics_table table(3, sequences, 0, true);
  for (std::size_t e = 0; e < 3; ++e) table.view().unit(2).expected_loads[e].add(static_cast<double>(e));
  mo::routing_statistics a(table.view().unit(2));
  CHECK(a.expected_loads() == std::vector<double>{0, 1, 2});
  CHECK(mo::routing_statistics(table.view().unit(1)).expected_loads() == std::vector<double>{0, 0, 0});
  a += mo::routing_statistics(table.view().unit(2));
  CHECK(a.expected_loads() == std::vector<double>{0, 2, 4});
  CHECK(a != mo::routing_statistics(table.view().unit(2)));
  mo::statistics_table plain(3, sequences);
  CHECK(plain.view().unit(1).expected_loads.size() == 0);
  CHECK(mo::routing_statistics(plain.view().unit(1)).expected_loads().empty());
  CHECK_THROWS_WITH_AS(a += mo::routing_statistics(plain.view().unit(1)),
                       "statistics with expected loads cannot be added to those without, nor they to them.",
                       mo::data_error);
}
