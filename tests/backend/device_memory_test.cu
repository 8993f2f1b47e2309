// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/device_memory.cuh>

#include <moiety/backend/cuda.cuh>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

/// No part of a store looks like another.
void fill(std::vector<unsigned char>& values, std::int64_t first) {
  for (unsigned char& value : values) value = static_cast<unsigned char>(first++ % 251);
}

}  // namespace

TEST_CASE("stores of any size, zeros and loads happen in the order of the stream") {
  mo::cuda_engine engine{mo::cuda{}};
  for (std::int64_t const count : {1, 100, 2048, 5000, 16384, 100000}) {
    CAPTURE(count);
    mo::buffer const block(count, engine.memory());
    std::vector<unsigned char> values(static_cast<std::size_t>(count)), copy(values.size());
    fill(values, count);
    auto const wanted = values;
    engine.memory().store(block.data(), values.data(), count);
    std::fill(values.begin(), values.end(), static_cast<unsigned char>(7));  // the source is free when the call returns
    engine.memory().load(copy.data(), block.data(), count);
    CHECK(copy == wanted);
    engine.memory().zero(block.data(), count / 2);
    engine.memory().load(copy.data(), block.data(), count);
    CHECK(std::accumulate(copy.begin(), copy.begin() + count / 2, 0) == 0);
    CHECK(std::equal(copy.begin() + count / 2, copy.end(), wanted.begin() + count / 2));
  }
}

TEST_CASE("a freed block serves the next request; blocks that nobody could have are cuda errors") {
  mo::cuda_engine engine{mo::cuda{}};
  void* const first = engine.memory().allocate(1 << 20, 64);
  engine.memory().deallocate(first, 1 << 20, 64);
  CHECK(engine.memory().allocate(1 << 20, 64) == first);
  engine.memory().deallocate(first, 1 << 20, 64);
  CHECK_THROWS_WITH_AS(mo::buffer(std::int64_t{1} << 50, engine.memory()),
                       "out of memory: 1125899906842624 bytes of device memory could not be allocated: out of memory "
                       "(cudaErrorMemoryAllocation).",
                       mo::cuda_error);
  CHECK_NOTHROW(engine.synchronize());
}

namespace {

/// What `work` puts into the engine's stream, as a graph; null where it threw.
template <class Function> cudaGraph_t captured(mo::cuda_engine& engine, std::string& said, Function const& work) {
  cudaGraph_t graph = nullptr;
  REQUIRE(cudaStreamBeginCapture(engine.stream(), cudaStreamCaptureModeGlobal) == cudaSuccess);
  try {
    work();
  } catch (mo::cuda_error const& e) {
    said = e.what();
  }
  static_cast<void>(cudaStreamEndCapture(engine.stream(), &graph));
  static_cast<void>(cudaGetLastError());
  return graph;
}

}  // namespace

TEST_CASE("a graph's capture is given no new memory") {
  mo::cuda_engine engine{mo::cuda{}};
  std::string said;
  cudaGraph_t const graph = captured(engine, said, [&] { mo::buffer const block(1 << 20, engine.memory()); });
  if (graph != nullptr) CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK(
      said ==
      "a call that is captured into a graph asked for 1048576 bytes of device memory: make the call once before it is "
      "captured.");
}

TEST_CASE("a graph keeps the values of a store, whatever becomes of their source") {
  mo::cuda_engine engine{mo::cuda{}};
  mo::buffer const block(5000, engine.memory());
  std::vector<unsigned char> values(5000), copy(5000);
  fill(values, 3);
  auto const wanted = values;
  std::string said;
  cudaGraph_t const graph = captured(engine, said, [&] { engine.memory().store(block.data(), values.data(), 5000); });
  CHECK(said.empty());
  REQUIRE(graph != nullptr);
  std::fill(values.begin(), values.end(), static_cast<unsigned char>(7));
  cudaGraphExec_t run = nullptr;
  REQUIRE(cudaGraphInstantiate(&run, graph, 0) == cudaSuccess);
  REQUIRE(cudaGraphLaunch(run, engine.stream()) == cudaSuccess);
  engine.memory().load(copy.data(), block.data(), 5000);
  CHECK(copy == wanted);
  CHECK(cudaGraphExecDestroy(run) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
}
