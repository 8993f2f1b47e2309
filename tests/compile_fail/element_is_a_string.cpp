// SPDX-License-Identifier: Apache-2.0
// expect: 'using element' in a deployment must name float, double, mo::bf16 or mo::fp16.
#include <moiety/moiety.hpp>

#include <string>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

struct mistaken : mo::deployment<> {
#ifdef MOIETY_CORRECT
  using element = mo::bf16;
#else
  using element = std::string;
#endif
};

int main() {
  mo::context<mistaken> ctx;
  return mo::workspace_bytes<small, mistaken>(mo::tokens{3}) > 0 ? 0 : 1;
}
