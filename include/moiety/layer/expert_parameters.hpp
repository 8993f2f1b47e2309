// SPDX-License-Identifier: Apache-2.0
// The tensors of one kind of experts, E experts of H hidden and I ffn:
//
//   PREFIX.gate, PREFIX.up             [E × I × H]   gated MLPs have both, plain ones up alone
//   PREFIX.down                        [E × H × I]
//   PREFIX.gate_bias, PREFIX.up_bias   [E × I]       where the MLP is biased
//   PREFIX.down_bias                   [E × H]
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

template <class Mlp, class T> class expert_parameters {
  static constexpr auto inputs = static_cast<std::size_t>(Mlp::inputs);

 public:
  /// Values of one expert: of its matrices, and of its biases.
  static constexpr std::int64_t matrix_values(expert_sizes const& of) { return (Mlp::inputs + 1) * of.hidden * of.ffn; }
  static constexpr std::int64_t bias_values(expert_sizes const& of) {
    return has_biases<Mlp> ? Mlp::inputs * of.ffn + of.hidden : 0;
  }

  /// f(pointer, name, shape, fan in) for each tensor; biases have no fan in.
  template <class Self, class F>
  static void visit(Self& self, std::string const& prefix, expert_sizes const& of, F const& f) {
    using shape = std::vector<std::int64_t>;
    auto const name = [&](std::size_t i, char const* suffix) {
      return prefix + '.' + std::string(Mlp::input_names[i]) + suffix;
    };
    for (std::size_t i = 0; i < inputs; ++i)
      f(self.inputs_[i], name(i, ""), shape{of.experts, of.ffn, of.hidden}, of.hidden);
    f(self.down_, prefix + ".down", shape{of.experts, of.hidden, of.ffn}, of.ffn);
    if constexpr (has_biases<Mlp>) {
      for (std::size_t i = 0; i < inputs; ++i)
        f(self.input_biases_[i], name(i, "_bias"), shape{of.experts, of.ffn}, std::int64_t{0});
      f(self.down_bias_, prefix + ".down_bias", shape{of.experts, of.hidden}, std::int64_t{0});
    }
  }

  expert_matrices<Mlp, T> matrices(expert_sizes const& of) const {
    expert_matrices<Mlp, T> all;
    for (std::size_t i = 0; i < inputs; ++i) {
      all.inputs[i] = {inputs_[i], of.ffn * of.hidden, of.hidden};
      all.input_biases[i] = {input_biases_[i], of.ffn, 1};
    }
    all.down = {down_, of.ffn * of.hidden, of.ffn};
    all.down_bias = {down_bias_, of.hidden, 1};
    return all;
  }

 private:
  std::array<T*, inputs> inputs_{}, input_biases_{};
  T* down_ = nullptr;
  T* down_bias_ = nullptr;
};

}  // namespace moiety::inline MOIETY_ABI::detail
