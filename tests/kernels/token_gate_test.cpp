// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/token_gate.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

namespace mo = moiety;

TEST_CASE_TEMPLATE("a gate is the logistic of its logit, and its gradient stops at tokens without a row", S, float,
                   double) {
  mo::host_engine engine(mo::host{.threads = 2});
  S const nan = std::numeric_limits<S>::quiet_NaN();
  std::array<S, 3> gates{0, 2, nan}, dgates{8, 1, nan};
  mo::kernels::gate_tokens(engine, 3, gates.data());
  CHECK(gates[0] == S(.5));
  CHECK(static_cast<double>(gates[1]) == doctest::Approx(.8807970));
  std::array<std::int32_t, 3> positions{0, 1, -1};
  mo::permutation_view const order{3, 1, 1, nullptr, nullptr, positions.data()};
  mo::kernels::gate_logit_gradients(engine, order, gates.data(), dgates.data());
  CHECK(dgates[0] == 2);
  CHECK(static_cast<double>(dgates[1]) == doctest::Approx(.1049936));
  CHECK(dgates[2] == 0);
}

TEST_CASE("the gradient of what a gate reads is added") {
  mo::host_engine engine(mo::host{.threads = 2});
  std::array<double, 2> const dlogits{2, -1};
  std::array<double, 3> const w{1, .5, 0};
  std::array<double, 8> dx{1, 1, 1, 7, 0, 0, 0, 7};  // a stride of 4
  mo::kernels::add_gate_inputs(engine, dlogits.data(), w.data(), mo::matrix_view<double>{dx.data(), 2, 3, 4});
  CHECK(dx == std::array<double, 8>{3, 2, 1, 7, -1, -.5, 0, 7});
}
