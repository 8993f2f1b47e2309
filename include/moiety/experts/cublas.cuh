// SPDX-License-Identifier: Apache-2.0
// Experts whose products are cuBLAS's, one expert after another: what apply.hpp states, with sums in cuBLAS's own order.
//
//   struct by_cublas : one_gpu { using expert_products = mo::cublas_products; };     link with -lcublas
//
// A yardstick and an oracle rather than a fast path: the offsets are read on the host, so every call waits for the device
// and none can be captured into a graph; rows are copied together before they are multiplied; nothing is fused. It takes
// up to (2 H + inputs · I) sums or elements a row from the arena beyond what describe() counts, until the call returns.
//
// Pre-activations are rounded to the element type where the library rounds them. Weights are read as they lie. A handle
// of cuBLAS is made for each host thread and device, and kept until the thread ends.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/array.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/experts/apply.cuh>
#include <moiety/experts/apply.hpp>
#include <moiety/experts/cublas_handle.cuh>
#include <moiety/experts/cublas_rows.cuh>
#include <moiety/experts/matrices.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// The rows of a call that are there, known to the host.
struct counted_rows {
  std::vector<std::int64_t> offsets;

  counted_rows(cuda_engine& engine, expert_rows const& of) : offsets(static_cast<std::size_t>(of.experts + 1)) {
    engine.memory().load(offsets.data(), of.offsets,
                         (of.experts + 1) * static_cast<std::int64_t>(sizeof(std::int64_t)));
  }
  std::int64_t all() const { return offsets.back(); }

  /// Calls f(expert, first row, rows).
  template <class Function> void for_each(Function const& f) const {
    for (std::size_t e = 0; e + 1 < offsets.size(); ++e)
      f(static_cast<std::int64_t>(e), offsets[e], offsets[e + 1] - offsets[e]);
  }
};

/// Memory of one call.
template <class T> class call_memory {
 public:
  call_memory(cuda_engine& engine, std::int64_t count)
      : block_(count * static_cast<std::int64_t>(sizeof(T)), engine.memory()) {}
  T* data() const { return static_cast<T*>(block_.data()); }

 private:
  buffer block_;
};

}  // namespace detail

