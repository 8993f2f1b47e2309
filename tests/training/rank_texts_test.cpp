// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/rank_texts.hpp>

#include "training/rank_files.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

namespace mo = moiety;

TEST_CASE("texts of any length go to the first rank and come from it") {
  std::vector<std::string> gathered;
  std::vector<std::string> received(4);
  CHECK(ranks::complaint(4, [&](auto& mine) {
          auto const rank = static_cast<std::size_t>(mine.rank());
          auto const texts = mo::detail::gather_texts(mine, std::string(rank * 1000, static_cast<char>('a' + rank)));
          if (rank == 0) gathered = texts;
          if (rank != 0 && !texts.empty()) throw std::runtime_error("texts on another rank");
          received[rank] = rank == 0 ? "from the first" : "of my own";
          mo::detail::broadcast_text(mine, received[rank]);
        }) == "");
  REQUIRE(gathered.size() == 4);
  CHECK(gathered[0].empty());
  CHECK(gathered[1] == std::string(1000, 'b'));
  CHECK(gathered[3] == std::string(3000, 'd'));
  CHECK(received == std::vector<std::string>(4, "from the first"));
}
