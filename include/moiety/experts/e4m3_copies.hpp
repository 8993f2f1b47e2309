// SPDX-License-Identifier: Apache-2.0
// The weight layout that products of 8 bits bring with them: copies of an expert MLP's matrices, quantised as an engine holds
// them (kernels/quantise.hpp), in the order in which products of experts/fp8.hpp read them.
//
//   Backward = false     W_i [E × I × H] and W_down [E × H × I] of forward
//   Backward = true      those, and of the input gradient W_down as [E × I × H] and all W_i side by side as [E × H × inputs · I]
//
// expert_copies and expert_operands are as in experts/matrices.hpp; products read a kernels::quantised_operand.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/experts/matrices.hpp>
#include <moiety/experts/mlp.hpp>
#include <moiety/experts/weight_layout.hpp>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/quantise.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <class Backend, class Scaling, bool Backward> struct e4m3_copies {
  static constexpr std::string_view name = Backward ? "e4m3" : "e4m3_forward";
  static constexpr bool packs_forward = true, packs_backward = Backward;
};

namespace detail {

/// The same matrix, read as the transpose of what it was.
template <class T> kernels::transposed_matrix<T> turned(kernels::grouped_matrix<T> const& w) {
  return {w.data, w.group_stride, w.row_stride};
}
template <class T> kernels::grouped_matrix<T> turned(kernels::transposed_matrix<T> const& w) { return w.lying(); }

}  // namespace detail

template <class Mlp, class T, class Backend, class Scaling, bool Backward>
class expert_copies<Mlp, T, e4m3_copies<Backend, Scaling, Backward>> {
  using products = input_products<Mlp>;
  using operand = kernels::quantised_operand<typename Backend::engine, Scaling>;
  static constexpr auto inputs = static_cast<std::size_t>(products::count);

 public:
  /// Bytes of all copies.
  static constexpr std::int64_t bytes(expert_sizes const& of) {
    return static_cast<std::int64_t>(inputs) * bytes_of(of, up(of)) + bytes_of(of, down(of)) +
           (Backward ? bytes_of(of, up_back(of)) + bytes_of(of, down_back(of)) : 0);
  }

  expert_copies() = default;
  expert_copies(expert_sizes const& of, std::pmr::memory_resource& memory) : of_(of), memory_(bytes(of), memory) {}

  template <class Engine> void pack(Engine& engine, expert_matrices<Mlp, T> const& from) const {
    std::int64_t const width = products::width(of_.ffn);
    auto const w_down = read_down<Mlp>(from.down);
    std::array<decltype(read_input<Mlp>(from.inputs[0])), inputs> up;
    std::array<decltype(detail::turned(up[0])), inputs> turned;
    for (std::size_t i = 0; i < inputs; ++i) {
      up[i] = read_input<Mlp>(from.inputs[i]);
      turned[i] = detail::turned(up[i]);
      kernels::quantise_matrices(engine, of_.experts, std::array{up[i]}, width, of_.hidden, forward_inputs()[i]);
    }
    kernels::quantise_matrices(engine, of_.experts, std::array{w_down}, of_.hidden, of_.ffn, forward_down()[0]);
    if constexpr (Backward) {
      kernels::quantise_matrices(engine, of_.experts, turned, of_.hidden, width, backward_inputs()[0]);
      kernels::quantise_matrices(engine, of_.experts, std::array{detail::turned(w_down)}, of_.ffn, of_.hidden,
                                 backward_down()[0]);
    }
  }

  std::array<operand, inputs> forward_inputs() const {
    std::array<operand, inputs> all;
    for (std::size_t i = 0; i < inputs; ++i)
      all[i] = at(static_cast<std::int64_t>(i) * bytes_of(of_, up(of_)), up(of_));
    return all;
  }
  std::array<operand, 1> forward_down() const { return {at(after_inputs(), down(of_))}; }
  std::array<operand, 1> backward_inputs() const requires Backward {
    return {at(after_inputs() + bytes_of(of_, down(of_)), up_back(of_))};
  }
  std::array<operand, 1> backward_down() const requires Backward {
    return {at(after_inputs() + bytes_of(of_, down(of_)) + bytes_of(of_, up_back(of_)), down_back(of_))};
  }

 private:
  /// Outputs of a product, and the columns that it sums over.
  struct extents {
    std::int64_t n, columns;
  };
  static constexpr extents up(expert_sizes const& of) { return {products::width(of.ffn), of.hidden}; }
  static constexpr extents down(expert_sizes const& of) { return {of.hidden, of.ffn}; }
  static constexpr extents up_back(expert_sizes const& of) {
    return {of.hidden, products::count * products::width(of.ffn)};
  }
  static constexpr extents down_back(expert_sizes const& of) { return {of.ffn, of.hidden}; }
  static constexpr std::int64_t bytes_of(expert_sizes const& of, extents const& e) {
    return operand::matrix_bytes(of.experts, e.n, e.columns);
  }

  std::int64_t after_inputs() const { return static_cast<std::int64_t>(inputs) * bytes_of(of_, up(of_)); }
  operand at(std::int64_t offset, extents const& e) const {
    return operand::matrices_at(static_cast<std::byte*>(memory_.data()) + offset, of_.experts, e.n, e.columns);
  }

  expert_sizes of_{};
  buffer memory_;
};

template <class Mlp, class T, class Backend, class Scaling, bool Backward>
struct expert_operands<Mlp, T, e4m3_copies<Backend, Scaling, Backward>> {
  expert_matrices<Mlp, T> matrices;
  expert_copies<Mlp, T, e4m3_copies<Backend, Scaling, Backward>> const* copies = nullptr;

  auto forward_inputs() const { return copies->forward_inputs(); }
  auto forward_down() const { return copies->forward_down(); }
  auto backward_inputs() const {
    if constexpr (Backward)
      return copies->backward_inputs();
    else
      return expert_operands<Mlp, T>{matrices}.backward_inputs();
  }
  auto backward_down() const {
    if constexpr (Backward)
      return copies->backward_down();
    else
      return expert_operands<Mlp, T>{matrices}.backward_down();
  }
};

}  // namespace moiety
