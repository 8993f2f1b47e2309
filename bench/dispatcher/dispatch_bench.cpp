// SPDX-License-Identifier: Apache-2.0
// Rows to the experts of ranks that are threads, and back, against a copy by memcpy on as many threads, or on all
// processors where there are more ranks. Below the size of the last cache it may beat that.
#include "dispatched.hpp"
#include "ranks.hpp"

#include <moiety/core/numbers.hpp>

#include <cstdint>
#include <string>

namespace {

using namespace bench;

template <class Deployment, int Slots> void dispatch(benchmark::State& state, int ranks, dispatch_case const& of) {
  double bytes = 0, busy = 0;
  on_ranks<Deployment>(ranks, [&](moiety::context<Deployment>& ctx) {
    dispatched<Deployment, Slots> f(ctx, of);
    double const of_all = f.bytes();
    auto const calls = std::max(1, static_cast<int>(3e8 / of_all));  // in a measurement, which lasts some milliseconds
    double const share = measure_on_ranks(state, ctx.world(), calls, [&] { f.bring_and_give_back(); });
    if (ctx.world().rank() == 0) bytes = of_all, busy = share;
  });
  work const todo{0, bytes, static_cast<double>(of.tokens * ranks), traffic::copy};
  report<float>(state, copying_threads(ranks), todo, busy);
}

template <class Dispatcher, class T, int Slots> void add_row(int ranks, dispatch_case const& of) {
  auto const name = "dispatch/" + std::string(Dispatcher::name) + "/" + (sizeof(T) == 4 ? "float" : "bf16") +
                    "/top:" + std::to_string(Slots) + "/" + of.name() + "/ranks:" + std::to_string(ranks);
  add(name, copying_threads(ranks),
      [=](benchmark::State& state) { dispatch<spread<T, Dispatcher, moiety::threads>, Slots>(state, ranks, of); });
}

template <class Dispatcher> void add_rows(int ranks) {
  for (std::int64_t const tokens : {512, 4096, 16384}) {
    add_row<Dispatcher, float, 2>(ranks, {tokens});
    if (tokens < 16384 || ranks == 2) add_row<Dispatcher, float, 8>(ranks, {tokens});
  }
  add_row<Dispatcher, float, 8>(ranks, {4096, 0.5f});
}

[[maybe_unused]] bool const added = [] {
  for (int const ranks : {2, 4}) {
    add_rows<moiety::all_to_all>(ranks);
    add_row<moiety::all_to_all, moiety::bf16, 8>(ranks, {4096});
    add_rows<moiety::all_gather_tokens>(ranks);
  }
  add_rows<moiety::two_level<2>>(4);
  return true;
}();

}  // namespace
