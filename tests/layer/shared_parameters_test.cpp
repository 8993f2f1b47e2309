// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/shared_parameters.hpp>

#include "layer/held.hpp"
#include "training/rank_files.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

/// A tied tensor, and the layers that hold it.
struct tensor {
  std::string name;
  std::int64_t size;
  std::vector<int> layers;
};
std::vector<tensor> const tied{
    {"embedding", 5003, {0, 5}}, {"norm", 7, {1, 3, 4}}, {"alone", 3, {2}}, {"none", 0, {0, 3}}};

/// The rank of each of six layers.
struct placing {
  int ranks;
  std::vector<int> of_layer;
};
std::vector<placing> const placings{{1, {0, 0, 0, 0, 0, 0}}, {2, {0, 0, 0, 1, 1, 1}}, {2, {0, 1, 1, 1, 1, 0}},
                                    {2, {1, 0, 1, 0, 1, 0}}, {4, {0, 1, 2, 2, 3, 3}}, {4, {2, 0, 0, 2, 0, 2}},
                                    {4, {3, 3, 2, 1, 0, 0}}};

/// What a rank holds: tied tensors, and one of its own in each layer.
template <class S> held::parts<S> parts_of(placing const& where, int rank) {
  held::parts<S> mine;
  for (int l = 0; l < 6; ++l) {
    if (where.of_layer[static_cast<std::size_t>(l)] != rank) continue;
    mine.add("layers." + std::to_string(l) + ".own", l, 4, false);
    for (tensor const& t : tied)
      if (std::count(t.layers.begin(), t.layers.end(), l) > 0) mine.add(t.name, l, t.size, true);
  }
  return mine;
}

/// Sums in the order of layers.
template <class S> std::vector<S> sum_of(std::string const& name, std::int64_t size, std::vector<int> const& layers) {
  held::parts<S> all;
  for (int const l : layers) all.add(name, l, size, true);
  for (std::size_t i = 1; i < all.size(); ++i)
    for (std::size_t j = 0; j < all[0].size(); ++j) all[0][j] += all[i][j];
  return all[0];
}

/// How many ranks count each name of mine, over all ranks.
template <class C, class Shared, class S>
std::vector<std::int64_t> counters(C& ranks, Shared const& shared, held::parts<S> const& mine,
                                   std::vector<std::string> const& names) {
  std::vector<std::int64_t> all(names.size());
  for (std::size_t i = 0; i < mine.size(); ++i)
    for (std::size_t n = 0; n < names.size(); ++n) all[n] += names[n] == mine.name(i).name && shared.counts(i);
  ranks.all_reduce(std::span(all));
  return all;
}

}  // namespace

TEST_CASE_TEMPLATE("every holder has the sum in the order of layers, whatever rank holds what, and one counts", S,
                   float, double) {
  CHECK(sum_of<S>("norm", 7, {1, 3, 4}) != sum_of<S>("norm", 7, {3, 4, 1}));
  for (placing const& where : placings)
    ranks::run(where.ranks, [&](ranks::communicator& pipeline) {
      auto mine = parts_of<S>(where, pipeline.rank());
      auto before = mine;
      mo::shared_parameters const shared{pipeline, mine};
      shared.sum(mine);
      for (std::size_t i = 0; i < mine.size(); ++i) {
        mo::parameter const& p = mine.name(i);
        if (!p.tied) {
          CHECK(mine[i] == before[i]);
          CHECK(shared.counts(i));
        }
        for (tensor const& t : tied)
          if (t.name == p.name) CHECK(mine[i] == sum_of<S>(t.name, t.size, t.layers));
      }
      CHECK(counters(pipeline, shared, mine, {"embedding", "norm", "alone", "none", "layers.0.own", "layers.5.own"}) ==
            std::vector<std::int64_t>(6, 1));
    });
}

TEST_CASE("stages that are held twice, each with the copy of the other rank") {
  for (int const size : {2, 4})
    ranks::run(size, [&](ranks::communicator& pipeline) {
      auto const of = [&](int rank) {
        held::parts<float> all;
        for (int const layer : {rank, size - 1 - rank})  // a rank's first stage, then the one that runs backwards
          for (auto const* name : {"up", "down"})
            all.add("layers." + std::to_string(layer) + '.' + name, layer, 33, true, static_cast<std::uint64_t>(rank));
        return all;
      };
      auto mine = of(pipeline.rank());
      mo::shared_parameters const shared{pipeline, mine};
      shared.sum(mine);
      std::vector<std::string> names;
      for (int layer = 0; layer < size; ++layer) names.push_back("layers." + std::to_string(layer) + ".down");
      CHECK(counters(pipeline, shared, mine, names) == std::vector<std::int64_t>(static_cast<std::size_t>(size), 1));
      for (std::size_t i = 0; i < mine.size(); ++i) {
        int const low = std::min(pipeline.rank(), size - 1 - pipeline.rank());
        auto first = of(low), second = of(size - 1 - low);
        std::size_t const place = pipeline.rank() == low ? i : (i + 2) % 4, other = (place + 2) % 4;
        CHECK(first.name(place).name == mine.name(i).name);
        for (std::size_t j = 0; j < 33; ++j) CHECK(mine[i][j] == first[place][j] + second[other][j]);
      }
    });
}

TEST_CASE("nothing is tied, and ranks without any parameter") {
  ranks::run(3, [](ranks::communicator& pipeline) {
    held::parts<float> mine;
    if (pipeline.rank() == 1) mine.add("own", 1, 5, false);
    auto before = mine;
    mo::shared_parameters const shared{pipeline, mine};
    shared.sum(mine);
    if (pipeline.rank() == 1) CHECK(mine[0] == before[0]);
  });
}

TEST_CASE("sizes that differ are an error on every rank, which names tensor, layers and ranks") {
  for (int const size : {1, 2, 4}) {
    std::string const last = std::to_string(size - 1);
    CHECK(
        ranks::complaint(size,
                         [&](ranks::communicator& pipeline) {
                           held::parts<float> mine;
                           if (pipeline.rank() == 0) mine.add("embedding", 0, 12, true);
                           if (pipeline.rank() == size - 1) mine.add("embedding", 5, 16, true);
                           mo::shared_parameters{pipeline, mine};
                         }) ==
        "config_error: parameter embedding is tied, but has 12 values in layer 0 on rank 0 and 16 in layer 5 on rank " +
            last + ".");
  }
}

TEST_CASE("other gradients than those listed are refused") {
  ranks::run(1, [](ranks::communicator& pipeline) {
    held::parts<float> mine, fewer, smaller;
    for (int const layer : {0, 1}) {
      mine.add("embedding", layer, 6, true);
      smaller.add("embedding", layer, 5, true);
    }
    fewer.add("embedding", 0, 6, true);
    mo::shared_parameters const shared{pipeline, mine};
    CHECK_THROWS_WITH_AS(shared.sum(fewer), "gradients of 1 parameters were given to shared_parameters of 2.",
                         mo::state_error);
    CHECK_THROWS_WITH_AS(shared.sum(smaller),
                         "shared_parameters was given 5 gradients of embedding, which has 6 values.", mo::state_error);
    CHECK_THROWS_AS(shared.counts(2), std::out_of_range);
  });
}
