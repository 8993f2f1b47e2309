// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/token_gate.cuh>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace mo = moiety;
using testing::device_values;
using testing::same_bits;

TEST_CASE_TEMPLATE("the gate of a token on a device is that of the host", S, float, double) {
  mo::host_engine cpu(mo::host{.threads = 1});
  mo::cuda_engine gpu{mo::cuda{}};
  constexpr std::int64_t tokens = 300, cols = 5;
  std::vector<S> gates, dgates, w{1, 2, 3, 4, 5}, dx;
  std::vector<std::int32_t> positions;
  for (std::int64_t t = 0; t < tokens; ++t) {
    gates.push_back(static_cast<S>(t % 17) - 8), dgates.push_back(static_cast<S>(t % 5) - 2);
    positions.push_back(t % 7 == 0 ? -1 : static_cast<std::int32_t>(t));
    for (std::int64_t c = 0; c < cols; ++c) dx.push_back(static_cast<S>(t + c) / 4);
  }
  device_values<S> gates_there(gates), dgates_there(dgates), dx_there(dx);
  device_values<S> const w_there(w);
  device_values<std::int32_t> positions_there(positions);
  mo::permutation_view const here{tokens, 1, 1, nullptr, nullptr, positions.data()},
      there{tokens, 1, 1, nullptr, nullptr, positions_there.data()};
  mo::kernels::gate_tokens(cpu, tokens, gates.data());
  mo::kernels::gate_tokens(gpu, tokens, gates_there.data());
  mo::kernels::gate_logit_gradients<S>(cpu, here, gates.data(), dgates.data());
  mo::kernels::gate_logit_gradients<S>(gpu, there, gates_there.data(), dgates_there.data());
  mo::kernels::add_gate_inputs<S>(cpu, dgates.data(), w.data(), {dx.data(), tokens, cols});
  mo::kernels::add_gate_inputs<S>(gpu, dgates_there.data(), w_there.data(), {dx_there.data(), tokens, cols});
  CHECK(same_bits(gates, gates_there.host()));
  CHECK(same_bits(dgates, dgates_there.host()));
  CHECK(same_bits(dx, dx_there.host()));
}
