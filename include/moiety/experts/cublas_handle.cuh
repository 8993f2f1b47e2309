// SPDX-License-Identifier: Apache-2.0
// Products of row-major matrices by cuBLAS, on the stream of an engine. Sums are of type sum_t<T>, alpha is 1.
//
//   nt   C [m × n] = A [m × k] · B [n × k]ᵀ
//   nn   C [m × n] (+)= A [m × k] · B [k × n]
//   tn   C [m × n] (+)= A [k × m]ᵀ · B [k × n]         zeros, or what was there, for k = 0
//
// cuBLAS counts columns first: it is asked for the transposed product. Throws cuda_error.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/numbers.hpp>

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <type_traits>

namespace moiety::inline MOIETY_ABI::detail {

inline void expect(cublasStatus_t status, char const* what) {
  require<cuda_error>(status == CUBLAS_STATUS_SUCCESS, what, ": ", cublasGetStatusName(status), '.');
}

/// The handle of this thread for a device, which is the current one.
inline cublasHandle_t cublas_handle(int device) {
  struct destroy {
    void operator()(cublasHandle_t handle) const { static_cast<void>(cublasDestroy(handle)); }
  };
  using owner = std::unique_ptr<std::remove_pointer_t<cublasHandle_t>, destroy>;
  thread_local std::map<int, owner> handles;
  owner& known = handles[device];
  if (!known) {
    cublasHandle_t made = nullptr;
    expect(cublasCreate(&made), "making a handle of cuBLAS");
    known.reset(made);
    auto const sums_in_full =
        static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
    expect(cublasSetMathMode(made, sums_in_full), "setting up cuBLAS");
  }
  return known.get();
}

template <class T> constexpr cudaDataType_t cublas_type() {
  if constexpr (std::same_as<T, bf16>)
    return CUDA_R_16BF;
  else if constexpr (std::same_as<T, fp16>)
    return CUDA_R_16F;
  else if constexpr (std::same_as<T, float>)
    return CUDA_R_32F;
  else
    return CUDA_R_64F;
}

/// A row-major matrix of a product, and the product's sizes.
template <class T> struct cublas_operand {
  T* data;
  std::int64_t stride;
};
struct cublas_sizes {
  std::int64_t m, n, k;
};

class cublas_stream {
 public:
  explicit cublas_stream(cuda_engine& engine) : engine_(engine) {}

  template <class T, class C>
  void nt(cublas_sizes const& of, cublas_operand<T const> a, cublas_operand<T const> b, cublas_operand<C> c) const {
    multiply<T>(CUBLAS_OP_T, CUBLAS_OP_N, of, b, a, c, false);
  }
  template <class T, class C>
  void nn(cublas_sizes const& of, cublas_operand<T const> a, cublas_operand<T const> b, cublas_operand<C> c,
          bool accumulate) const {
    multiply<T>(CUBLAS_OP_N, CUBLAS_OP_N, of, b, a, c, accumulate);
  }
  template <class T>
  void tn(cublas_sizes const& of, cublas_operand<T const> a, cublas_operand<T const> b, cublas_operand<sum_t<T>> c,
          bool accumulate) const {
    if (of.k > 0) return multiply<T>(CUBLAS_OP_N, CUBLAS_OP_T, of, b, a, c, accumulate);
    if (accumulate) return;
    device_scope const scope(engine_.device());
    auto const bytes = [](std::int64_t count) { return static_cast<std::size_t>(count) * sizeof(sum_t<T>); };
    expect(cudaMemset2DAsync(c.data, bytes(c.stride), 0, bytes(of.n), static_cast<std::size_t>(of.m), engine_.stream()),
           "zeroing memory");
  }

 private:
  template <class T, class C>
  void multiply(cublasOperation_t left, cublasOperation_t right, cublas_sizes const& of, cublas_operand<T const> b,
                cublas_operand<T const> a, cublas_operand<C> c, bool accumulate) const {
    using S = sum_t<T>;
    if (of.m == 0 || of.n == 0) return;
    device_scope const scope(engine_.device());
    cublasHandle_t const handle = cublas_handle(engine_.device());
    expect(cublasSetStream(handle, engine_.stream()), "giving cuBLAS a stream");
    S const one = 1, before = accumulate ? S{1} : S{0};
    constexpr auto compute = std::same_as<S, double> ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
    expect(cublasGemmEx(handle, left, right, static_cast<int>(of.n), static_cast<int>(of.m), static_cast<int>(of.k),
                        &one, b.data, cublas_type<T>(), static_cast<int>(b.stride), a.data, cublas_type<T>(),
                        static_cast<int>(a.stride), &before, c.data, cublas_type<C>(), static_cast<int>(c.stride),
                        compute, CUBLAS_GEMM_DEFAULT),
           "a product of cuBLAS");
  }

  cuda_engine& engine_;
};

}  // namespace moiety::inline MOIETY_ABI::detail
