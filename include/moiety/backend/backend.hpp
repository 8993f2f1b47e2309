// SPDX-License-Identifier: Apache-2.0
// Back ends: what a layer runs on. A deployment names one; a context makes its engine.
//
//   mo::host   <moiety/moiety.hpp>   the CPU, see backend/host.hpp
//   mo::cuda   <moiety/cuda.cuh>     one CUDA device, see backend/cuda.cuh
//
// A back end is a struct of options with the type of its engine, the type of a matrix in its memory, and what it does
// about logits that are not finite unless told. An engine knows its memory, can wait for its work, checks that it can reach
// the memory of a caller, and names ranges for profilers. Kernels are free functions on an engine, one overload for each:
// kernels/*.hpp declare both and say what they compute.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/core/config.hpp>

#include <concepts>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

/// What non-finite logits lead to: an error before anything is written, or a token that is routed as far as it can be.
enum class non_finite { reject, sanitise };

struct host;
class host_engine;
struct cuda;
class cuda_engine;

template <class B>
concept backend = requires(B const options, typename B::engine& engine) {
  typename B::template matrix<float>;
  { B::default_non_finite } -> std::convertible_to<non_finite>;
  { engine.memory() } -> std::convertible_to<arena&>;
  engine.synchronize();
  engine.check_memory("forward", "x", nullptr);
  typename B::engine::range;
};

namespace detail {
/// Whether the header that defines T was included.
template <class T>
concept complete = requires {
  sizeof(T);
};

/// Called by components that read and write their results on the host.
template <class Context> consteval bool check_host() {
  static_assert(std::is_same_v<typename Context::backend, host>,
                "a component by itself runs on mo::host; on mo::cuda it runs inside a layer.");
  return true;
}
}  // namespace detail

}  // namespace moiety
