// SPDX-License-Identifier: Apache-2.0
// The tensors of one kind of experts, E experts of H hidden and I ffn:
//
//   PREFIX.gate, PREFIX.up             [E × I × H]    gated MLPs have both, plain ones up alone
//   PREFIX.gate_up                     [E × 2I × H]   in place of both where they are concatenated or interleaved
//   PREFIX.down                        [E × H × I]
//   PREFIX.gate_bias, PREFIX.up_bias   [E × I]        where the MLP is biased; or gate_up_bias [E × 2I]
//   PREFIX.down_bias                   [E × H]
//
// An MLP that is stored in_by_out has the last two axes of its matrices exchanged, and down_in_by_out those of down.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/experts/matrices.hpp>
#include <moiety/experts/mlp.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moiety::inline MOIETY_ABI::detail {

/// One tensor; a bias has no fan in.
struct expert_tensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::int64_t fan_in;
};

template <class Mlp, class T> class expert_parameters {
  using storage = typename storage_of<Mlp>::type;
  static constexpr auto input_tensors = static_cast<std::size_t>(storage::joined ? 1 : Mlp::inputs);

 public:
  /// Values of one expert: of its matrices, and of its biases.
  static constexpr std::int64_t matrix_values(expert_sizes const& of) { return (Mlp::inputs + 1) * of.hidden * of.ffn; }
  static constexpr std::int64_t bias_values(expert_sizes const& of) {
    return has_biases<Mlp> ? Mlp::inputs * of.ffn + of.hidden : 0;
  }

  static std::vector<expert_tensor> tensors(std::string const& prefix, expert_sizes const& of) {
    std::vector<expert_tensor> all;
    auto const matrix = [&](std::string const& name, bool transposed, std::int64_t out, std::int64_t in) {
      all.push_back({name, {of.experts, transposed ? in : out, transposed ? out : in}, in});
    };
    auto const bias = [&](std::string const& name, std::int64_t out) {
      all.push_back({name + "_bias", {of.experts, out}, 0});
    };
    std::int64_t const rows = storage::joined ? Mlp::inputs * of.ffn : of.ffn;
    for (std::size_t i = 0; i < input_tensors; ++i) matrix(name(prefix, i), storage::transposed, rows, of.hidden);
    matrix(prefix + ".down", storage::down_transposed, of.hidden, of.ffn);
    if constexpr (has_biases<Mlp>) {
      for (std::size_t i = 0; i < input_tensors; ++i) bias(name(prefix, i), rows);
      bias(prefix + ".down", of.hidden);
    }
    return all;
  }

  /// f(pointer) for each tensor, in their order.
  template <class Self, class F> static void visit(Self& self, F const& f) {
    for (auto& pointer : self.inputs_) f(pointer);
    f(self.down_);
    if constexpr (has_biases<Mlp>) {
      for (auto& pointer : self.input_biases_) f(pointer);
      f(self.down_bias_);
    }
  }

  expert_matrices<Mlp, T> matrices(expert_sizes const& of) const {
    expert_matrices<Mlp, T> all;
    std::int64_t const rows = storage::joined ? Mlp::inputs * of.ffn : of.ffn;
    for (std::size_t m = 0; m < all.count; ++m) {
      std::int64_t const before = storage::joined ? static_cast<std::int64_t>(m) * of.ffn : 0;  // in the same tensor
      std::size_t const tensor = storage::joined ? 0 : m;
      all.inputs[m] = {inputs_[tensor] + before * (storage::transposed ? 1 : of.hidden), rows * of.hidden,
                       storage::transposed ? rows : of.hidden};
      if constexpr (has_biases<Mlp>) all.input_biases[m] = {input_biases_[tensor] + before, rows, 1};
    }
    all.down = {down_, of.ffn * of.hidden, storage::down_transposed ? of.hidden : of.ffn};
    all.down_bias = {down_bias_, of.hidden, 1};
    return all;
  }

 private:
  static std::string name(std::string const& prefix, std::size_t i) {
    std::string all = prefix + '.' + std::string(Mlp::input_names[i]);
    for (std::size_t j = i + 1; storage::joined && j < Mlp::input_names.size(); ++j)
      all += '_' + std::string(Mlp::input_names[j]);
    return all;
  }

 private:
  std::array<T*, input_tensors> inputs_{}, input_biases_{};
  T* down_ = nullptr;
  T* down_bias_ = nullptr;
};

}  // namespace moiety::inline MOIETY_ABI::detail
