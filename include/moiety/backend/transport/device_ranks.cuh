// SPDX-License-Identifier: Apache-2.0
// The ranks of a context on mo::cuda: their rows lie in device memory, all that they tell each other beside in the host's.
//
//   start, finish      rows of device memory, from and to any place there; indices lie in device memory too
//   all other calls    values and messages of host memory, as in communicator.hpp
//
// start waits for the work of the context's stream, so that what is sent is there; finish copies with a kernel in the stream of
// the rank that receives, and waits for it. So neither can be captured into a graph. The ranks are threads of this process that
// share a device, each with a stream of its own; for others see nccl_ranks.cuh.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/backend/device_rows.cuh>
#include <moiety/backend/transport/communicator.hpp>
#include <moiety/core/config.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <utility>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// Whether the caller can say how rows are copied.
struct any_copy {
  void operator()(outgoing_rows const&, incoming_rows const&) const;
};
template <class C>
concept copies_as_told = requires(C& c, typename C::request& begun, any_copy const& copy) {
  c.finish(std::move(begun), copy);
};

}  // namespace detail

template <class C> class device_ranks : public C {
  static_assert(detail::copies_as_told<C>,
                "rows of device memory travel over mo::threads, or over mo::nccl where "
                "<moiety/backend/transport/nccl_ranks.cuh> is included.");

 public:
  using typename C::request;

  /// The engine outlives its ranks.
  device_ranks(cuda_engine& engine, C const& ranks) : C(ranks), engine_(&engine) {}

  request start(rank_operation const& what, std::span<outgoing_rows const> to, std::span<incoming_rows const> from) {
    engine_->settle();
    return C::start(what, to, from);
  }

  using C::finish;
  void finish(request&& which) {
    C::finish(std::move(which), [this](outgoing_rows const& from, incoming_rows const& to) {
      detail::copy_rows(*engine_, from, to);
      engine_->settle();
    });
  }

  /// Whose kernels rows are for.
  cuda_engine& engine() const { return *engine_; }

  device_ranks split(int colour, int key, std::string const& name) { return {*engine_, C::split(colour, key, name)}; }

 private:
  cuda_engine* engine_;
};

}  // namespace moiety
