// SPDX-License-Identifier: Apache-2.0
// The dispatcher of a rank that holds every expert: rows stay where they are, and experts gather them by token.
//
// A dispatcher turns tokens [T × H] into the rows of the experts that this rank holds, grouped by expert in global token
// order (rows_of: data, stride and the token of each row). Experts are handed their rows and the offsets of the groups.
// Dispatchers of spread experts travel: see dispatcher/all_to_all.hpp.
#pragma once

#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <string_view>

namespace moiety::inline MOIETY_ABI {

struct local {
  static constexpr std::string_view name = "local";
  static constexpr bool travels = false, keeps_rows = false, on_devices = true;
  static constexpr int chunks = 1;
  struct exchange {
    template <class Communicator> struct links {
      explicit links(Communicator&) {}
    };
  };

  template <class T> static kernels::rows_of<T> dispatch(matrix_view<T const> tokens, permutation_view const& order) {
    return {tokens.data(), tokens.stride(), order.source_tokens};
  }
};

}  // namespace moiety
