// SPDX-License-Identifier: Apache-2.0
// The matrices of all experts of a layer, and what products read them through. H hidden, I ffn, E experts.
//
//   expert_matrices<Mlp, T>                one matrix for each input product [E × I × H] (for interleaved inputs one of all
//                                          [E × 2I × H]), and down [E × H × I]; where the MLP is biased, columns [E × I] and
//                                          [E × H] beside them
//   expert_copies<Mlp, T, Layout>          the packed copies that a weight layout asks for; owns their memory
//   expert_operands<Mlp, T, Layout>        for each product, the matrices or their copies
//
// Where an MLP stores [in, out] a matrix is the transpose of what lies in memory.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/experts/mlp.hpp>
#include <moiety/experts/weight_layout.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

template <class Mlp, class T> struct expert_matrices {
  static constexpr auto count = static_cast<std::size_t>(input_products<Mlp>::count);
  std::array<kernels::grouped_matrix<T>, count> inputs{};
  kernels::grouped_matrix<T> down{};
  std::array<kernels::grouped_matrix<T>, count> input_biases{};
  kernels::grouped_matrix<T> down_bias{};
};

/// A matrix that a product reads, as it is stored.
template <bool Transposed, class T>
using stored_matrix =
    std::conditional_t<Transposed, kernels::transposed_matrix<T const>, kernels::grouped_matrix<T const>>;

template <class Mlp, class T> auto read_input(kernels::grouped_matrix<T> const& w) {
  return stored_matrix<input_products<Mlp>::transposed, T>{w.data, w.group_stride, w.row_stride};
}
template <class Mlp, class T> auto read_down(kernels::grouped_matrix<T> const& w) {
  return stored_matrix<input_products<Mlp>::down_transposed, T>{w.data, w.group_stride, w.row_stride};
}

/// E, H and I of the experts of a layer.
struct expert_sizes {
  std::int64_t experts, hidden, ffn;
};

template <class Mlp, class T, weight_layout Layout> class expert_copies {
  using products = input_products<Mlp>;
  static constexpr std::int64_t inputs = products::count;

 public:
  /// Bytes of all copies.
  static constexpr std::int64_t bytes(expert_sizes const& of) {
    return of.experts * (forward_bytes(of) + backward_bytes(of));
  }

  expert_copies() = default;
  expert_copies(expert_sizes const& of, std::pmr::memory_resource& memory) : of_(of), memory_(bytes(of), memory) {}

  template <class Engine> void pack(Engine& engine, expert_matrices<Mlp, T> const& from) const {
    std::int64_t const width = products::width(of_.ffn);
    for (std::int64_t i = 0; i < inputs; ++i) {
      auto const input = read_input<Mlp>(from.inputs[static_cast<std::size_t>(i)]);
      if constexpr (Layout::packs_forward)
        kernels::pack_nt(engine, of_.experts, input, width, of_.hidden, place(forward_place(i)));
      if constexpr (Layout::packs_backward)
        kernels::pack_nn(engine, of_.experts, input, of_.hidden, width, place(backward_place(i)));
    }
    auto const down = read_down<Mlp>(from.down);
    if constexpr (Layout::packs_forward)
      kernels::pack_nt(engine, of_.experts, down, of_.hidden, of_.ffn, place(forward_place(inputs)));
    if constexpr (Layout::packs_backward)
      kernels::pack_nn(engine, of_.experts, down, of_.ffn, of_.hidden, place(backward_place(inputs)));
  }

  /// Copies for forward (nt) and the input gradient (nn): of input i, and of down at i = inputs.
  kernels::packed_matrix<T> forward(std::int64_t i) const {
    return {place(forward_place(i)), i < inputs ? up_forward(of_) : down_forward(of_)};
  }
  kernels::packed_matrix<T> backward(std::int64_t i) const {
    return {place(backward_place(i)), i < inputs ? up_backward(of_) : down_backward(of_)};
  }

 private:
  static constexpr std::int64_t up_forward(expert_sizes const& of) {
    return kernels::packed_bytes<T>(products::width(of.ffn), of.hidden);
  }
  static constexpr std::int64_t up_backward(expert_sizes const& of) {
    return kernels::packed_bytes<T>(of.hidden, products::width(of.ffn));
  }
  static constexpr std::int64_t down_forward(expert_sizes const& of) {
    return kernels::packed_bytes<T>(of.hidden, of.ffn);
  }
  static constexpr std::int64_t down_backward(expert_sizes const& of) {
    return kernels::packed_bytes<T>(of.ffn, of.hidden);
  }
  static constexpr std::int64_t forward_bytes(expert_sizes const& of) {
    return Layout::packs_forward ? inputs * up_forward(of) + down_forward(of) : 0;
  }
  static constexpr std::int64_t backward_bytes(expert_sizes const& of) {
    return Layout::packs_backward ? inputs * up_backward(of) + down_backward(of) : 0;
  }

  std::int64_t forward_place(std::int64_t i) const { return of_.experts * i * up_forward(of_); }
  std::int64_t backward_place(std::int64_t i) const {
    return of_.experts * (forward_bytes(of_) + i * up_backward(of_));
  }
  std::byte* place(std::int64_t offset) const { return static_cast<std::byte*>(memory_.data()) + offset; }

  expert_sizes of_{};
  buffer memory_;
};

template <class Mlp, class T, weight_layout Layout = row_major> struct expert_operands {
  static constexpr auto count = expert_matrices<Mlp, T>::count;
  expert_matrices<Mlp, T> matrices;
  expert_copies<Mlp, T, Layout> const* copies = nullptr;

  auto forward_inputs() const {
    return each<Layout::packs_forward>([this](std::int64_t i) { return copies->forward(i); });
  }
  auto backward_inputs() const {
    return each<Layout::packs_backward>([this](std::int64_t i) { return copies->backward(i); });
  }
  auto forward_down() const {
    if constexpr (Layout::packs_forward)
      return std::array{copies->forward(count)};
    else
      return std::array{read_down<Mlp>(matrices.down)};
  }
  auto backward_down() const {
    if constexpr (Layout::packs_backward)
      return std::array{copies->backward(count)};
    else
      return std::array{read_down<Mlp>(matrices.down)};
  }

 private:
  template <bool Packed, class Copy> auto each(Copy const& copy) const {
    std::array<std::conditional_t<Packed, kernels::packed_matrix<T>, stored_matrix<input_products<Mlp>::transposed, T>>,
               count>
        all;
    for (std::size_t i = 0; i < count; ++i) {
      if constexpr (Packed)
        all[i] = copy(static_cast<std::int64_t>(i));
      else
        all[i] = read_input<Mlp>(matrices.inputs[i]);
    }
    return all;
  }
};

}  // namespace moiety
