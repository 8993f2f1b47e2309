// SPDX-License-Identifier: Apache-2.0
// Processes that are given different layouts: each of them hears of it, in the same words, and the next run is in order.
#include <moiety/moiety.hpp>
#include <moiety/mpi.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <string>

namespace mo = moiety;

namespace {

struct spread : mo::deployment<mo::dynamic> {
  using transport = mo::mpi;
};

struct place {
  int rank = 0, size = 0;
};
place here() {
  auto const world = mo::mpi_communicator::world({});
  return {world.rank(), world.size()};
}

std::string refusal_of(mo::layout const& mine) {
  try {
    mo::run<spread>([](mo::context<spread>&) {}, {}, mine);
  } catch (mo::config_error const& error) {
    return error.what();
  }
  return {};
}

}  // namespace

TEST_CASE("layouts of the same size that differ, on the last rank alone") {
  place const me = here();
  mo::layout const first{.data = me.size}, other{.tensor = me.size};
  std::string const words = refusal_of(me.rank + 1 == me.size ? other : first);
  CHECK(words.find("the ranks of a run disagree on the layout: that of rank " + std::to_string(me.size - 1)) !=
        std::string::npos);
  mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        auto const all = ctx.world().all_gather_v<char>(words);
        CHECK(all.size() == words.size() * static_cast<std::size_t>(me.size));
        for (std::size_t i = 0; i < all.size(); ++i) CHECK(all[i] == words[i % words.size()]);
        CHECK(ctx.shape() == first);
      },
      {}, first);
}

TEST_CASE("a layout that cannot be, or is of another number of ranks, on one rank alone") {
  place const me = here();
  mo::layout const right{.data = me.size};
  for (mo::layout const& wrong :
       {mo::layout{.data = me.size + 1}, mo::layout{.data = me.size, .expert = 3 * me.size}, mo::layout{.data = 0}})
    for (int const at_fault : {0, me.size - 1}) {
      std::string const words = refusal_of(me.rank == at_fault ? wrong : right);
      CHECK(words.find("layout with dense grid") != std::string::npos);
      CHECK((words.find("rank " + std::to_string(at_fault) + " of the") == 0) == (me.rank != at_fault));
    }
}
