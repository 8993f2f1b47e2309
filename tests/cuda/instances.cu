// SPDX-License-Identifier: Apache-2.0
// Every kernel of the CUDA back end, once: what resources.py reads the compiler's report of.
#include <moiety/cuda.cuh>

#include <cstdint>
#include <ratio>

namespace mo = moiety;

template <class T> struct one_gpu : mo::deployment<> {
  using backend = mo::cuda;
  using element = T;
};

// Qwen3-30B-A3B, and one with other policies in every role.
struct gated : mo::layer_spec<mo::dims{.hidden = 2048, .ffn = 768, .experts = 128}> {
  using router = mo::router<mo::softmax, mo::top_k<8>, mo::renormalised>;
  using experts = mo::gated_mlp<mo::silu>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};
struct plain : mo::layer_spec<mo::dims{.hidden = 1024, .ffn = 512, .experts = 8}> {
  using router = mo::router<mo::sigmoid, mo::top_k<2>, mo::as_scored, mo::scale<std::ratio<5, 2>>>;
  using experts = mo::mlp<mo::gelu>;
  using losses = mo::losses<mo::load_balance<mo::over::sequence>>;
};

// DeepSeek-V3 with what else a router may have, and experts with every epilogue.
struct grouped : mo::layer_spec<mo::dims{.hidden = 512, .ffn = 256, .experts = 256}> {
  using router = mo::router<mo::jitter<>, mo::linear_bias, mo::sigmoid, mo::selection_bias, mo::groups<8, 4>,
                            mo::top_k<8>, mo::renormalised, mo::scale<std::ratio<5, 2>>, mo::on_input>;
  using experts = mo::clamped_swiglu<std::ratio<7>, mo::biased, mo::interleaved>;
  using shared = mo::shared_experts<1, mo::sigmoid_gated>;
  using losses = mo::losses<mo::load_balance<>, mo::importance<>, mo::communication_balance<8, 4>>;
};

struct noisy : plain {
  using router = mo::router<mo::logit_noise, mo::softmax, mo::top_k<2>, mo::renormalised, mo::on_activation>;
  using losses = mo::losses<mo::noisy_load<>>;
};

struct limited : plain {
  using capacity = mo::capacity<std::ratio<5, 4>, mo::drop::priority, mo::renormalise_after_drop>;
};
struct limited_by_sequence : gated {
  using capacity = mo::capacity<std::ratio<5, 4>, mo::drop::random, mo::per::sequence>;
};

struct chosen : gated {
  using router = mo::router<mo::softmax, mo::expert_choice<2>, mo::renormalised>;
};
struct rounded : plain {
  using router = mo::router<mo::sigmoid, mo::token_rounding<2, 128, mo::rounding::nearest_by_score>>;
};
struct balanced : gated {
  using router = mo::router<mo::sigmoid, mo::sinkhorn<2>>;
};

template <class Spec, class T> void use() {
  mo::context<one_gpu<T>> ctx;
  mo::moe_layer<Spec, one_gpu<T>> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  auto const h = mo::spec_of<Spec>::hidden;
  auto x = ctx.matrix(64, h), y = ctx.matrix(64, h), dy = ctx.matrix(64, h), dx = ctx.matrix(64, h);
  mo::fill_normal(ctx, x, mo::seed{2});
  layer.infer(weights, x, y);
  auto tape = layer.forward(weights, x, y);
  layer.backward(weights, tape, dy, dx, gradients);
  mo::kernels::gather<T>(ctx.engine(), tape.permutation(), x, y);
}

/// Of exchanges between ranks.
template <class V> void use_rows(mo::cuda_engine& engine) {
  mo::kernels::rank_blocks<V> const shape{};
  mo::detail::add_values(engine, static_cast<V*>(nullptr), 1, static_cast<V*>(nullptr));
  mo::kernels::list_sent(engine, shape, 1, nullptr, nullptr);
  mo::kernels::pack(engine, shape, mo::kernels::rows_of<V>{}, nullptr, nullptr);
  mo::kernels::list_arrived(engine, shape, nullptr, nullptr, nullptr);
  mo::kernels::unpack(engine, shape, nullptr, nullptr, 1, static_cast<V*>(nullptr));
}

void use_rows_of_all(mo::cuda_engine& engine) {
  mo::detail::copy_rows(engine, {}, {});
  use_rows<float>(engine), use_rows<double>(engine), use_rows<mo::bf16>(engine), use_rows<mo::fp16>(engine);
}

void use_all() {
  use<gated, mo::bf16>();
  use<plain, mo::fp16>();
  use<gated, float>();
  use<plain, double>();
  use<grouped, mo::bf16>();
  use<noisy, float>();
  use<limited, double>();
  use<limited_by_sequence, float>();
  use<chosen, float>();
  use<rounded, double>();
  use<balanced, float>();
}
