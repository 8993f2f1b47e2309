// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/identity_rows.cuh>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace mo = moiety;
using testing::device_values;
using testing::same_bits;

TEST_CASE_TEMPLATE("rows of zero-compute experts on a device are those of the host", T, float, mo::bf16) {
  using S = mo::sum_t<T>;
  mo::host_engine cpu(mo::host{.threads = 1});
  mo::cuda_engine gpu{mo::cuda{}};
  constexpr std::int64_t tokens = 60, slots = 2, rows = 113, cols = 77, count = 3;
  std::vector<std::int64_t> const starts{0, 20, 20, 50, rows};
  std::vector<std::int32_t> sources;
  std::vector<T> x, dy;
  std::vector<S> weights;
  for (std::int64_t r = 0; r < rows; ++r) sources.push_back(static_cast<std::int32_t>(r * 7 % tokens));
  for (std::int64_t r = 0; r < rows; ++r) weights.push_back(static_cast<S>(r % 9) / 8);
  for (std::int64_t i = 0; i < tokens * cols; ++i) {
    x.push_back(static_cast<T>(static_cast<S>(i % 23) / 7 - 1));
    dy.push_back(static_cast<T>(static_cast<S>(i % 19) / 11 - 1));
  }
  for (bool const weighted : {true, false}) {
    std::vector<T> out(rows * cols, T(9.0f)), dx(rows * cols, T(9.0f));
    std::vector<S> parts(rows * count, 9);
    device_values<T> const x_there(x), dy_there(dy);
    device_values<T> out_there(out), dx_there(dx);
    device_values<S> parts_there(parts), weights_there(weights);
    device_values<std::int64_t> starts_there(starts);
    device_values<std::int32_t> sources_there(sources);
    auto here_starts = starts;
    auto here_sources = sources;
    mo::permutation_view const here{tokens, 4, slots, here_starts.data(), here_sources.data(), nullptr},
        there{tokens, 4, slots, starts_there.data(), sources_there.data(), nullptr};
    mo::kernels::rows_of<T> const x_rows{x.data(), cols, sources.data()}, dy_rows{dy.data(), cols, sources.data()},
        x_rows_there{x_there.data(), cols, sources_there.data()},
        dy_rows_there{dy_there.data(), cols, sources_there.data()};
    mo::kernels::pass_rows<T>(cpu, here, 2, x_rows, weighted ? weights.data() : nullptr, {out.data(), rows, cols});
    mo::kernels::pass_rows<T>(gpu, there, 2, x_rows_there, weighted ? weights_there.data() : nullptr,
                              {out_there.data(), rows, cols});
    mo::kernels::pass_rows_backward<T>(cpu, here, 2, dy_rows, x_rows, weighted ? weights.data() : nullptr,
                                       weighted ? parts.data() : nullptr, count, {dx.data(), rows, cols});
    mo::kernels::pass_rows_backward<T>(gpu, there, 2, dy_rows_there, x_rows_there,
                                       weighted ? weights_there.data() : nullptr,
                                       weighted ? parts_there.data() : nullptr, count, {dx_there.data(), rows, cols});
    CHECK(same_bits(out, out_there.host()));
    CHECK(same_bits(dx, dx_there.host()));
    CHECK(same_bits(parts, parts_there.host()));
  }
}