template <class Mlp> struct apply_by_cublas {
  static_assert(!has_biases<Mlp> && !input_products<Mlp>::paired && !input_products<Mlp>::down_transposed,
                "mo::cublas_products multiply experts without biases that are stored mo::out_by_in and not "
                "mo::interleaved.");
  static constexpr auto inputs = static_cast<std::size_t>(Mlp::inputs);

  /// z may be null.
  template <scalar T>
  static void forward(cuda_engine& engine, expert_rows const& of, kernels::rows_of<T> x,
                      expert_operands<Mlp, T> const& weights, T* z, T* a, T* o, sum_t<T> const* row_weights = nullptr) {
    detail::counted_rows const rows(engine, of);
    detail::call_memory<T> const gathered(engine, rows.all() * of.hidden);
    detail::call_memory<T> const unsaved(engine, z == nullptr ? rows.all() * Mlp::inputs * of.ffn : 0);
    if (z == nullptr) z = unsaved.data();
    detail::gather_rows(engine, rows.all(), of.hidden, x, gathered.data());
    auto const multiply = detail::cublas_stream(engine);
    auto const w = weights.forward_inputs();
    rows.for_each([&](std::int64_t e, std::int64_t first, std::int64_t count) {
      for (std::size_t i = 0; i < inputs; ++i)
        multiply.nt<T, T>({count, of.ffn, of.hidden}, {gathered.data() + first * of.hidden, of.hidden},
                          {w[i].group(e), w[i].row_stride}, {place(z, of, first, i), Mlp::inputs * of.ffn});
    });
    detail::activate_rows<Mlp>(engine, rows.all(), of.ffn, z, row_weights, a);
    auto const down = weights.forward_down()[0];
    rows.for_each([&](std::int64_t e, std::int64_t first, std::int64_t count) {
      multiply.nt<T, T>({count, of.hidden, of.ffn}, {a + first * of.ffn, of.ffn}, {down.group(e), down.row_stride},
                        {o + first * of.hidden, of.hidden});
    });
  }

  template <scalar T>
  static void backward_input(cuda_engine& engine, expert_rows const& of, kernels::rows_of<T> dy,
                             expert_operands<Mlp, T> const& weights, T const* z, sum_t<T> const* row_weights, T* dz,
                             T* scaled_a, sum_t<T>* dweight_parts, T* dx) {
    using S = sum_t<T>;
    detail::counted_rows const rows(engine, of);
    detail::call_memory<T> const gathered(engine, rows.all() * of.hidden);
    detail::call_memory<S> const da(engine, rows.all() * of.ffn), sums(engine, rows.all() * of.hidden);
    detail::gather_rows(engine, rows.all(), of.hidden, dy, gathered.data());
    auto const multiply = detail::cublas_stream(engine);
    auto const down = weights.backward_down()[0];
    rows.for_each([&](std::int64_t e, std::int64_t first, std::int64_t count) {
      multiply.nn<T, S>({count, of.ffn, of.hidden}, {gathered.data() + first * of.hidden, of.hidden},
                        {down.group(e), down.row_stride}, {da.data() + first * of.ffn, of.ffn}, false);
    });
    detail::differentiate_rows<Mlp>(engine, rows.all(), of.ffn, z, da.data(), row_weights, dz, scaled_a, dweight_parts);
    auto const w = weights.backward_inputs();
    rows.for_each([&](std::int64_t e, std::int64_t first, std::int64_t count) {
      for (std::size_t i = 0; i < inputs; ++i)
        multiply.nn<T, S>({count, of.hidden, of.ffn}, {place(dz, of, first, i), Mlp::inputs * of.ffn},
                          {w[i].group(e), w[i].row_stride}, {sums.data() + first * of.hidden, of.hidden}, i > 0);
    });
    detail::round_rows(engine, rows.all() * of.hidden, sums.data(), dx);
  }

  template <scalar T>
  static void backward_weights(cuda_engine& engine, expert_rows const& of, kernels::rows_of<T> x,
                               kernels::rows_of<T> dy, T const* dz, T const* scaled_a,
                               expert_matrices<Mlp, sum_t<T>> const& gradients, bool accumulate,
                               bias_factors<sum_t<T>> const& = {}) {
    detail::counted_rows const rows(engine, of);
    detail::call_memory<T> const x_rows(engine, rows.all() * of.hidden), dy_rows(engine, rows.all() * of.hidden);
    detail::gather_rows(engine, rows.all(), of.hidden, x, x_rows.data());
    detail::gather_rows(engine, rows.all(), of.hidden, dy, dy_rows.data());
    auto const multiply = detail::cublas_stream(engine);
    rows.for_each([&](std::int64_t e, std::int64_t first, std::int64_t count) {
      for (std::size_t i = 0; i < inputs; ++i)
        multiply.template tn<T>({of.ffn, of.hidden, count}, {place(dz, of, first, i), Mlp::inputs * of.ffn},
                                {x_rows.data() + first * of.hidden, of.hidden},
                                {gradients.inputs[i].group(e), gradients.inputs[i].row_stride}, accumulate);
      multiply.template tn<T>({of.hidden, of.ffn, count}, {dy_rows.data() + first * of.hidden, of.hidden},
                              {scaled_a + first * of.ffn, of.ffn}, {gradients.down.group(e), gradients.down.row_stride},
                              accumulate);
    });
  }

 private:
  template <class Pointer> static Pointer place(Pointer z, expert_rows const& of, std::int64_t row, std::size_t input) {
    return z + (row * Mlp::inputs + static_cast<std::int64_t>(input)) * of.ffn;
  }
};

struct cublas_products {
  static constexpr std::string_view name = "cublas_products";
  static constexpr gathered_rows gathers_first{false, false, false};
  template <class Backend> static constexpr bool runs_on = std::same_as<Backend, cuda>;
  template <class Mlp, class Backend> using apply = apply_by_cublas<Mlp>;
};

}  // namespace moiety
