// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/reduce_gradients.hpp>

#include "thread_ranks.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

constexpr std::size_t sizes[] = {7, 0, 1, 5000, 13, 20000, 3};  // several buckets, more than one round of messages
constexpr std::int64_t bucket_sizes[] = {1, 64, 30000, std::int64_t{1} << 22};

std::vector<std::vector<float>> gradients_of_rank(int rank) {
  std::vector<std::vector<float>> all;
  for (std::size_t i = 0; i < std::size(sizes); ++i)
    all.push_back(ranks::normals<float>(sizes[i], static_cast<unsigned>(100 * rank) + static_cast<unsigned>(i)));
  return all;
}

mo::gradient_list<float> list_of(std::vector<std::vector<float>>& values, mo::replicated over) {
  mo::gradient_list<float> list;
  for (std::size_t i = 0; i < values.size(); ++i) list.push_back({"tensor" + std::to_string(i), values[i], over});
  return list;
}

/// ((r₀ + r₁) + r₂) + …
std::vector<std::vector<float>> sums_of(std::vector<int> const& members) {
  auto sum = gradients_of_rank(members[0]);
  for (std::size_t m = 1; m < members.size(); ++m) {
    auto const more = gradients_of_rank(members[m]);
    for (std::size_t t = 0; t < sum.size(); ++t)
      for (std::size_t i = 0; i < sum[t].size(); ++i) sum[t][i] += more[t][i];
  }
  return sum;
}

/// Counts the sums that it is asked for in the order of a library.
class noting : public mo::thread_communicator {
 public:
  using thread_communicator::thread_communicator;
  noting(mo::thread_communicator const& other) : thread_communicator(other) {}

  template <class T> void all_reduce_fastest(std::span<T> values) {
    ++whole;
    thread_communicator::all_reduce_fastest(values);
  }
  template <class T> void reduce_scatter_fastest(std::span<T> values, std::span<std::int64_t const> counts) {
    ++parts;
    thread_communicator::reduce_scatter_fastest(values, counts);
  }
  noting split(int colour, int key, std::string const& name) { return thread_communicator::split(colour, key, name); }

  int whole = 0, parts = 0;
};

}  // namespace

TEST_CASE("sums have the order of the ranks, for every bucket size") {
  for (int const size : {1, 2, 3, 4}) {
    std::vector<int> everyone;
    for (int r = 0; r < size; ++r) everyone.push_back(r);
    auto const expected = sums_of(everyone);
    ranks::run(size, [&](ranks::communicator& world) {
      ranks::mesh mesh(world, size);
      for (std::int64_t const bucket : bucket_sizes) {
        auto mine = gradients_of_rank(world.rank());
        mo::reduce_gradients(list_of(mine, mo::replicated::stage), mesh.of_rank(), {.bucket_bytes = bucket});
        CHECK(mine == expected);
      }
    });
  }
}

TEST_CASE("sums in slices are the slices of the sums") {
  for (int const size : {2, 3, 4}) {
    std::vector<int> everyone;
    for (int r = 0; r < size; ++r) everyone.push_back(r);
    auto const expected = sums_of(everyone);
    ranks::run(size, [&](ranks::communicator& world) {
      ranks::mesh mesh(world, size);
      for (std::int64_t const bucket : bucket_sizes) {
        auto mine = gradients_of_rank(world.rank());
        mo::reduce_gradients(list_of(mine, mo::replicated::stage), mesh.of_rank(),
                             {.where = mo::summed::slices, .bucket_bytes = bucket});
        for (std::size_t t = 0; t < mine.size(); ++t) {
          auto const slice = mo::slice_of(static_cast<std::int64_t>(mine[t].size()), world.rank(), size);
          for (auto i = static_cast<std::size_t>(slice.first); i < static_cast<std::size_t>(slice.first + slice.count);
               ++i)
            if (mine[t][i] != expected[t][i]) FAIL("tensor ", t, ", value ", i);
        }
      }
    });
  }
}

TEST_CASE("groups that ask for the fastest sums have those of their communicator, bucket by bucket") {
  auto const expected = sums_of({0, 1, 2});
  ranks::run(3, [&](ranks::communicator& world) {
    noting all(world), alone(world.split(world.rank(), 0, "alone"));
    int called = 0;
    for (bool const fastest : {false, true})
      for (auto const where : {mo::summed::everywhere, mo::summed::slices}) {
        auto mine = gradients_of_rank(world.rank());
        mo::reduce_gradients(list_of(mine, mo::replicated::stage),
                             mo::rank_groups<noting>{all, all, all, alone, alone, fastest},
                             {.where = where, .bucket_bytes = 30000});
        called += fastest ? 3 : 0;  // buckets of 5, of 1 and of 1 tensor
        expect(all.whole + all.parts == called);
        expect(all.parts == (fastest && where == mo::summed::slices ? 3 : 0));
        for (std::size_t t = 0; t < mine.size(); ++t) {
          auto const n = static_cast<std::int64_t>(mine[t].size());
          auto const slice = where == mo::summed::slices ? mo::slice_of(n, world.rank(), 3) : mo::range_of{0, n};
          for (std::int64_t i = slice.first; i < slice.first + slice.count; ++i)
            expect(mine[t][static_cast<std::size_t>(i)] == expected[t][static_cast<std::size_t>(i)]);
        }
      }
    expect(alone.whole + alone.parts == 0);
  });
}

