// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/arguments.hpp>

#include <moiety/backend/host.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <string>

namespace mo = moiety;

TEST_CASE("overlap is that of the memory between first and last element") {
  float memory[20] = {};
  mo::matrix_view<float const> const first(memory, 2, 4), next(memory + 8, 2, 4), crossing(memory + 7, 2, 4);
  CHECK(mo::detail::overlap<float>(first, first));
  CHECK(mo::detail::overlap<float>(first, crossing));
  CHECK_FALSE(mo::detail::overlap<float>(first, next));
  CHECK_FALSE(mo::detail::overlap<float>(first, mo::matrix_view<float const>(memory, 0, 4)));
}

TEST_CASE("a message has the call, the name and both shapes") {
  mo::host_engine const engine{mo::host{}};
  float memory[20] = {};
  auto const said = [&](mo::matrix_view<float const> m, std::int64_t rows) {
    try {
      mo::detail::check_shape<float>(engine, "forward", "y", m, rows, 4);
    } catch (mo::data_error const& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  CHECK(said({memory, 3, 4}, 3).empty());
  CHECK(said({memory, 2, 4}, 3) == "forward needs y of the shape [3 x 4], but was given [2 x 4].");
  CHECK(said({memory, 3, 5}, 3) == "forward needs y of the shape [3 x 4], but was given [3 x 5].");
  CHECK(said({nullptr, 3, 4}, 3) == "forward was given a null y.");
  CHECK(said({nullptr, 0, 4}, 0).empty());
  auto const* const odd = reinterpret_cast<float const*>(reinterpret_cast<char const*>(memory) + 2);
  CHECK(said({odd, 3, 4}, 3) == "forward was given y at an address that is no multiple of 4 bytes.");
  CHECK(said({memory, 3, 4, 3}, 3) == "forward was given y with a stride of 3 for 4 columns.");
}
