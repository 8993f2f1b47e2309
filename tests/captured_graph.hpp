// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <doctest/doctest.h>

namespace testing {

/// The work that f() puts into a stream, as a graph that can be launched.
class captured_graph {
 public:
  template <class F> captured_graph(cudaStream_t stream, F const& f) : stream_(stream) {
    REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    f();
    REQUIRE(cudaStreamEndCapture(stream, &graph_) == cudaSuccess);
    REQUIRE(cudaGraphInstantiate(&run_, graph_, 0) == cudaSuccess);
  }
  captured_graph(captured_graph const&) = delete;
  ~captured_graph() {
    CHECK(cudaGraphExecDestroy(run_) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph_) == cudaSuccess);
  }
  void replay() const { REQUIRE(cudaGraphLaunch(run_, stream_) == cudaSuccess); }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t run_ = nullptr;
};

}  // namespace testing