TEST_CASE("experts are summed over the ranks that hold them, pieces over data and context, ties over two stages") {
  std::vector<std::vector<float>> const even = sums_of({0, 2}), odd = sums_of({1, 3}), all = sums_of({0, 1, 2, 3});
  ranks::run(4, [&](ranks::communicator& world) {
    ranks::mesh mesh(world, 2, 2);
    for (auto const over : {mo::replicated::expert_data, mo::replicated::data_context}) {
      auto mine = gradients_of_rank(world.rank());
      mo::reduce_gradients(list_of(mine, over), mesh.of_rank());
      CHECK(mine == (world.rank() % 2 == 0 ? even : odd));
    }
  });
  for (int const stages : {1, 2})  // the first stage may be the last
    ranks::run(4, [&](ranks::communicator& world) {
      ranks::mesh mesh(world, 1, 1, stages);
      auto mine = gradients_of_rank(world.rank());
      mo::reduce_gradients(list_of(mine, mo::replicated::tied), mesh.of_rank());
      CHECK(mine == all);
    });
}

TEST_CASE("a group of one rank is left as it is, however often it is reduced") {
  ranks::run(2, [](ranks::communicator& world) {
    ranks::mesh mesh(world, 2);
    auto mine = gradients_of_rank(world.rank());
    for (int micro = 0; micro < 3; ++micro)
      mo::reduce_gradients(list_of(mine, mo::replicated::expert_data), mesh.of_rank());
    CHECK(mine == gradients_of_rank(world.rank()));
  });
}

// One expert w·x. Rank 0 has the tokens 1 and 2, rank 1 has 3 and 5: dΣ/dw is 3 and 8.
TEST_CASE("the gradient of an expert is 2.75 for any spread of experts and either rule") {
  for (bool const spread : {false, true})
    ranks::run(2, [&](ranks::communicator& world) {
      ranks::mesh mesh(world, spread ? 2 : 1);
      bool const first = world.rank() == 0;
      auto const reduced = [&](float of_first, float of_second, mo::reduction how) {
        float g = first ? of_first : of_second;
        if (spread) g = of_first + of_second;  // the rows of both ranks came here
        mo::gradient_list<float> const list{{"expert", {&g, 1}, mo::replicated::expert_data}};
        mo::reduce_gradients(list, mesh.of_rank(), {.how = how});
        if (how == mo::reduction::sum) mo::normalise(list, mo::total_weight(world, 2));
        return g;
      };
      CHECK(reduced(3, 8, mo::reduction::sum) == 2.75f);
      CHECK(reduced(1.5f, 4, mo::reduction::mean) == 2.75f);  // each rank's loss is the mean over its two tokens
    });
}

TEST_CASE("uneven batches and ranks without tokens need no factor") {
  ranks::run(3, [](ranks::communicator& world) {
    ranks::mesh mesh(world, 1);
    double const weights[] = {3, 0, 1};
    float sums[] = {6, 0, 10};
    mo::gradient_list<float> const list{{"w", {&sums[world.rank()], 1}}};
    mo::reduce_gradients(list, mesh.of_rank());
    mo::normalise(list, mo::total_weight(world, weights[world.rank()]));
    CHECK(sums[world.rank()] == 4);
  });
}

TEST_CASE("a step without tokens, as of evaluation, is not divided") {
  ranks::run(2, [](ranks::communicator& world) {
    float g = 0;
    mo::gradient_list<float> const list{{"w", {&g, 1}}};
    double const total = mo::total_weight(world, 0);
    CHECK(total == 0);
    mo::normalise(list, total);
    CHECK(g == 0);
  });
}

TEST_CASE("a weight that is none is an error on every rank") {
  for (double const wrong : {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    CHECK(ranks::all_throw<mo::data_error>(ranks::errors_of(
        3, [&](ranks::communicator& world) { mo::total_weight(world, world.rank() == 1 ? wrong : 2); })));
    CHECK_THROWS_AS(mo::normalise(mo::gradient_list<float>{}, wrong), mo::data_error);
  }
}

TEST_CASE("ranks that list different tensors learn it, all of them") {
  CHECK(ranks::all_throw<mo::config_error>(ranks::errors_of(3, [](ranks::communicator& world) {
    ranks::mesh mesh(world, 1);
    std::vector<double> a(4), b(4);
    mo::gradient_list<double> list{{"a", a}, {"b", b}};
    if (world.rank() == 2) std::swap(list[0], list[1]);
    mo::reduce_gradients(list, mesh.of_rank());
  })));
}

TEST_CASE("tensors that share memory are refused, and so is a bucket of no size") {
  ranks::run(1, [](ranks::communicator& world) {
    ranks::mesh mesh(world, 1);
    std::vector<float> values(8);
    std::span<float> const all(values);
    mo::gradient_list<float> const twice{{"embedding", all}, {"other", {}}, {"head", all.subspan(7)}};
    CHECK_THROWS_WITH_AS(mo::reduce_gradients(twice, mesh.of_rank()),
                         "the gradients embedding and head share memory; a tensor that is used twice is listed once.",
                         mo::data_error);
    mo::gradient_list<float> const neighbours{{"a", all.first(4)}, {"b", all.subspan(4)}};
    CHECK_NOTHROW(mo::reduce_gradients(neighbours, mesh.of_rank()));
    CHECK_THROWS_AS(mo::reduce_gradients(neighbours, mesh.of_rank(), {.bucket_bytes = 0}), mo::config_error);
  });
}
