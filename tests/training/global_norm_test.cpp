// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/global_norm.hpp>

#include "thread_ranks.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN(),
                infinite = std::numeric_limits<float>::infinity();

/// The norm of gradients that lie on one rank.
template <class S> double norm_of(std::vector<S> values) {
  double norm = 0;
  ranks::run(1, [&](ranks::communicator& world) {
    ranks::mesh mesh(world, 1);
    norm = mo::global_norm(mo::gradient_list<S>{{"w", values}}, mesh.of_rank());
  });
  return norm;
}

}  // namespace

TEST_CASE("experts 4 and 12 on two ranks and a replicated 3 have norm 13 on both") {
  ranks::run(2, [](ranks::communicator& world) {
    ranks::mesh mesh(world, 2);
    float dense = 3, expert = world.rank() == 0 ? 4 : 12;
    mo::gradient_list<float> const list{{"dense", {&dense, 1}, mo::replicated::stage},
                                        {"expert", {&expert, 1}, mo::replicated::expert_data}};
    double const norm = mo::global_norm(list, mesh.of_rank());
    CHECK(norm == 13);
    CHECK(mo::clip_gradients(list, 1, norm) == doctest::Approx(0.07692307));
    CHECK(dense == doctest::Approx(3.0 / 13));
    CHECK(mo::global_norm(list, mesh.of_rank()) == doctest::Approx(1));
  });
}

TEST_CASE("a tied tensor counts once, over two stages and over one") {
  for (int const stages : {1, 2})
    ranks::run(2, [&](ranks::communicator& world) {
      ranks::mesh mesh(world, 2, 1, stages);
      float own = world.rank() == 0 ? 3 : 12, tied = 4;
      auto const over = stages == 1 ? mo::replicated::expert_data : mo::replicated::stage;
      mo::gradient_list<float> const list{{"own", {&own, 1}, over}, {"embedding", {&tied, 1}, mo::replicated::tied}};
      CHECK(mo::global_norm(list, mesh.of_rank()) == 13);
    });
}

TEST_CASE("the bits of a norm are the same for every layout and order") {
  auto const dense = ranks::normals<float>(10007, 1), experts = ranks::normals<float>(4 * 3001, 2);
  auto everything = dense;
  everything.insert(everything.end(), experts.begin(), experts.end());
  double const expected = norm_of(everything);
  double long_sum = 0;
  for (float const v : everything) long_sum += double{v} * v;
  CHECK(expected == doctest::Approx(std::sqrt(long_sum)).epsilon(1e-13));
  std::shuffle(everything.begin(), everything.end(), std::mt19937(3));
  CHECK(norm_of(everything) == expected);

  for (int const size : {1, 2, 4})
    for (int const expert : {1, 2, 4}) {
      if (size % expert != 0) continue;
      ranks::run(size, [&](ranks::communicator& world) {
        ranks::mesh mesh(world, expert);
        auto mine = dense;
        std::size_t const here = experts.size() / static_cast<std::size_t>(expert);
        auto const begin = experts.begin() + (world.rank() % expert) * static_cast<std::ptrdiff_t>(here);
        std::vector<float> own(begin, begin + static_cast<std::ptrdiff_t>(here));
        CHECK(mo::global_norm(mo::gradient_list<float>{{"experts", own, mo::replicated::expert_data}, {"dense", mine}},
                              mesh.of_rank()) == expected);
      });
    }
}

TEST_CASE("ranks without parameters have the same norm") {
  ranks::run(3, [](ranks::communicator& world) {
    ranks::mesh mesh(world, 3);
    float g = 5;
    mo::gradient_list<float> list;
    if (world.rank() == 1) list.push_back({"expert", {&g, 1}, mo::replicated::expert_data});
    CHECK(mo::global_norm(list, mesh.of_rank()) == 5);
    CHECK(mo::global_norm(mo::gradient_list<float>{}, mesh.of_rank()) == 0);
  });
}

TEST_CASE("huge and tiny gradients have the digits of others") {
  auto const values = ranks::normals<double>(999, 4);
  double const expected = norm_of(values);
  for (int const exponent : {-1000, -300, -62, 62, 400, 1000}) {
    std::vector<double> scaled;
    for (double const v : values) scaled.push_back(std::ldexp(v, exponent));
    CHECK(norm_of(scaled) == std::ldexp(expected, exponent));
  }
  double const least = std::numeric_limits<double>::denorm_min();
  CHECK(norm_of<double>({3 * least, -4 * least}) == 5 * least);
  CHECK(norm_of<float>({std::numeric_limits<float>::denorm_min()}) == std::ldexp(1.0, -149));
  CHECK(norm_of<float>({-std::numeric_limits<float>::max()}) == double{std::numeric_limits<float>::max()});
  CHECK(norm_of<double>({1e308, 1e308, 1e308, 1e308}) == infinite);
}

TEST_CASE("many small gradients beside a large one are not lost") {
  std::vector<float> values(1 << 20, 0x1p-30f);  // Σ of their squares is 2⁻⁴⁰
  values.push_back(1);
  double const one = 1;
  CHECK(norm_of(values) == std::sqrt(one + 0x1p-40));
}

TEST_CASE("a norm that is not finite is so on every rank, and clips nothing") {
  for (float const wrong : {not_a_number, infinite, -infinite})
    ranks::run(3, [&](ranks::communicator& world) {
      ranks::mesh mesh(world, 3);
      std::vector<float> g{1, 2};
      if (world.rank() == 2) g[1] = wrong;
      mo::gradient_list<float> const list{{"expert", g, mo::replicated::expert_data}};
      double const norm = mo::global_norm(list, mesh.of_rank());
      CHECK(std::isnan(norm) == std::isnan(wrong));
      CHECK_FALSE(std::isfinite(norm));
      CHECK(mo::clip_gradients(list, 1, norm) == 1);
      CHECK(g[0] == 1);
    });
  CHECK(std::isnan(norm_of<double>({infinite, not_a_number, 1})));
  CHECK(std::isnan(norm_of<float>({not_a_number, -infinite, 1})));
}

TEST_CASE("clipping wants a positive norm, and leaves smaller gradients alone") {
  float g = 0.1f;
  mo::gradient_list<float> const list{{"w", {&g, 1}}};
  for (double const wrong : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN()})
    CHECK_THROWS_AS(mo::clip_gradients(list, wrong, 10), mo::config_error);
  CHECK(mo::clip_gradients(list, 1, 0.1) == 1);
  CHECK(mo::clip_gradients(list, infinite, 1e30) == 1);
  CHECK(g == 0.1f);
}
