// SPDX-License-Identifier: Apache-2.0
// The rows of one model: each stage of a layer, then whole layers, in bf16. Bytes are the least that a stage moves, FLOPs
// those of its products; both from the tokens that were routed. Logits are noise of deviation 1 and a bias of each expert:
//
//   uniform   none        zipf   −log(1 + e)        one_hot   a large one for the first k experts
//
// Products read rows as those of a layer do: what row `gather` left where that pays, else they gather themselves. Evenly
// routed, they are measured by portable kernels too, beside those that the library chooses; those of the router in bf16x3, with a
// layer of such a router; and those of forward in 8 bits, on rows that `quantise` left, with a layer in fp8. Beside a layer run
// its products as dense ones, of bf16 for fp8 too. A row `shape` holds the sizes, and how many rows each expert had in each set
// of inputs; a row `memory` what a step of a layer took at most beside weights, gradients and its operands, what describe says
// of it, and what it keeps for backward, x too, beside the least: x and pre-activations.
#pragma once

#include "measure.cuh"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <string>
#include <string_view>
#include <vector>

namespace bench {

/// Column 0 of a matrix, from one value a row, or one for all.
template <class V> __global__ void set_column(mo::matrix_view<V> to, float const* values, float value) {
  std::int64_t const i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < to.rows()) to.row(i)[0] = static_cast<V>(values != nullptr ? values[i] : value);
}

/// 16 bytes of each thread at a time, four under way.
template <int = 0> __global__ void copy_vectors(uint4 const* from, uint4* to, std::int64_t count) {
  std::int64_t const step = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += 4 * step) {
    uint4 values[4];
    for (int j = 0; j < 4; ++j)
      if (i + j * step < count) values[j] = from[i + j * step];
    for (int j = 0; j < 4; ++j)
      if (i + j * step < count) to[i + j * step] = values[j];
  }
}

/// Device memory of another resource, and the most bytes that lived.
class counted_memory final : public std::pmr::memory_resource {
 public:
  explicit counted_memory(std::pmr::memory_resource& of) : of_(of) {}
  std::int64_t live = 0, most = 0;

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    void* const block = of_.allocate(bytes, alignment);
    live += static_cast<std::int64_t>(bytes);
    most = std::max(most, live);
    return block;
  }
  void do_deallocate(void* block, std::size_t bytes, std::size_t alignment) override {
    live -= static_cast<std::int64_t>(bytes);
    of_.deallocate(block, bytes, alignment);
  }
  bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override { return this == &other; }

  std::pmr::memory_resource& of_;
};

template <class T> struct one_gpu : mo::deployment<> {
  using backend = mo::cuda;
  using element = T;
};
template <class T> struct one_gpu_split_router : one_gpu<T> { using router_products = mo::bf16x3_products; };
template <class T> struct one_gpu_in_fp8 : one_gpu<T> { using expert_products = mo::fp8_products; };
template <class T> struct one_gpu_in_fp8_blocks : one_gpu<T> { using expert_products = mo::fp8_block_products; };

