// SPDX-License-Identifier: Apache-2.0
// A decoder-only transformer over bytes, with a Mixture-of-Experts block in every layer, as the blocks of a pipeline: the
// embedding, the layers, the head.
#pragma once

#include "decoder.hpp"
#include "embedding.hpp"
#include "experts.hpp"
#include "head.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <cstddef>
#include <cstdint>
#include <variant>
#include <vector>

namespace lm {

struct model_settings {
  std::int64_t layers, heads;
};

template <class Spec, class Deployment>
using stage_of =
    mo::block_stack<Deployment, embedding_block<Deployment>, decoder_block<Spec, Deployment>, head_block<Deployment>>;

/// The part of the model that a rank of the pipeline holds. A layer costs about 12 H² a byte, the head 2 H².
template <class Spec, class Deployment>
stage_of<Spec, Deployment> make_stage(mo::context<Deployment>& ctx, model_settings const& s,
                                      mo::layer_options<Spec> const& options, int stages, mo::placement placed) {
  using block = std::variant<embedding_block<Deployment>, decoder_block<Spec, Deployment>, head_block<Deployment>>;
  std::vector<int> costs(static_cast<std::size_t>(s.layers + 2), 12);
  costs.front() = 1, costs.back() = 2;
  constexpr std::int64_t hidden = mo::spec_of<Spec>::hidden;
  auto const build = [&](int layer) -> block {
    if (layer == 0) return embedding_block<Deployment>(ctx, hidden);
    if (layer == s.layers + 1) return head_block<Deployment>(ctx, hidden);
    return decoder_block<Spec, Deployment>(ctx, s.heads, options);
  };
  return stage_of<Spec, Deployment>{ctx, mo::split_layers(costs, stages), build, placed};
}

}  // namespace lm
