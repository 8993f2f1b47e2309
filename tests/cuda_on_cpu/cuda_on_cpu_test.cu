// SPDX-License-Identifier: Apache-2.0
// The CPU run itself: what kernels see, what the host sees, and that mistakes are told.
#include <cuda_runtime.h>

#include <doctest/doctest.h>
#include <cuda_on_cpu/last_words.hpp>

#include <cstring>
#include <numeric>
#include <set>
#include <string>
#include <vector>

namespace emulator_tests {

/// Device memory that is read and written by copies.
template <class T> struct buffer {
  T* data = nullptr;
  std::size_t count;
  explicit buffer(std::size_t n) : count(n) { REQUIRE(cudaMalloc(&data, n * sizeof(T)) == cudaSuccess); }
  explicit buffer(std::vector<T> const& values) : buffer(values.size()) {
    REQUIRE(cudaMemcpy(data, values.data(), count * sizeof(T), cudaMemcpyHostToDevice) == cudaSuccess);
  }
  buffer(buffer const&) = delete;
  ~buffer() { cudaFree(data); }
  std::vector<T> read() const {
    std::vector<T> values(count);
    REQUIRE(cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
    return values;
  }
};

/// What a kernel of one block that fills `count` numbers leaves there.
template <class T, class... A>
std::vector<T> run(void (*kernel)(T*, A...), std::size_t count, dim3 block, std::size_t shared,
                   std::type_identity_t<A>... more) {
  buffer<T> out(count);
  REQUIRE(launch(kernel, 1, block, shared, nullptr, out.data, more...) == cudaSuccess);
  return out.read();
}

template <class... P, class... A> std::string fate(void (*kernel)(P...), dim3 block, A... arguments) {
  return last_words([=] {
    launch(kernel, 1, block, 0, nullptr, arguments...);
    cudaDeviceSynchronize();
  });
}
__global__ void shuffles(long long* out) {
  int const lane = static_cast<int>(threadIdx.x % 32);
  double const value = 100 + lane;
  long long* const mine = out + threadIdx.x * 8;
  mine[0] = static_cast<long long>(__shfl_sync(~0u, value, 5));
  mine[1] = static_cast<long long>(__shfl_sync(~0u, value, lane + 1, 8));
  mine[2] = static_cast<long long>(__shfl_xor_sync(~0u, static_cast<float>(value), 16));
  mine[3] = __shfl_xor_sync(~0u, lane, 8, 4);
  mine[4] = __shfl_up_sync(~0u, lane, 3);
  mine[5] = __shfl_up_sync(~0u, lane, 1, 4);
  mine[6] = __shfl_down_sync(~0u, static_cast<long long>(lane), 30);
  mine[7] = lane < 8 ? __shfl_down_sync(0xff, lane, 1, 8) : -1;
}

TEST_CASE("shuffles read the lanes they name; what lies outside the segment stays") {
  for (unsigned seed = 0; seed < 4; ++seed) {
    fresh const state;
    knobs.seed = seed;
    std::vector<long long> const out = run(shuffles, 64 * 8, 64, 0);
    for (int thread = 0; thread < 64; ++thread) {
      int const lane = thread % 32;
      long long const* mine = &out[static_cast<std::size_t>(thread) * 8];
      CHECK(mine[0] == 105);
      CHECK(mine[1] == 100 + (lane & ~7) + (lane + 1) % 8);
      CHECK(mine[2] == 100 + (lane ^ 16));
      CHECK(mine[3] == (lane & 8 ? lane ^ 8 : lane));
      CHECK(mine[4] == (lane < 3 ? lane : lane - 3));
      CHECK(mine[5] == (lane % 4 == 0 ? lane : lane - 1));
      CHECK(mine[6] == (lane < 2 ? lane + 30 : lane));
      CHECK(mine[7] == (lane < 7 ? lane + 1 : lane == 7 ? 7 : -1));
    }
  }
}

__global__ void votes(unsigned* out) {
  unsigned const lane = threadIdx.x;
  unsigned* const mine = out + lane * 10;
  unsigned const odd = 0xaaaaaaaau;
  mine[0] = __ballot_sync(~0u, lane % 3 == 0);
  mine[1] = lane % 2 ? __ballot_sync(odd, lane > 15) : __ballot_sync(~odd, 1);
  mine[2] = static_cast<unsigned>(__any_sync(~0u, lane == 9) + 2 * __all_sync(~0u, lane != 9));
  mine[3] = __match_any_sync(~0u, static_cast<int>(lane % 5));
  mine[4] = __reduce_add_sync(~0u, lane);
  mine[5] = static_cast<unsigned>(__reduce_min_sync(~0u, static_cast<int>(lane) - 7));
  mine[6] = __reduce_max_sync(~0u, lane * 2);
  int all[32] = {};
  cuda_on_cpu::warp_exchange(~0u, static_cast<int>(lane * lane), all);
  mine[7] = static_cast<unsigned>(all[31] + all[2]);
  mine[8] = static_cast<unsigned>(__syncthreads_count(lane < 11));
  mine[9] = static_cast<unsigned>(__syncthreads_or(lane == 50));
}

TEST_CASE("votes, matches, reductions and exchanges see every lane of their mask") {
  fresh const state;
  std::vector<unsigned> const out = run(votes, 320, 32, 0);
  for (unsigned lane = 0; lane < 32; ++lane) {
    unsigned const* mine = &out[lane * 10];
    CHECK(mine[0] == 0x49249249u);
    CHECK(mine[1] == (lane % 2 ? 0xaaaa0000u : 0x55555555u));
    CHECK(mine[2] == 1);
    unsigned same = 0;
    for (unsigned i = lane % 5; i < 32; i += 5) same |= 1u << i;
    CHECK(mine[3] == same);
    CHECK(mine[4] == 496);
    CHECK(static_cast<int>(mine[5]) == -7);
    CHECK(mine[6] == 62);
    CHECK(mine[7] == 965);
    CHECK(mine[8] == 11);
    CHECK(mine[9] == 0);
  }
}

__global__ void histogram(int const* values, int count, int* bins, int* largest) {
  __shared__ int own[16];
  if (threadIdx.x < 16) own[threadIdx.x] = 0;
  __syncthreads();
  for (auto i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < count;
       i += static_cast<int>(gridDim.x * blockDim.x)) {
    atomicAdd(&own[values[i]], 1);
    atomicMax(largest, i);
  }
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&bins[threadIdx.x], own[threadIdx.x]);
}

TEST_CASE("a histogram by atomics over many blocks") {
  fresh const state;
  std::vector<int> values(5000), expected(16, 0);
  for (std::size_t i = 0; i < values.size(); ++i)
    ++expected[static_cast<std::size_t>(values[i] = static_cast<int>(i * i % 16))];
  buffer<int> const in(values), bins(16), largest(1);
  CHECK(cudaMemset(bins.data, 0, 64) == cudaSuccess);
  CHECK(cudaMemset(largest.data, 0, 4) == cudaSuccess);
  CHECK(launch(histogram, 7, 96, 0, nullptr, in.data, 5000, bins.data, largest.data) == cudaSuccess);
  CHECK(bins.read() == expected);
  CHECK(largest.read()[0] == 4999);
}

__global__ void matmul(float* c, float const* a, float const* b, int n) {
  auto* const tile_a = reinterpret_cast<float*>(cuda_on_cpu::dynamic_shared());
  float* const tile_b = tile_a + 256;
  int const x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  int const row = static_cast<int>(blockIdx.y) * 16 + y, col = static_cast<int>(blockIdx.x) * 16 + x;
  float sum = 0;
  for (int k = 0; k < n; k += 16) {
    tile_a[y * 16 + x] = a[row * n + k + x];
    tile_b[y * 16 + x] = b[(k + y) * n + col];
    __syncthreads();
    for (int i = 0; i < 16; ++i) sum += tile_a[y * 16 + i] * tile_b[i * 16 + x];
    __syncthreads();
  }
  c[row * n + col] = sum;
}

TEST_CASE("a tiled product through dynamic shared memory") {
  fresh const state;
  constexpr int n = 48;
  std::vector<float> a(n * n), b(n * n);
  for (int i = 0; i < n * n; ++i)
    a[static_cast<std::size_t>(i)] = static_cast<float>(i % 7),
    b[static_cast<std::size_t>(i)] = static_cast<float>(i % 5);
  buffer<float> const da(a), db(b), dc(n * n);
  CHECK(launch(matmul, {3, 3}, {16, 16}, 2048, nullptr, dc.data, da.data, db.data, n) == cudaSuccess);
  auto const c = dc.read();
  for (std::size_t row = 0; row < n; ++row)
    for (std::size_t col = 0; col < n; ++col) {
      float sum = 0;
      for (std::size_t k = 0; k < n; ++k) sum += a[row * n + k] * b[k * n + col];
      REQUIRE(c[row * n + col] == sum);
    }
}

__global__ void bits(unsigned* out) {
  out[0] = static_cast<unsigned>(__popc(0xf0f0u) + 100 * __popcll(~0ull));
  out[1] = static_cast<unsigned>(__ffs(8) + 100 * __clz(1) + 10000 * __ffs(0));
  out[2] = __brev(0x1u) | __brev(0x80000000u);
  out[3] = __float_as_uint(__uint_as_float(0x7fc00001u));
  unsigned word = 3;
  out[4] = atomicCAS(&word, 3u, 9u) * 100 + atomicExch(&word, 4u) * 10 + word;
  out[5] = atomicMin(&word, 2u) * 10 + word;
  auto const v = make_uint4(1, 2, 3, 4);
  out[6] = v.x + 10 * v.y + 100 * v.z + 1000 * v.w + (alignof(uint4) == 16 && sizeof(float2) == 8 ? 0 : 10000);
}

TEST_CASE("bits, atomics and vectors") {
  fresh const state;
  CHECK(run(bits, 7, 1, 0) == std::vector<unsigned>{6408, 3104, 0x80000001u, 0x7fc00001u, 394, 42, 4321});
}

__global__ void arrivals(int* out, int* next) {
  int const mine = atomicAdd(next, 1);
  out[mine] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

TEST_CASE("the seed draws the order of blocks and lanes; 0 is the natural order, and every launch draws anew") {
  fresh const state;
  auto const order = [](std::uint64_t seed) {
    knobs.seed = seed;
    buffer<int> out(6 * 64), next(std::vector<int>{0});
    CHECK(launch(arrivals, 6, 64, 0, nullptr, out.data, next.data) == cudaSuccess);
    return out.read();
  };
  std::vector<int> natural(6 * 64);
  std::iota(natural.begin(), natural.end(), 0);
  CHECK(order(0) == natural);
  std::set<std::vector<int>> different;
  for (std::uint64_t seed : {1u, 1u, 2u, 3u}) {
    auto found = order(seed);
    different.insert(found);
    std::sort(found.begin(), found.end());
    CHECK(found == natural);
  }
  CHECK(different.size() == 4);
}

template <bool Synchronised> __global__ void reversed(int* out) {
  __shared__ int values[64];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (Synchronised) __syncthreads();
  out[threadIdx.x] = values[63 - threadIdx.x];
  __syncthreads();
  values[threadIdx.x] = -1;
}

TEST_CASE("a missing barrier shows in the order of some lanes") {
  fresh const state;
  std::vector<int> expected(64);
  for (int i = 0; i < 64; ++i) expected[static_cast<std::size_t>(i)] = 63 - i;
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    knobs.seed = seed;
    run(reversed<true>, 64, 64, 0);
    CHECK(run(reversed<true>, 64, 64, 0) == expected);
    CHECK(run(reversed<false>, 64, 64, 0) != expected);
  }
}

__global__ void poison(unsigned* out) {
  auto* const shared = reinterpret_cast<unsigned*>(cuda_on_cpu::dynamic_shared());
  out[blockIdx.x] = shared[threadIdx.x] & out[blockIdx.x];
  shared[threadIdx.x] = 0;
}

TEST_CASE("new device memory and dynamic shared memory of every block begin as NaN") {
  fresh const state;
  buffer<unsigned> out(5);
  CHECK(launch(poison, 5, 1, 4, nullptr, out.data) == cudaSuccess);
  CHECK(out.read() == std::vector<unsigned>(5, ~0u));
}

__global__ void half_barrier() {
  if (threadIdx.x < 40) __syncthreads();
}
__global__ void early_end() {
  if (threadIdx.x != 3) __syncwarp();
}
__global__ void two_masks() { __shfl_sync(threadIdx.x < 2 ? 0x3u : 0xeu, 1, 0); }
__global__ void foreign_mask() { __syncwarp(1u << 31); }
__global__ void outside(int source) {
  if (threadIdx.x < 16) __shfl_sync(0xffffu, 1, source);
}
__global__ void two_functions() {
  if (threadIdx.x % 2)
    __syncwarp();
  else
    __ballot_sync(~0u, 1);
}
__global__ void two_barriers() {
  if (threadIdx.x % 2)
    __syncthreads();
  else
    __syncthreads_or(1);
}
__global__ void narrow() { __shfl_xor_sync(~0u, 1, 1, 12); }
__global__ void trapped() {
  if (threadIdx.x == 6) __trap();
}

TEST_CASE("what would hang or be undefined ends with a sentence") {
  fresh const state;
  knobs.seed = 0;
  CHECK(contains(fate(half_barrier, 64),
                 "kernel emulator_tests::half_barrier(), block (0, 0, 0), thread (0, 0, 0): deadlock: it waits at the "
                 "barrier of the block for thread (40, 0, 0), which has ended.\n"));
  CHECK(contains(fate(early_end, 32),
                 "thread (0, 0, 0): deadlock: it waits in a warp function of lanes 0xffffffff for "
                 "thread (3, 0, 0), which has ended."));
  CHECK(contains(fate(two_masks, 4),
                 "thread (2, 0, 0): deadlock: it waits in a warp function of lanes 0x0000000e for "
                 "thread (1, 0, 0), which has ended."));
  CHECK(contains(fate(foreign_mask, 32), "it calls a warp function whose lanes 0x80000000 leave out its own."));
  CHECK(contains(fate(early_end, 16), "lanes 0xffffffff, but its warp has only 0x0000ffff."));
  CHECK(contains(fate(outside, 32, 20), "it shuffles from lane 20, which the mask leaves out."));
  CHECK(fate(outside, 32, 15) == "");
  CHECK(contains(fate(two_functions, 32), "meets it in another warp function."));
  CHECK(contains(fate(two_barriers, 32), "is at another kind of barrier."));
  CHECK(contains(fate(narrow, 32), "it shuffles among 12 lanes, which is no power of two up to 32."));
  CHECK(contains(fate(trapped, 32), "thread (6, 0, 0): it calls __trap()."));
}

__global__ void add(int* at, int value) {
  if (threadIdx.x == 0) at[blockIdx.x] += value;
}
__global__ void overrun(int offset) { cuda_on_cpu::dynamic_shared()[offset] = std::byte{1}; }

TEST_CASE("host code cannot touch device memory, and kernels no more than they own") {
  fresh const state;
  buffer<int> const memory(std::vector<int>{1, 2, 3});
  CHECK(last_words([&] { static_cast<void>(*static_cast<int volatile*>(memory.data)); }) != "");
  CHECK(memory.read() == std::vector<int>{1, 2, 3});
#if defined(CUDA_ON_CPU_ASAN)
  CHECK(contains(fate(add, {32}, memory.data + 3, 1), "use-after-poison"));
  CHECK(contains(fate(add, {32}, memory.data - 1, 1), "use-after-poison"));
  int* freed = nullptr;
  CHECK(cudaMalloc(&freed, 64) == cudaSuccess);
  CHECK(cudaFree(freed) == cudaSuccess);
  CHECK(contains(fate(add, {32}, freed, 1), "use-after-poison"));
  auto const shared = [](int offset) {
    return last_words([=] {
      launch(overrun, 1, 1, 24, nullptr, offset);
      cudaDeviceSynchronize();
    });
  };
  CHECK(shared(23) == "");
  CHECK(contains(shared(24), "heap-buffer-overflow"));
  CHECK(contains(shared(24), "cuda_on_cpu_test.cu"));
#endif
}

TEST_CASE("launches, copies and memsets wait until somebody waits for them") {
  fresh const state;
  cudaStream_t stream = nullptr;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  int *device = nullptr, *pinned = nullptr;
  CHECK(cudaMallocAsync(&device, 8, stream) == cudaSuccess);
  CHECK(cudaMallocHost(&pinned, 8) == cudaSuccess);
  pinned[0] = pinned[1] = -5;

  int start[2] = {3, 4};
  CHECK(cudaMemcpyAsync(device, start, 8, cudaMemcpyHostToDevice, stream) == cudaSuccess);
  start[0] = 100;  // was staged
  int amount = 10;
  CHECK(launch(add, 2, 32, 0, stream, device, amount) == cudaSuccess);
  amount = 1000;  // was copied
  CHECK(cudaMemcpyAsync(pinned, device, 8, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  CHECK(counters.launches == 0);
  CHECK(pinned[0] == -5);
  CHECK(cudaStreamQuery(stream) == cudaErrorNotReady);
  CHECK(pinned[0] == -5);
  CHECK(counters.synchronisations == 0);
  CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(cudaStreamQuery(stream) == cudaSuccess);
  CHECK(pinned[0] == 13);
  CHECK(pinned[1] == 14);
  CHECK(counters.launches == 1);
  CHECK(cuda_on_cpu::launches_of("emulator_tests::add") == 1);
  CHECK(counters.synchronisations == 1);

  int pageable[2] = {};
  CHECK(cudaMemsetAsync(device, 0, 4, stream) == cudaSuccess);
  CHECK(cudaMemcpyAsync(pageable, device, 8, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  CHECK(pageable[0] == 0);
  CHECK(pageable[1] == 14);
  CHECK(counters.synchronisations == 2);

  CHECK(cudaFreeAsync(device, stream) == cudaSuccess);
  CHECK(counters.bytes == 8);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
  CHECK(counters.bytes == 0);
  CHECK(cudaStreamSynchronize(stream) == cudaErrorInvalidResourceHandle);
  CHECK(cudaFreeHost(pinned) == cudaSuccess);
}

TEST_CASE("streams are ordered by events and by the legacy stream, and by nothing else") {
  fresh const state;
  buffer<int> const memory(std::vector<int>{0});
  cudaStream_t first = nullptr, second = nullptr, blocking = nullptr;
  cudaEvent_t event = nullptr, later = nullptr;
  CHECK(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(cudaStreamCreate(&blocking) == cudaSuccess);
  CHECK(cudaEventCreate(&event) == cudaSuccess);
  CHECK(cudaEventCreate(&later) == cudaSuccess);

  launch(add, 1, 32, 0, first, memory.data, 1);
  CHECK(cudaStreamSynchronize(second) == cudaSuccess);
  CHECK(memory.read()[0] == 0);  // not even cudaMemcpy waits for a non-blocking stream
  CHECK(cudaEventRecord(event, first) == cudaSuccess);
  launch(add, 1, 32, 0, first, memory.data, 10);
  CHECK(cudaEventRecord(later, first) == cudaSuccess);
  CHECK(cudaStreamWaitEvent(second, event) == cudaSuccess);
  CHECK(cudaStreamSynchronize(second) == cudaSuccess);
  CHECK(memory.read()[0] == 1);
  float time = -1;
  CHECK(cudaEventElapsedTime(&time, event, later) == cudaErrorNotReady);
  CHECK(cudaEventQuery(later) == cudaErrorNotReady);
  CHECK(cudaEventSynchronize(later) == cudaSuccess);
  CHECK(cudaEventElapsedTime(&time, event, later) == cudaSuccess);
  CHECK(time >= 0);
  CHECK(memory.read()[0] == 11);
  launch(add, 1, 32, 0, blocking, memory.data, 100);
  launch(add, 1, 32, 0, cudaStreamLegacy, memory.data, 1000);
  CHECK(memory.read()[0] == 1111);
  for (cudaStream_t stream : {first, second, blocking}) CHECK(cudaStreamDestroy(stream) == cudaSuccess);
  for (cudaEvent_t e : {event, later}) CHECK(cudaEventDestroy(e) == cudaSuccess);
}

TEST_CASE("a graph replays what was captured") {
  fresh const state;
  buffer<int> const memory(std::vector<int>{0, 0});
  cudaStream_t stream = nullptr, side = nullptr;
  cudaEvent_t event = nullptr;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(cudaEventCreate(&event) == cudaSuccess);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cudaStreamCaptureStatus status{};

  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  CHECK(cudaStreamIsCapturing(stream, &status) == cudaSuccess);
  CHECK(status == cudaStreamCaptureStatusActive);
  CHECK(launch(add, 2, 32, 0, stream, memory.data, 3) == cudaSuccess);
  CHECK(cudaEventRecord(event, stream) == cudaSuccess);
  CHECK(cudaStreamWaitEvent(side, event) == cudaSuccess);
  CHECK(launch(add, 1, 32, 0, side, memory.data, 4) == cudaSuccess);
  CHECK(cudaEventRecord(event, side) == cudaSuccess);
  CHECK(cudaStreamWaitEvent(stream, event) == cudaSuccess);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  CHECK(cudaStreamIsCapturing(side, &status) == cudaSuccess);
  CHECK(status == cudaStreamCaptureStatusNone);
  CHECK(cudaGraphInstantiate(&executable, graph) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(counters.launches == 0);
  for (int i = 0; i < 3; ++i) CHECK(cudaGraphLaunch(executable, stream) == cudaSuccess);
  CHECK(counters.launches == 0);
  CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(memory.read() == std::vector<int>{21, 9});
  CHECK(counters.launches == 6);
  CHECK(cudaGraphExecDestroy(executable) == cudaSuccess);

  int* more = nullptr;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  CHECK(cudaMalloc(&more, 4) == cudaErrorStreamCaptureUnsupported);
  CHECK(launch(add, 2, 32, 0, stream, memory.data, 3) == cudaErrorStreamCaptureInvalidated);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
  CHECK(graph == nullptr);
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed) == cudaSuccess);
  CHECK(cudaMalloc(&more, 4) == cudaSuccess);
  CHECK(cudaFree(more) == cudaSuccess);
  CHECK(cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureUnmatched);
  for (cudaStream_t s : {stream, side}) CHECK(cudaStreamDestroy(s) == cudaSuccess);
  CHECK(cudaEventDestroy(event) == cudaSuccess);
}

TEST_CASE("memory runs out, is found again, and pointers tell what they are") {
  fresh const state;
  knobs.device_bytes = counters.bytes + 1000;
  void *first = nullptr, *second = nullptr, *pinned = nullptr;
  CHECK(cudaMalloc(&first, 600) == cudaSuccess);
  CHECK(cudaMalloc(&second, 600) == cudaErrorMemoryAllocation);
  CHECK(second == nullptr);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(cudaFreeAsync(first, nullptr) == cudaSuccess);
  CHECK(cudaMallocAsync(&second, 600, nullptr) == cudaSuccess);  // waits for the free
  CHECK(counters.peak - counters.bytes == 0);
  CHECK(counters.allocations == 2);

  cudaPointerAttributes attributes{};
  CHECK(cudaPointerGetAttributes(&attributes, static_cast<std::byte*>(second) + 100) == cudaSuccess);
  CHECK(attributes.type == cudaMemoryTypeDevice);
  CHECK(cudaHostAlloc(&pinned, 10, cudaHostAllocDefault) == cudaSuccess);
  CHECK(cudaPointerGetAttributes(&attributes, pinned) == cudaSuccess);
  CHECK(attributes.type == cudaMemoryTypeHost);
  CHECK(cudaFreeHost(pinned) == cudaSuccess);
  CHECK(cudaPointerGetAttributes(&attributes, &attributes) == cudaSuccess);
  CHECK(attributes.type == cudaMemoryTypeUnregistered);
  char host[601];
  CHECK(cudaMemcpy(host, second, 601, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  CHECK(cudaMemcpy(host, second, 600, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(cudaMemcpy(host, second, 600, cudaMemcpyDefault) == cudaSuccess);
  CHECK(cudaFree(host) == cudaErrorInvalidValue);
  CHECK(cudaFree(second) == cudaSuccess);
}

TEST_CASE("devices, launches and errors are what the test asks for") {
  fresh const state;
  int count = -1, value = 0;
  knobs.devices = 0;
  CHECK(cudaGetDeviceCount(&count) == cudaErrorNoDevice);
  CHECK(count == 0);
  CHECK(cudaDeviceSynchronize() == cudaErrorNoDevice);
  cuda_on_cpu::reset();
  CHECK(cudaSetDevice(1) == cudaErrorInvalidDevice);
  knobs.compute_major = 8;
  CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess);
  CHECK(value == 8);

  buffer<int> const memory(std::vector<int>{0});
  CHECK(launch(add, 0, 32, 0, nullptr, memory.data, 1) == cudaErrorInvalidConfiguration);
  CHECK(launch(add, 1, 1025, 0, nullptr, memory.data, 1) == cudaErrorInvalidConfiguration);
  CHECK(launch(add, {1, 65536}, 32, 0, nullptr, memory.data, 1) == cudaErrorInvalidConfiguration);
  CHECK(launch(add, 1, 32, 50000, nullptr, memory.data, 1) == cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(add, cudaFuncAttributeMaxDynamicSharedMemorySize, 50000) == cudaSuccess);
  CHECK(launch(add, 1, 32, 50000, nullptr, memory.data, 1) == cudaSuccess);
  CHECK(cudaFuncSetAttribute(add, cudaFuncAttributeMaxDynamicSharedMemorySize, 300000) == cudaErrorInvalidValue);
  knobs.next_launch = cudaErrorLaunchOutOfResources;
  CHECK(launch(add, 1, 32, 0, nullptr, memory.data, 1) == cudaErrorLaunchOutOfResources);
  CHECK(launch(add, 1, 32, 0, nullptr, memory.data, 1) == cudaSuccess);
  CHECK(memory.read()[0] == 2);

  knobs.next_kernel = cudaErrorIllegalAddress;
  CHECK(launch(add, 1, 32, 0, nullptr, memory.data, 1) == cudaSuccess);
  CHECK(cudaDeviceSynchronize() == cudaErrorIllegalAddress);
  CHECK(launch(add, 1, 32, 0, nullptr, memory.data, 1) == cudaErrorIllegalAddress);
  CHECK(cudaGetLastError() == cudaErrorIllegalAddress);
  CHECK(cudaGetLastError() == cudaErrorIllegalAddress);
  CHECK(std::string(cudaGetErrorName(cudaErrorIllegalAddress)) == "cudaErrorIllegalAddress");
  CHECK(std::string(cudaGetErrorString(cudaErrorNoDevice)) == "no CUDA-capable device is detected");
  cuda_on_cpu::reset();
}

}  // namespace emulator_tests
