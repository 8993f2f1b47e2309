// SPDX-License-Identifier: Apache-2.0
// Values of tokens times noise that is a function of their logical place.
//
//   jitter_rows(engine, noise, tokens, x, out)   out_th = x_th · noise.factor(logical t, moment, h, H)     x, out [T × H]
//
// out may be x. See router/jitter.hpp.
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/backend/host.hpp>
#include <moiety/batch/token.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

template <scalar T, class Noise>
void jitter_rows(host_engine& engine, Noise const& noise, token_table const& tokens, matrix_view<T const> x,
                 matrix_view<T> out) {
  engine.for_blocks(x.rows(), 16, [&](std::int64_t t, std::int64_t end, int) {
    for (; t < end; ++t)
      for (std::int64_t h = 0; h < x.cols(); ++h)
        out.row(t)[h] =
            static_cast<T>(static_cast<sum_t<T>>(x.row(t)[h]) *
                           noise.template factor<sum_t<T>>(tokens.first_row + t, tokens.moment(), h, x.cols()));
  });
}

template <scalar T, class Noise>
void jitter_rows(cuda_engine& engine, Noise const& noise, token_table const& tokens, matrix_view<T const> x,
                 matrix_view<T> out);

}  // namespace moiety::inline MOIETY_ABI::kernels
