// SPDX-License-Identifier: Apache-2.0
// A model of equal MoE layers, one after another, cut into the stages of a pipeline: what one rank holds of it. A block_stack
// (pipeline/block_stack.hpp) of one kind of block.
//
//   mo::moe_stack<block, deployment> stage{ctx, split};                  split: mo::split_layers of the whole model
//   mo::moe_stack<block, deployment> stage{ctx, split, options, mo::placement::v};
//   auto weights = stage.make_weights(mo::seed{3});                      the same logical weights whatever the split
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/layer/moe_layer.hpp>
#include <moiety/mesh/context.hpp>
#include <moiety/pipeline/block_stack.hpp>
#include <moiety/schedule/order.hpp>

namespace moiety::inline MOIETY_ABI {

template <class Spec, class Deployment = deployment<>>
class moe_stack : public block_stack<Deployment, moe_layer<Spec, Deployment>> {
  using layer_type = moe_layer<Spec, Deployment>;

 public:
  using spec = Spec;

  template <class Split>
  moe_stack(context<Deployment>& ctx, Split const& split, layer_options<Spec> const& options = {},
            placement where = placement::loop)
      : block_stack<Deployment, layer_type>(
            ctx, split, [&](int) { return layer_type(ctx, options); }, where) {}
};

}  // namespace moiety
