// SPDX-License-Identifier: Apache-2.0
// How the cost of a training step grows: with tokens, and with experts at the same number of rows.
#include "layers.hpp"
#include "measure.hpp"

#include <cstdint>
#include <string>

namespace {

using namespace bench;

template <std::int64_t E> void add_row(std::string const& series, std::int64_t tokens) {
  using spec = plain_spec<256, 128, E, 2>;
  add("scaling/" + series + "/experts:" + std::to_string(E) + "/tokens:" + std::to_string(tokens), 1,
      [=](benchmark::State& state) {
        layer_fixture<spec, float> f(1, tokens);
        measure<float>(
            state, 1, layer_work<spec, float>(tokens, 3), [&] { f.tape.reset(); }, [&] { f.forward_backward(); });
      });
}

[[maybe_unused]] bool const added = [] {
  for (std::int64_t tokens = 64; tokens <= 65536; tokens *= 4) add_row<16>("in_tokens", tokens);
  constexpr std::int64_t tokens = 4096;
  add_row<8>("in_experts", tokens), add_row<32>("in_experts", tokens);
  add_row<128>("in_experts", tokens), add_row<384>("in_experts", tokens);
  return true;
}();

}  // namespace
