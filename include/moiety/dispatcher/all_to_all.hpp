// SPDX-License-Identifier: Apache-2.0
// The dispatcher of experts that are spread over ranks: rows go to their experts and back, straight between two ranks.
//
//   using dispatcher = mo::all_to_all;                     rows that experts read are brought again for the weight half
//   using dispatcher = mo::chunked<4>;                     the same in 4 parts of every rank's experts: while those of one
//                                                          work, rows of the next come and results of the last leave
//   using dispatcher = mo::keep_rows<mo::all_to_all>;      kept with the tape: R' · H values more, one exchange less
//
// A forward exchanges counts, rows and results; the input half gradients of results and of rows; the weight half rows, unless
// they are kept. See dispatcher/row_exchange.hpp.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/dispatcher/row_exchange.hpp>

#include <string_view>

namespace moiety::inline MOIETY_ABI {

struct all_to_all {
  static constexpr std::string_view name = "all_to_all";
  static constexpr bool travels = true, keeps_rows = false, on_devices = true;
  static constexpr int chunks = 1;
  using exchange = row_exchange;
};

template <int Chunks> struct chunked : all_to_all {
  static_assert(Chunks >= 2, "mo::chunked needs at least 2 chunks; mo::all_to_all has one.");
  static constexpr std::string_view name = "chunked";
  static constexpr int chunks = Chunks;
};

template <class Dispatcher> struct keep_rows : Dispatcher { static constexpr bool keeps_rows = true; };

}  // namespace moiety
