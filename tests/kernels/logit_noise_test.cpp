// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/logit_noise.hpp>

#include <moiety/core/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;

namespace {

/// Of nothing random: ε is 1 + e where the token is even, −1 elsewhere, σ = a², σ' = 2a.
struct known {
  static constexpr bool is_learned = true;
  template <class S> S draw(std::int64_t logical, std::int64_t step, std::int64_t e, std::int64_t experts) const {
    CHECK(step == 7);
    CHECK(experts == 2);
    return logical % 2 == 0 ? static_cast<S>(1 + e) : S{-1};
  }
  template <class S> S deviation(S a) const { return a * a; }
  template <class S> S slope(S a) const { return 2 * a; }
};

struct steady : known {
  static constexpr bool is_learned = false;
  template <class S> S deviation(S) const { return 4; }
};

}  // namespace

TEST_CASE_TEMPLATE("by hand", S, float, double) {
  mo::host_engine engine{mo::host{.threads = 1}};
  mo::token_table const tokens{.first_row = 3, .step = 7};
  std::vector<S> z{10, 20, 30, 40}, a{1, 2, 3, -4};
  mo::kernels::add_logit_noise<known, S>(engine, {}, tokens, {a.data(), 2, 2}, {z.data(), 2, 2});
  CHECK(z == std::vector<S>{9, 16, 39, 72});  // of the logical tokens 3 and 4
  mo::kernels::add_logit_noise<steady, S>(engine, {}, tokens, {}, {z.data(), 2, 2});
  CHECK(z == std::vector<S>{5, 12, 43, 80});

  std::vector<mo::token_state> states{mo::token_state::routed, mo::token_state::routed};
  std::vector<S> const dz{1, 2, 3, 4};
  std::vector<S> da{5, 6, 7, 8};
  auto const gradient = [&](bool adds) {
    mo::kernels::logit_noise_gradient<known, S>(engine, {}, tokens, states.data(), {a.data(), 2, 2}, {dz.data(), 2, 2},
                                                {da.data(), 2, 2}, adds);
  };
  gradient(true);
  CHECK(da == std::vector<S>{8, 16, 60, -128});
  gradient(false);
  CHECK(da == std::vector<S>{-2, -8, 18, -64});
  states[0] = mo::token_state::masked;
  a[0] = std::numeric_limits<S>::quiet_NaN();
  gradient(false);
  CHECK(da == std::vector<S>{0, 0, 18, -64});
}

TEST_CASE("no token, and rows between which there is other memory") {
  mo::host_engine engine{mo::host{.threads = 1}};
  mo::kernels::add_logit_noise<known, float>(engine, {}, {}, {nullptr, 0, 2}, {nullptr, 0, 2});
  std::vector<float> z{10, 20, 30, 40, 50, 60}, a{1, 2, 3, -4};
  mo::kernels::add_logit_noise<known, float>(engine, {}, {.first_row = 3, .step = 7}, {a.data(), 2, 2},
                                             {z.data(), 2, 2, 3});
  CHECK(z == std::vector<float>{9, 16, 30, 49, 82, 60});
}