template <class Spec> class model {
  using T = mo::bf16;
  using S = float;
  using read = mo::spec_of<Spec>;
  using mlp = typename read::experts_type;
  using router_type = typename read::router_type;
  using layer_type = mo::moe_layer<Spec, one_gpu<T>>;
  static constexpr std::int64_t H = read::hidden, I = read::ffn, E = read::experts, K = read::slots;
  static constexpr int experts = static_cast<int>(E);
  static_assert(mlp::inputs == 2);

  /// One set of inputs, and where its tokens were routed.
  struct inputs {
    mo::device_matrix<T> x, dy;
    mo::device_matrix<S> logits, weights;
    mo::device_matrix<std::int32_t> ids, sources, positions;
    mo::device_matrix<std::int64_t> starts;
    mo::device_matrix<mo::token_state> states;

    inputs(std::int64_t tokens, mo::arena& m)
        : x(tokens, H, m),
          dy(tokens, H, m),
          logits(tokens, E, m),
          weights(tokens, K, m),
          ids(tokens, K, m),
          sources(tokens, K, m),
          positions(tokens, K, m),
          starts(1, E + 1, m),
          states(tokens, 1, m) {}
    mo::routing_view<S> routes() { return {x.rows(), E, K, ids.data(), weights.data(), states.data()}; }
    mo::permutation_view order() { return {x.rows(), E, K, starts.data(), sources.data(), positions.data()}; }
  };

  /// What stages write, shared by the sets.
  struct outputs {
    mo::device_matrix<T> rows, z, a, o, dz, scaled, dx, y;
    mo::device_matrix<S> row_weights, parts, gradient;

    outputs(std::int64_t tokens, mo::arena& m)
        : rows(tokens * K, H, m),
          z(tokens * K, 2 * I, m),
          a(tokens * K, I, m),
          o(tokens * K, H, m),
          dz(tokens * K, 2 * I, m),
          scaled(tokens * K, I, m),
          dx(tokens * K, H, m),
          y(tokens, H, m),
          row_weights(tokens, K, m),
          parts(tokens * K, mo::column_blocks<S, mo::cuda>(I), m),
          gradient(E * I, H, m) {}
  };

 public:
  model(std::string_view name, options const& asked) : name_(name), layer_(ctx_), run_(asked, engine()) {}

  void measure_all(std::vector<std::int64_t> tokens_of_model = {64, 1024, 4096, 16384, 32768},
                   std::vector<std::string> const& routings = {"uniform", "zipf", "one_hot"}) {
    ceilings();
    auto weights = layer_.make_weights(mo::seed{17});
    if (!run_.asked().tokens.empty()) tokens_of_model = run_.asked().tokens;
    for (std::int64_t const tokens : tokens_of_model)
      for (std::string const& routing : routings) {
        if (run_.out_of_time()) return;
        std::string const prefix = name_ + '/' + std::to_string(tokens) + '/' + routing + '/';
        if (run_.has(prefix + "done")) continue;
        bool const fits = fits_memory([&] {
          if (routing == "uniform") memory_of_step(prefix, tokens);
          auto in = inputs_of(weights, tokens, routing);
          outputs out(tokens, memory());
          stages(prefix, weights, in, out, routing == "uniform");
          layers(layer_, "", prefix, weights, weights, in, out);
          if (routing == "uniform") {
            mo::context<one_gpu_split_router<T>> ctx{mo::cuda{.stream = engine().stream()}};
            layers(mo::moe_layer<Spec, one_gpu_split_router<T>>(ctx), "/bf16x3", prefix, weights, weights, in, out);
          }
          if (routing == "uniform" && engine().compute_capability() >= 89)
            if (!fits_memory([&] { in_fp8(prefix, weights, in, out); }))
              run_.write(prefix + "fp8", {{"left_out", "\"out of memory\""}});
          if (!run_.out_of_time()) run_.write(prefix + "done", {});
        });
        if (!fits) run_.write(prefix + "done", {{"left_out", "\"out of memory\""}});
        engine().memory().release();
      }
  }

  bool finished() const { return !run_.out_of_time(); }

 private:
  mo::cuda_engine& engine() { return ctx_.engine(); }

  /// Whether there was memory for f; if not, the caller says what is left out.
  template <class Function> static bool fits_memory(Function const& f) {
    try {
      f();
      return true;
    } catch (std::exception const& e) {
      if (std::string_view(e.what()).find("out of memory") == std::string_view::npos) throw;
      return false;
    }
  }

  mo::arena& memory() { return ctx_.memory(); }

  /// Rates of this run: a copy on the device, and cuBLAS's products of large matrices.
  void ceilings() {
    constexpr std::int64_t bytes = std::int64_t{1} << 30, n = 8192, m = 4096;
    mo::buffer const from(bytes, memory()), to(bytes, memory());
    mo::fill_normal(ctx_, mo::matrix_view<S>(static_cast<S*>(from.data()), bytes / 4096, 1024), mo::seed{5});
    auto const copy = [&](int) {
      engine().launch("a copy", copy_vectors<>, {std::int64_t{16} * engine().multiprocessors(), 256},
                      static_cast<uint4 const*>(from.data()), static_cast<uint4*>(to.data()), bytes / 16);
    };
    run_.measure({name_ + "/ceiling/copy", 0, 2.0 * bytes, false, 1, copy, nullptr});
    mo::detail::cublas_stream const multiply(engine());
    mo::device_matrix<T> a(n, n, memory()), b(n, n, memory()), c(n, n, memory());
    mo::fill_normal(ctx_, a, mo::seed{1}), mo::fill_normal(ctx_, b, mo::seed{2});
    run_.measure({name_ + "/ceiling/bf16", 2.0 * n * n * n, 0, true, 1,
                  [&](int) {
                    multiply.template nt<T, T>({n, n, n}, {a.data(), n}, {b.data(), n}, {c.data(), n});
                  },
                  nullptr});
    mo::device_matrix<S> fa(m, m, memory()), fb(m, m, memory()), fc(m, m, memory());
    mo::fill_normal(ctx_, fa, mo::seed{3}), mo::fill_normal(ctx_, fb, mo::seed{4});
    run_.measure({name_ + "/ceiling/float", 2.0 * m * m * m, 0, false, 1,
                  [&](int) {
                    multiply.template nt<S, S>({m, m, m}, {fa.data(), m}, {fb.data(), m}, {fc.data(), m});
                  },
                  nullptr});
    engine().synchronize();
  }

  /// Biases of the experts in column 0 of the router, which all tokens have in common.
  void bias(mo::matrix_view<S> router, std::string_view routing) {
    std::vector<float> values(static_cast<std::size_t>(E));
    for (std::size_t e = 0; e < values.size(); ++e) {
      if (routing == "zipf") values[e] = -std::log(1.0f + static_cast<float>(e)) / common;
      if (routing == "one_hot") values[e] = static_cast<std::int64_t>(e) < K ? 100 / common : 0;
    }
    mo::device_matrix<float> device(1, E, memory());
    memory().store(device.data(), values.data(), E * static_cast<std::int64_t>(sizeof(float)));
    engine().launch("a bias", set_column<S>, {(E + 127) / 128, 128}, router, device.data(), 0.0f);
  }

  void fill(inputs& in, int set) {
    mo::fill_normal(ctx_, in.x, mo::seed{100 + set}), mo::fill_normal(ctx_, in.dy, mo::seed{200 + set});
    engine().launch("a bias", set_column<T>, {(in.x.rows() + 127) / 128, 128}, in.x.view(),
                    static_cast<float const*>(nullptr), common);
  }

  std::vector<inputs> inputs_of(typename layer_type::weights_type& weights, std::int64_t tokens,
                                std::string_view routing) {
    bias({const_cast<S*>(weights.router().data()), E, H}, routing);
    std::vector<inputs> all;
    for (int set = 0; set < sets; ++set) {
      all.emplace_back(tokens, memory());
      fill(all.back(), set);
    }
    return all;
  }

  /// How its experts were loaded: what others need to measure the same.
  void shape(std::string const& prefix, std::vector<inputs> const& in) {
    if (run_.has(prefix + "shape")) return;
    std::string counts;
    for (inputs const& set : in) {
      auto const starts = set.starts.host();
      counts += counts.empty() ? "[" : "], [";
      for (std::int64_t e = 0; e < E; ++e)
        counts += (e == 0 ? "" : ", ") + std::to_string(starts(0, e + 1) - starts(0, e));
    }
    run_.write(prefix + "shape", {{"tokens", std::to_string(in[0].x.rows())},
                                  {"hidden", std::to_string(H)},
                                  {"ffn", std::to_string(I)},
                                  {"experts", std::to_string(E)},
                                  {"slots", std::to_string(K)},
                                  {"counts", '[' + counts + "]]"}});
  }

  void stages(std::string const& prefix, typename layer_type::weights_type& weights, std::vector<inputs>& in,
              outputs& out, bool portable) {
    auto const of = [&](int set) -> inputs& { return in[static_cast<std::size_t>(set)]; };
    auto const t = static_cast<double>(in[0].x.rows());
    run_.measure({prefix + "router_logits", 2 * t * H * E, t * H * 2 + t * E * 4 + 4.0 * E * H, false, 64,
                  [&](int s) { mo::kernels::router_logits<T>(engine(), of(s).x, weights.router(), of(s).logits); },
                  nullptr});
    if (portable) {
      using room = mo::kernels::bf16x3_room;
      std::int64_t const tokens = in[0].x.rows();
      mo::buffer const parts(
          std::max({room::logits(H, E), room::input_gradient(tokens, H, E, 1), room::weight_gradient(tokens, H, E)}),
          memory());
      router_gradients(prefix, "", in, weights, [&]() -> mo::cuda_engine& { return engine(); });
      auto const split = [&] { return mo::kernels::bf16x3_engine(engine(), parts.data()); };
      run_.measure({prefix + "router_logits/bf16x3", 2 * t * H * E, t * H * 2 + t * E * 4 + 4.0 * E * H, true, 64,
                    [&](int s) { mo::kernels::router_logits<T>(split(), of(s).x, weights.router(), of(s).logits); },
                    nullptr});
      router_gradients(prefix, "/bf16x3", in, weights, split);
    }
    run_.measure({prefix + "route", 0, t * (4 * E + 8 * K + 1), false, 64,
                  [&](int s) {
                    mo::kernels::route<router_type, S, experts>(engine(), router_type{}, of(s).logits, mo::batch{},
                                                                mo::non_finite::sanitise, of(s).routes());
                  },
                  nullptr});
    run_.measure({prefix + "index", 0, t * (12 * K + 1), false, 64,
                  [&](int s) { mo::kernels::build_permutation<S>(engine(), of(s).routes(), of(s).order()); }, nullptr});
    engine().synchronize();
    shape(prefix, in);
    auto const starts = of(0).starts.host();
    auto const r = static_cast<double>(starts(0, E));
    std::int64_t used = 0;
    for (std::int64_t e = 0; e < E; ++e) used += starts(0, e + 1) > starts(0, e) ? 1 : 0;
    run_.measure({prefix + "gather", 0, 2 * (t * H + r * H) + 4 * r, false, 64,
                  [&](int s) { mo::kernels::gather<T>(engine(), of(s).order(), of(s).x, out.rows); }, nullptr});
    products(engine(), prefix, "", weights, in, out, starts(0, E), static_cast<double>(used));
    if (portable) products(portable_, prefix, "/portable", weights, in, out, starts(0, E), static_cast<double>(used));
    run_.measure(
        {prefix + "combine", 0, 2 * (r * H + t * H) + 8 * r, false, 64,
         [&](int s) { mo::kernels::combine<T>(engine(), of(s).order(), out.o, of(s).weights.data(), nullptr, out.y); },
         nullptr});
  }

  /// The gradients of a router, by what `engine_of` gives, for gradients of logits that are the logits.
  template <class EngineOf>
  void router_gradients(std::string const& prefix, std::string const& kind, std::vector<inputs>& in,
                        typename layer_type::weights_type& weights, EngineOf const& engine_of) {
    std::int64_t const tokens = in[0].x.rows();
    auto const t = static_cast<double>(tokens);
    auto const of = [&](int set) -> inputs& { return in[static_cast<std::size_t>(set)]; };
    mo::device_matrix<S> dx(tokens, H, memory()), dw(E, H, memory());
    mo::device_matrix<std::int32_t> list(tokens, 1, memory());
    mo::device_matrix<std::int64_t> offsets(1, 2, memory());
    memory().zero(in[0].states.data(), tokens * static_cast<std::int64_t>(sizeof(mo::token_state)));  // all are routed
    mo::kernels::list_routed(engine(), in[0].states.data(), tokens, list.data(), offsets.data());
    bool const tensor_cores = !kind.empty();
    run_.measure(
        {prefix + "router_input_gradient" + kind, 2 * t * H * E, t * (H + E) * 4 + 4.0 * E * H, tensor_cores, 64,
         [&](int s) { mo::kernels::router_input_gradient<S>(engine_of(), of(s).logits, weights.router(), dx.data()); },
         nullptr});
    run_.measure({prefix + "router_weight_gradient" + kind, 2 * t * H * E, t * (H * 2 + E * 4) + 4.0 * E * H,
                  tensor_cores, 64,
                  [&](int s) {
                    mo::kernels::router_weight_gradient<T>(engine_of(), of(s).logits, of(s).x, list.data(),
                                                           offsets.data(), dw, false);
                  },
                  nullptr});
  }

  /// The grouped products of both passes, each beside a dense one of the same size. `kind` ends the names of their rows.
  void products(mo::cuda_engine& by, std::string const& prefix, std::string const& kind,
                typename layer_type::weights_type& weights, std::vector<inputs>& in, outputs& out, std::int64_t count,
                double used) {
    auto const operands = weights.operands();
    auto const up = operands.forward_inputs();
    auto const down = operands.forward_down();
    auto const r = static_cast<double>(count), t = static_cast<double>(in[0].x.rows()), b = 2.0;
    std::int64_t const most = in[0].x.rows() * K;
    auto const offsets = [&](int s) { return in[static_cast<std::size_t>(s)].starts.data(); };
    auto const rows = [&](int s, mo::device_matrix<T> const& of) {
      if (mo::kernels::wants_rows_in_order<T>(by, E, most)) return mo::kernels::rows_of<T>{out.rows.data(), H};
      return mo::kernels::rows_of<T>{of.data(), H, in[static_cast<std::size_t>(s)].sources.data()};
    };
    mo::detail::cublas_stream const multiply(engine());
    mo::kernels::rows_of<T> const gate{out.dz.data(), 2 * I}, second{out.dz.data() + I, 2 * I},
        scaled{out.scaled.data(), I};
    run_.measure(
        {prefix + "gemm_up" + kind, 4 * r * H * I, b * (t * H + used * 2 * H * I + 3 * r * I), true, 64,
         [&](int s) {
           mo::kernels::grouped_gemm_nt<S>(by, E, offsets(s), most, rows(s, in[static_cast<std::size_t>(s)].x), up, I,
                                           H, mo::detail::activate<mlp, T>{out.z.data(), out.a.data(), I, nullptr, {}});
         },
         [&](int) {
           multiply.template nt<T, T>({count, 2 * I, H}, {out.rows.data(), H}, {up[0].data, H}, {out.dz.data(), 2 * I});
         }});
    run_.measure({prefix + "gemm_down" + kind, 2 * r * H * I, b * (r * I + used * H * I + r * H), true, 64,
                  [&](int s) {
                    mo::kernels::grouped_gemm_nt<S>(by, E, offsets(s), most, mo::kernels::rows_of<T>{out.a.data(), I},
                                                    down, H, I,
                                                    mo::kernels::gpu::store_rows<T, mo::sum_t<T>>{out.o.data(), H});
                  },
                  [&](int) {
                    multiply.template nt<T, T>({count, H, I}, {out.a.data(), I}, {down[0].data, I}, {out.dx.data(), H});
                  }});
    run_.measure(
        {prefix + "gemm_down_backward" + kind, 2 * r * H * I, b * (t * H + used * H * I + 5 * r * I), true, 64,
         [&](int s) {
           mo::kernels::grouped_gemm_nn<S>(
               by, E, offsets(s), most, std::array{rows(s, in[static_cast<std::size_t>(s)].dy)}, down, I, H,
               mo::detail::differentiate<mlp, T>{out.z.data(), out.row_weights.data(), out.dz.data(), out.scaled.data(),
                                                 out.parts.data(), I});
         },
         [&](int) {
           multiply.template nn<T, T>({count, I, H}, {out.rows.data(), H}, {down[0].data, I}, {out.a.data(), I}, false);
         }});
    run_.measure({prefix + "gemm_up_backward" + kind, 4 * r * H * I, b * (2 * r * I + used * 2 * H * I + r * H), true,
                  64,
                  [&](int s) {
                    mo::kernels::grouped_gemm_nn<S>(by, E, offsets(s), most, std::array{gate, second}, up, H, I,
                                                    mo::kernels::gpu::store_rows<T, mo::sum_t<T>>{out.dx.data(), H});
                  },
                  [&](int) {
                    multiply.template nn<T, T>({count, H, 2 * I}, {out.dz.data(), 2 * I}, {up[0].data, H},
                                               {out.rows.data(), H}, false);
                  }});
    run_.measure({prefix + "gemm_up_weights" + kind, 2 * r * H * I, b * (t * H + r * I) + 4.0 * E * I * H, true, 64,
                  [&](int s) {
                    mo::kernels::grouped_gemm_tn<S>(
                        by, E, offsets(s), most, gate, rows(s, in[static_cast<std::size_t>(s)].x),
                        mo::kernels::grouped_matrix<S>{out.gradient.data(), I * H, H}, I, H, false);
                  },
                  [&](int) {
                    multiply.template tn<T>({I, H, count}, {out.dz.data(), 2 * I}, {out.rows.data(), H},
                                            {out.gradient.data(), H}, false);
                  }});
    run_.measure({prefix + "gemm_down_weights" + kind, 2 * r * H * I, b * (t * H + r * I) + 4.0 * E * I * H, true, 64,
                  [&](int s) {
                    mo::kernels::grouped_gemm_tn<S>(
                        by, E, offsets(s), most, rows(s, in[static_cast<std::size_t>(s)].dy), scaled,
                        mo::kernels::grouped_matrix<S>{out.gradient.data(), I * H, I}, H, I, false);
                  },
                  [&](int) {
                    multiply.template tn<T>({H, I, count}, {out.rows.data(), H}, {out.scaled.data(), I},
                                            {out.gradient.data(), I}, false);
                  }});
  }

  /// What products of a layer cost where all rows are one expert's: cuBLAS, on what the stages left in `out`.
  void dense_layer(mo::detail::cublas_stream const& multiply, typename layer_type::weights_type& weights, outputs& out,
                   bool backward) {
    std::int64_t const r = out.rows.rows();
    auto const up = weights.operands().forward_inputs();
    auto const down = weights.operands().forward_down();
    multiply.template nt<T, T>({r, 2 * I, H}, {out.rows.data(), H}, {up[0].data, H}, {out.z.data(), 2 * I});
    multiply.template nt<T, T>({r, H, I}, {out.a.data(), I}, {down[0].data, I}, {out.o.data(), H});
    if (!backward) return;
    multiply.template nn<T, T>({r, I, H}, {out.rows.data(), H}, {down[0].data, I}, {out.scaled.data(), I}, false);
    multiply.template nn<T, T>({r, H, 2 * I}, {out.dz.data(), 2 * I}, {up[0].data, H}, {out.dx.data(), H}, false);
    for (int input = 0; input < 2; ++input)
      multiply.template tn<T>({I, H, r}, {out.dz.data() + input * I, 2 * I}, {out.rows.data(), H},
                              {out.gradient.data(), H}, false);
    multiply.template tn<T>({H, I, r}, {out.rows.data(), H}, {out.a.data(), I}, {out.gradient.data(), I}, false);
  }

  /// The products of forward in 8 bits, what quantises their rows and weights, and a layer of such products.
  void in_fp8(std::string const& prefix, typename layer_type::weights_type& dense, std::vector<inputs>& in,
              outputs& out) {
    mo::context<one_gpu_in_fp8<T>> ctx{mo::cuda{.stream = engine().stream()}};
    mo::moe_layer<Spec, one_gpu_in_fp8<T>> const layer(ctx);
    auto weights = layer.make_weights(mo::seed{17});
    auto const starts = in[0].starts.host();
    auto const r = static_cast<double>(starts(0, E));
    std::int64_t const most = in[0].x.rows() * K;
    using operand = mo::kernels::quantised_operand<mo::cuda_engine, mo::kernels::row_scaled>;
    mo::buffer const x_memory(operand::row_bytes(most, H), memory()), a_memory(operand::row_bytes(most, I), memory());
    auto const x8 = operand::rows_at(x_memory.data(), most, H), a8 = operand::rows_at(a_memory.data(), most, I);
    auto const quantise = [&](int s, mo::kernels::rows_of<T> const& rows, std::int64_t width, operand const& to) {
      mo::kernels::quantise_rows(engine(), E, in[static_cast<std::size_t>(s)].starts.data(), most, std::array{rows},
                                 width, to);
    };
    run_.measure({prefix + "quantise", 0, r * H * 3, false, 64,
                  [&](int s) {
                    auto& of = in[static_cast<std::size_t>(s)];
                    quantise(s, {of.x.data(), H, of.sources.data()}, H, x8);
                  },
                  nullptr});
    quantise(0, {out.a.data(), I}, I, a8);
    run_.measure(
        {prefix + "quantise_weights", 0, E * 3.0 * H * I * 4, false, 4, [&](int) { layer.pack(weights); }, nullptr});
    auto const operands = weights.operands();
    auto const up = operands.forward_inputs();
    auto const down = operands.forward_down();
    auto const plain = dense.operands();
    auto const multiply_rows = [&](int s, operand const& rows, std::int64_t n, std::int64_t k, auto const& w,
                                   auto const& epilogue) {
      mo::kernels::multiply_scaled(engine(), E, in[static_cast<std::size_t>(s)].starts.data(), most, rows, w, n, k,
                                   epilogue);
    };
    mo::detail::cublas_stream const multiply(engine());
    run_.measure(
        {prefix + "gemm_up/fp8", 4 * r * H * I, r * H + E * 2.0 * H * I + 6 * r * I, true, 64,
         [&](int s) {
           multiply_rows(s, x8, I, H, up, mo::detail::activate<mlp, T>{out.z.data(), out.a.data(), I, nullptr, {}});
         },
         [&](int) {
           multiply.template nt<T, T>({starts(0, E), 2 * I, H}, {out.rows.data(), H},
                                      {plain.forward_inputs()[0].data, H}, {out.dz.data(), 2 * I});
         }});
    run_.measure({prefix + "gemm_down/fp8", 2 * r * H * I, r * I + E * 1.0 * H * I + 2 * r * H, true, 64,
                  [&](int s) {
                    multiply_rows(s, a8, H, I, down, mo::kernels::gpu::store_rows<T, S>{out.o.data(), H});
                  },
                  [&](int) {
                    multiply.template nt<T, T>({starts(0, E), H, I}, {out.a.data(), I},
                                               {plain.forward_down()[0].data, I}, {out.dx.data(), H});
                  }});
    layers(layer, "/fp8", prefix, weights, dense, in, out);
    mo::context<one_gpu_in_fp8_blocks<T>> block_ctx{mo::cuda{.stream = engine().stream()}};
    mo::moe_layer<Spec, one_gpu_in_fp8_blocks<T>> const blocks(block_ctx);
    layers(blocks, "/fp8_blocks", prefix, blocks.make_weights(mo::seed{17}), dense, in, out);
  }

  /// `kind` ends the names of rows; `dense` are weights whose products stand beside.
  template <class Layer>
  void layers(Layer const& layer, std::string const& kind, std::string const& prefix,
              typename Layer::weights_type const& weights, typename layer_type::weights_type& dense,
              std::vector<inputs>& in, outputs& out) {
    mo::detail::cublas_stream const multiply(engine());
    auto gradients = layer.make_gradients();
    std::int64_t const tokens = in[0].x.rows();
    mo::device_matrix<T> dx(tokens, H, memory());
    auto const at = [](int set) { return static_cast<std::size_t>(set); };
    auto const t = static_cast<double>(tokens), r = t * K;
    double const touched = std::min<double>(E, r), weight_bytes = 2 * touched * 3 * H * I;
    run_.measure({prefix + "layer_infer" + kind, 6 * r * H * I + 2 * t * H * E, 2 * (2 * t * H) + weight_bytes, true, 8,
                  [&](int s) { layer.infer(weights, in[at(s)].x, out.y); },
                  [&](int) { dense_layer(multiply, dense, out, false); }});
    run_.measure({prefix + "layer_forward" + kind, 6 * r * H * I + 2 * t * H * E,
                  2 * (2 * t * H + 2 * r * I) + weight_bytes + 4 * t * E, true, 8,
                  [&](int s) { layer.forward(weights, in[at(s)].x, out.y); },
                  [&](int) { dense_layer(multiply, dense, out, false); }});
    run_.measure({prefix + "layer_step" + kind, 18 * r * H * I + 6 * t * H * E,
                  2 * (5 * t * H + 4 * r * I) + 2 * weight_bytes + 12.0 * E * H * I, true, 1,
                  [&](int s) {
                    auto tape = layer.forward(weights, in[at(s)].x, out.y);
                    gradients.reset();
                    layer.backward(weights, tape, in[at(s)].dy, dx, gradients);
                  },
                  [&](int) { dense_layer(multiply, dense, out, true); }});
  }

  /// On a context of its own, whose arena holds nothing else.
  void memory_of_step(std::string const& prefix, std::int64_t tokens) {
    if (run_.has(prefix + "memory")) return;
    mo::detail::stream_memory device(engine().device(), engine().stream());
    counted_memory hook(device);
    mo::context<one_gpu<T>> ctx{mo::cuda{.stream = engine().stream(), .memory = &hook}};
    layer_type layer(ctx);
    auto const weights = layer.make_weights(mo::seed{17});
    auto gradients = layer.make_gradients();
    auto x = ctx.matrix(tokens, H), y = ctx.matrix(tokens, H), dy = ctx.matrix(tokens, H), dx = ctx.matrix(tokens, H);
    mo::fill_normal(ctx, x, mo::seed{100}), mo::fill_normal(ctx, dy, mo::seed{200});
    ctx.memory().release();
    std::int64_t const kept = hook.live;
    hook.most = kept;
    for (int i = 0; i < 2; ++i) {
      auto tape = layer.forward(weights, x, y);
      gradients.reset();
      layer.backward(weights, tape, dy, dx, gradients);
    }
    ctx.synchronize();
    mo::tokens const size(tokens, 1);
    std::int64_t const saved = mo::saved_bytes<Spec, one_gpu<T>>(size), operand = 2 * tokens * H;
    run_.write(prefix + "memory",
               {{"most_bytes", std::to_string(hook.most - kept)},
                {"described_bytes", std::to_string(saved + mo::workspace_bytes<Spec, one_gpu<T>>(size))},
                {"saved_bytes", std::to_string(saved + operand)},
                {"floor_bytes", std::to_string(operand + 4 * tokens * K * I)}});
  }

  static constexpr float common = 8;

  std::string name_;
  mo::context<one_gpu<T>> ctx_;
  mo::cuda_engine portable_{mo::cuda{.stream = engine().stream(), .portable = true}};
  layer_type layer_;
  run run_;
};

}  // namespace bench
