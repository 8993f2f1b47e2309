// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/parameter_set.hpp>

#include <moiety/experts/activation.hpp>

#include <doctest/doctest.h>

#include <memory_resource>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

struct spec : mo::layer_spec<mo::dims{.hidden = 3, .ffn = 5, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using experts = mo::mlp<mo::silu>;
  using shared = mo::shared_experts<2, mo::sigmoid_gated, mo::gated_mlp<mo::silu, mo::concatenated, mo::biased>>;
};
using set = mo::detail::parameter_set<spec, float, mo::bf16, true>;

}  // namespace

TEST_CASE("shared experts have tensors of their own, without the axis of experts, and their gate a row") {
  set const all = set::allocate(*std::pmr::new_delete_resource());
  std::vector<std::string> seen;
  all.for_each([&](mo::parameter const& p, auto values) {
    std::string text = p.name + ' ' + std::string(p.type);
    for (auto const extent : p.shape) text += ' ' + std::to_string(extent);
    seen.push_back(text);
    CHECK(values.size() == p.size());
    CHECK(p.count == p.shape[0]);
  });
  CHECK(seen == std::vector<std::string>{"router.weight float 4 3", "experts.up bf16 4 5 3", "experts.down bf16 4 3 5",
                                         "shared.gate_up bf16 20 3", "shared.down bf16 3 10",
                                         "shared.gate_up_bias bf16 20", "shared.down_bias bf16 3",
                                         "shared_gate.weight float 1 3"});
  CHECK(all.shared().inputs[1].data == all.shared().inputs[0].data + 10 * 3);
  CHECK(all.shared_gate().cols() == 3);
}
