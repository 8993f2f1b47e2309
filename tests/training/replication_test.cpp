// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/replication.hpp>

#include "thread_ranks.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;

TEST_CASE("gradients are listed as parameters are visited, of any element type") {
  std::vector<float> router(6), router_gradient(6), expert_gradient(4);
  std::vector<mo::bf16> expert(4);
  auto const parameters = [&](auto const& f) {
    f(mo::trained_tensor{"router", std::span(router), std::span(router_gradient)});
    f(mo::trained_tensor{"experts.up", std::span(expert), std::span(expert_gradient), mo::replicated::expert_data});
  };
  auto const list = mo::gradients_of<float>(parameters);
  REQUIRE(list.size() == 2);
  CHECK(list[0].name == "router");
  CHECK(list[0].over == mo::replicated::stage);
  CHECK(list[0].values.data() == router_gradient.data());
  CHECK(list[1].over == mo::replicated::expert_data);
  CHECK(list[1].values.size() == 4);
}

TEST_CASE("buckets hold as many tensors as fit, and at least one") {
  std::vector<std::int64_t> const bytes{10, 20, 0, 100, 5, 5, 30, 1};
  std::vector<std::pair<std::size_t, std::size_t>> buckets;
  mo::detail::for_each_bucket(
      bytes.size(), 30, [&](std::size_t i) { return bytes[i]; },
      [&](std::size_t first, std::size_t last) { buckets.emplace_back(first, last); });
  CHECK(buckets == std::vector<std::pair<std::size_t, std::size_t>>{{0, 3}, {3, 4}, {4, 6}, {6, 7}, {7, 8}});
  buckets.clear();
  mo::detail::for_each_bucket(
      0, 30, [](std::size_t) { return 1; }, [&](std::size_t f, std::size_t l) { buckets.emplace_back(f, l); });
  CHECK(buckets.empty());
}

TEST_CASE("a fingerprint sees names, sizes and order") {
  auto const of = [](std::vector<std::pair<std::string, std::size_t>> const& tensors) {
    mo::fnv_1a f;
    for (auto const& [name, size] : tensors) mo::detail::add_tensor(f, name, size);
    return f.value();
  };
  auto const value = of({{"a", 3}, {"b", 3}});
  CHECK(of({{"a", 3}, {"b", 3}}) == value);
  CHECK(of({{"b", 3}, {"a", 3}}) != value);
  CHECK(of({{"a", 3}, {"b", 259}}) != value);
  CHECK(of({{"a", 3}}) != value);
  CHECK(of({{"ab", 3}}) != of({{"a", 3}, {"b", 3}}));
}

TEST_CASE("a group is found by the kind of a tensor") {
  ranks::run(4, [](ranks::communicator& world) {
    ranks::mesh mesh(world, 2, 1, 2);
    auto const groups = mesh.of_rank();
    CHECK(groups.of(mo::replicated::stage).size() == 2);
    CHECK(groups.of(mo::replicated::data_context).size() == 2);
    CHECK(groups.of(mo::replicated::expert_data).size() == 1);
    CHECK(groups.of(mo::replicated::tied).size() == 4);
  });
}
