// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/sparsemixer.hpp>

#include <moiety/router/score.hpp>
#include <moiety/router/selection.hpp>

#include "router/drawn.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

using values = std::vector<double>;

mo::span_row<double> row(values const& of) {
  return {const_cast<double*>(of.data()), static_cast<std::int64_t>(of.size())};
}

values weights(mo::sparsemixer<> const& rule, values const& z, std::vector<std::int32_t> const& ids) {
  values w(ids.size()), scratch(z.size());
  auto out = row(w), room = row(scratch);
  rule.forward(row(z), room, ids.data(), out);
  return w;
}

/// From the definition.
double expected(values const& z, std::vector<std::int32_t> const& ids, std::size_t slot, double epsilon) {
  double const m = z[static_cast<std::size_t>(ids[slot])];
  double sum = 0;
  for (std::size_t j = 0; j < z.size(); ++j) {
    bool const before = std::find(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(slot),
                                  static_cast<std::int32_t>(j)) != ids.begin() + static_cast<std::ptrdiff_t>(slot);
    if (!before && m - z[j] <= 2 * epsilon * std::max(std::abs(z[j]), m)) sum += std::exp(z[j] - m);
  }
  return 1 / sum;
}

}  // namespace

static_assert(mo::weight_rule<mo::sparsemixer<>> && !mo::score_rule<mo::sparsemixer<>>);

TEST_CASE("by hand: experts within 2 epsilon share, those further away do not, those before are out") {
  mo::sparsemixer<> const rule{.epsilon = 0.05f};  // a tenth of the larger magnitude
  // slot 0: 10 and 9.5 share, 8.9 is too far; slot 1: 9.5 and 8.9 share
  values const w = weights(rule, {8.9, 10, 9.5, -3}, {1, 2});
  CHECK(w[0] == doctest::Approx(1 / (1 + std::exp(-0.5))));
  CHECK(w[1] == doctest::Approx(1 / (1 + std::exp(-0.6))));
  CHECK(weights(rule, {5, 1}, {0, 1}) == values{1, 1});
  CHECK(weights(rule, {7}, {0}) == values{1});
  CHECK(weights(rule, {2, 2, 2, 2}, {0, 1})[0] == doctest::Approx(0.25));
  CHECK(weights(rule, {2, 2, 2, 2}, {0, 1})[1] == doctest::Approx(1.0 / 3));
}

TEST_CASE("weights are those of the definition, for logits of any sign") {
  auto const z = rows::drawn<double>(60, 9, 3, true);
  for (std::int64_t t = 0; t < 60; ++t) {
    values row_of(z.row(t), z.row(t) + 9), left = row_of;
    std::vector<std::int32_t> ids;
    row(left).largest<3>([&](int, int e) { ids.push_back(e); });
    for (double const epsilon : {0.01, 0.25}) {
      mo::sparsemixer<> rule;
      rule.epsilon = static_cast<float>(epsilon);
      values const w = weights(rule, row_of, ids);
      for (std::size_t j = 0; j < 3; ++j)
        CHECK(w[j] == doctest::Approx(expected(row_of, ids, j, static_cast<double>(rule.epsilon))));
    }
  }
}

TEST_CASE(
    "gradients equal differences away from the edges of K, and stay finite where a selection passes over the best") {
  mo::sparsemixer<> const rule{.epsilon = 0.05f};
  auto const check = [&](values z, std::vector<std::int32_t> const& ids) {
    values const c{1, -2};
    values gradient(z.size()), scratch(z.size());
    auto out = row(gradient), room = row(scratch);
    rule.backward(row(z), room, ids.data(), row(c), out);
    for (std::size_t e = 0; e < z.size(); ++e) {
      auto const at = [&](double step) {
        values moved = z;
        moved[e] += step;
        values const w = weights(rule, moved, ids);
        return c[0] * w[0] + c[1] * w[1];
      };
      CHECK(std::abs(gradient[e] - (at(1e-6) - at(-1e-6)) / 2e-6) < 1e-8);
    }
  };
  check({8.9, 10, 9.5, -3, 9.3}, {1, 2});
  check({-8.9, -10, -9.5, 3, -9.3}, {3, 0});
  check({1000, 10, 9.5, 0}, {1, 2});  // as a table or a replay can choose
  CHECK(std::isfinite(weights(rule, {1000, 10, 9.5, 0}, {1, 2})[0]));
}
