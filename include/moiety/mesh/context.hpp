// SPDX-License-Identifier: Apache-2.0
// A deployment at run time: the back end's engine, and one communicator for every axis of the layout.
//
//   mo::context<> ctx;                              host, float, one rank
//   mo::context<> ctx{mo::host{.threads = 2}};      options of the back end
//   auto x = ctx.matrix(tokens, hidden);            zeroed, in the deployment's number type, from the context's memory
//
// A context outlives the layers, matrices, weights and tapes that were made with it. It is used by one thread at a time.
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/backend/host.hpp>
#include <moiety/backend/transport/self.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/mesh/layout.hpp>

#include <cstdint>
#include <memory>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// After the sentence about a back end that is missing, the host keeps the compiler quiet.
template <class Backend> consteval bool check_backend() {
  static_assert(!std::is_same_v<Backend, cuda> || complete<Backend>,
                "this deployment names mo::cuda: include <moiety/cuda.cuh>, compiled by nvcc.");
  return true;
}
template <class Deployment> struct backend_of {
  using named = typename Deployment::backend;
  static_assert(check_backend<named>());
  using type = std::conditional_t<complete<named>, named, host>;
};

template <class Element> consteval bool check_element() {
  static_assert(scalar<Element>, "'using element' in a deployment must name float, double, mo::bf16 or mo::fp16.");
  return true;
}

/// The element of a deployment; after the sentence about one that is no number type, float keeps the compiler quiet.
template <class Deployment> struct element_of {
  using named = typename Deployment::element;
  static_assert(check_element<named>());
  using type = std::conditional_t<scalar<named>, named, float>;
};
template <class Deployment> using element_t = typename element_of<Deployment>::type;

}  // namespace detail

template <class Deployment> class context {
 public:
  using deployment = Deployment;
  using backend = typename detail::backend_of<Deployment>::type;
  using engine_type = typename backend::engine;
  using element = detail::element_t<Deployment>;
  using sum = sum_t<element>;
  using communicator = typename Deployment::transport::communicator;

  static_assert(Deployment::shape.world() == 1 || !Deployment::transport::single_rank,
                "this deployment has more than one rank, and its transport mo::self has one.");

  context() : context(backend{}) {}
  explicit context(backend const& options) : engine_(std::make_unique<engine_type>(options)) {}

  engine_type& engine() { return *engine_; }
  auto& memory() { return engine_->memory(); }
  communicator& data() { return data_; }
  void synchronize() { engine_->synchronize(); }

  typename backend::template matrix<element> matrix(std::int64_t rows, std::int64_t cols) {
    return typename backend::template matrix<element>(rows, cols, engine_->memory());
  }

 private:
  std::unique_ptr<engine_type> engine_;
  communicator data_;
};

}  // namespace moiety
