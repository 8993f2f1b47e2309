// SPDX-License-Identifier: Apache-2.0
// A file of a published model, under its names and in its types, fills a layer on any layout: docs/policies.md.
#include "training/rank_files.hpp"

#include <moiety/moiety.hpp>
#include <moiety/training/layer_checkpoint.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

constexpr int H = 24, I = 16, E = 4;
struct block : mo::layer_spec<mo::dims{.hidden = H, .ffn = I, .experts = E}> {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>;
};
template <class Layout> struct in_bf16 : mo::deployment<mo::dynamic> {
  using element = mo::bf16;
  using weight_layout = Layout;
};

/// What Mixtral calls the tensors of an expert.
std::string name_of(mo::parameter const& p) {
  return p.name == "experts.gate" ? ".w1.weight" : p.name == "experts.up" ? ".w3.weight" : ".w2.weight";
}

/// The router and the experts of a layer of Mixtral, as Hugging Face has them: a tensor for each expert, all of bf16.
template <class Deployment>
void load_mixtral(mo::context<Deployment>& ctx, mo::moe_layer<block, Deployment> const& layer,
                  typename mo::moe_layer<block, Deployment>::weights_type& weights, std::string const& path,
                  std::string const& prefix) {
  std::vector<mo::bf16> router(E * H);  // a layer has it in float
  std::vector<mo::tensor_slice> slices{mo::whole_tensor(prefix + "gate.weight", {E, H}, std::span(router))};
  weights.for_each([&](mo::parameter const& p, auto values) {
    if (!p.of_experts) return;
    auto const [first, count] = p.part[0];  // the experts of this rank
    auto const size = values.size() / static_cast<std::size_t>(count);
    for (std::size_t e = 0; e * size < values.size(); ++e)
      slices.push_back(
          mo::whole_tensor(prefix + "experts." + std::to_string(static_cast<std::size_t>(first) + e) + name_of(p),
                           {p.shape[1], p.shape[2]}, values.subspan(e * size, size)));
  });
  mo::load_checkpoint(ctx.world(), path, slices, {.allow_others = true});
  std::copy(router.begin(), router.end(), weights.router().data());
  layer.pack(weights);
}

/// Value i of a tensor of the file, which has no other like it.
mo::bf16 value(std::string const& name, std::size_t i) {
  return mo::bf16(static_cast<float>(mo::normal(mo::seed{3}, mo::stream_of(name), i)));
}

void publish(std::string const& path, std::string const& prefix) {
  std::deque<std::vector<mo::bf16>> memory;
  std::vector<mo::tensor_slice> slices;
  auto const add = [&](std::string const& name, std::int64_t rows, std::int64_t cols) {
    auto& values = memory.emplace_back(static_cast<std::size_t>(rows * cols));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = value(name, i);
    slices.push_back(mo::whole_tensor(name, {rows, cols}, std::span(values)));
  };
  add(prefix + "gate.weight", E, H);
  for (int e = 0; e < E; ++e) {
    std::string const expert = prefix + "experts." + std::to_string(e);
    add(expert + ".w1.weight", I, H);
    add(expert + ".w2.weight", H, I);
    add(expert + ".w3.weight", I, H);
  }
  add("lm_head.weight", 5, H);
  mo::self_communicator alone;
  mo::save_checkpoint(alone, path, slices);
}

}  // namespace

TEST_CASE_TEMPLATE("a published layer is loaded from its own names and types, on any layout of whole experts", Layout,
                   mo::row_major, mo::packed) {
  using deployment = in_bf16<Layout>;
  constexpr std::size_t expert = I * H;
  scratch_folder const folder;
  std::string const path = folder.file("model.safetensors"), prefix = "model.layers.3.block_sparse_moe.";
  publish(path, prefix);
  for (mo::layout const& shape : {mo::layout{}, mo::layout{.data = 2, .expert = 2}}) {
    mo::run<deployment>(
        [&](mo::context<deployment>& ctx) {
          mo::moe_layer<block, deployment> layer{ctx};
          auto weights = layer.make_weights(mo::seed{1});
          load_mixtral(ctx, layer, weights, path, prefix);
          auto x = ctx.matrix(3, H), y = ctx.matrix(3, H);
          layer.infer(weights, x, y);
          mo::for_each_parameter(weights, [&](mo::parameter const& p, auto values) {
            std::size_t wrong = 0;
            for (std::size_t i = 0; i < values.size(); ++i) {
              std::size_t const size = p.of_experts ? expert : values.size(), e = i / size;
              std::string const name =
                  p.of_experts ? "experts." + std::to_string(static_cast<std::size_t>(p.part[0].first) + e) + name_of(p)
                               : "gate.weight";
              if (static_cast<float>(values[i]) != static_cast<float>(value(prefix + name, i % size))) ++wrong;
            }
            CHECK(wrong == 0);
          });
        },
        {}, shape);
  }
}
