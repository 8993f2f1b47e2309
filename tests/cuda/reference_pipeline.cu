// SPDX-License-Identifier: Apache-2.0
// The permutation of a routing and the combined rows, written with the algorithms of Thrust, against those of the library:
// on a device where nvcc compiles this, on the host where a C++ compiler does (Thrust's sequential system).
//
//   rows     sequence, transform, stable_sort_by_key, lower_bound
//   sources  transform;   positions  scatter_if
//   y        transform over elements: the sum over slots in their order
#if defined(__CUDACC__)
#include <moiety/cuda.cuh>
#endif
#include <moiety/moiety.hpp>

#include <doctest/doctest.h>
#include <thrust/binary_search.h>
#include <thrust/copy.h>
#include <thrust/device_vector.h>
#include <thrust/functional.h>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/scatter.h>
#include <thrust/sequence.h>
#include <thrust/sort.h>
#include <thrust/transform.h>

#include <cstdint>
#include <random>
#include <vector>

namespace mo = moiety;

namespace {

#if defined(__CUDACC__)
using engine = mo::cuda_engine;
engine make_engine() { return engine{mo::cuda{.stream = cudaStreamLegacy}}; }
#else
using engine = mo::host_engine;
engine make_engine() { return engine{mo::host{.threads = 2}}; }
#endif

template <class T> T* at(thrust::device_vector<T>& v) { return thrust::raw_pointer_cast(v.data()); }
template <class T> std::vector<T> host(thrust::device_vector<T> const& v) {
  std::vector<T> values(v.size());
  thrust::copy(v.begin(), v.end(), values.begin());
  return values;
}

struct slots_of {
  std::int64_t tokens, experts, slots;
};

struct permutation_memory {
  thrust::device_vector<std::int64_t> starts;
  thrust::device_vector<std::int32_t> sources, positions;

  explicit permutation_memory(slots_of const& of)
      : starts(static_cast<std::size_t>(of.experts + 1), -7),
        sources(static_cast<std::size_t>(of.tokens * of.slots), -7),
        positions(static_cast<std::size_t>(of.tokens * of.slots), -1) {}
  mo::permutation_view view(slots_of const& of) {
    return {of.tokens, of.experts, of.slots, at(starts), at(sources), at(positions)};
  }
};

/// The expert of a slot, or E where its token goes nowhere.
struct key_of_slot {
  mo::routing_view<float> routes;
  MOIETY_HD std::int32_t operator()(std::int32_t slot) const {
    std::int64_t const token = slot / routes.slots;
    return routes.dispatched(token) ? routes.ids[slot] : static_cast<std::int32_t>(routes.experts);
  }
};
struct token_of_slot {
  std::int64_t slots;
  MOIETY_HD std::int32_t operator()(std::int32_t slot) const { return static_cast<std::int32_t>(slot / slots); }
};

void permute_by_thrust(slots_of const& of, mo::routing_view<float> const& routes, permutation_memory& out) {
  auto const count = static_cast<std::size_t>(of.tokens * of.slots);
  thrust::device_vector<std::int32_t> slots(count), keys(count);
  thrust::sequence(slots.begin(), slots.end());
  thrust::transform(slots.begin(), slots.end(), keys.begin(), key_of_slot{routes});
  thrust::stable_sort_by_key(keys.begin(), keys.end(), slots.begin());
  thrust::counting_iterator<std::int32_t> const first(0);
  thrust::lower_bound(keys.begin(), keys.end(), first, first + of.experts + 1, out.starts.begin());
  std::int64_t const rows = out.starts.back();
  thrust::transform(slots.begin(), slots.begin() + rows, out.sources.begin(), token_of_slot{of.slots});
  thrust::scatter(first, first + rows, slots.begin(), out.positions.begin());
}

/// Element i of y: Σ over slots of w · row, from +0.
struct combined {
  mo::permutation_view order;
  float const* rows;
  float const* weights;
  std::int64_t columns;
  MOIETY_HD float operator()(std::int64_t i) const {
    std::int64_t const token = i / columns;
    float sum = 0;
    for (std::int64_t j = 0; j < order.slots; ++j) {
      std::int64_t const slot = token * order.slots + j, row = order.positions[slot];
      if (row >= 0) sum = mo::fma(weights[slot], rows[row * columns + i % columns], sum);
    }
    return sum;
  }
};

void compare(slots_of const& of, std::int64_t columns) {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number, ", ", of.tokens, " tokens to ", of.slots, " of ", of.experts);
  std::mt19937_64 random(number);
  std::vector<std::int32_t> ids;
  std::vector<mo::token_state> states;
  std::vector<float> weights, rows;
  std::normal_distribution<float> normal;
  for (std::int64_t t = 0; t < of.tokens; ++t) {
    auto const first = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(of.experts));
    for (std::int64_t j = 0; j < of.slots; ++j) {
      ids.push_back(static_cast<std::int32_t>((first + j) % of.experts));
      weights.push_back(normal(random));
    }
    states.push_back(static_cast<mo::token_state>(random() % 7 % 4));
  }
  for (std::int64_t i = 0; i < of.tokens * of.slots * columns; ++i) rows.push_back(normal(random));
  thrust::device_vector<std::int32_t> d_ids(ids.begin(), ids.end());
  thrust::device_vector<mo::token_state> d_states(states.begin(), states.end());
  thrust::device_vector<float> d_weights(weights.begin(), weights.end()), d_rows(rows.begin(), rows.end());
  mo::routing_view<float> const routes{of.tokens, of.experts, of.slots, at(d_ids), at(d_weights), at(d_states)};

  permutation_memory wanted(of), got(of);
  permute_by_thrust(of, routes, wanted);
  auto on = make_engine();
  mo::kernels::build_permutation<float>(on, routes, got.view(of));
  on.synchronize();
  CHECK(host(got.starts) == host(wanted.starts));
  CHECK(host(got.sources) == host(wanted.sources));
  CHECK(host(got.positions) == host(wanted.positions));

  auto const elements = static_cast<std::size_t>(of.tokens * columns);
  thrust::device_vector<float> y(elements, 7), expected(elements);
  thrust::counting_iterator<std::int64_t> const first(0);
  thrust::transform(first, first + of.tokens * columns, expected.begin(),
                    combined{wanted.view(of), at(d_rows), at(d_weights), columns});
  mo::kernels::combine<float>(on, got.view(of), {at(d_rows), of.tokens * of.slots, columns}, at(d_weights), nullptr,
                              {at(y), of.tokens, columns});
  on.synchronize();
  CHECK(host(y) == host(expected));
}

}  // namespace

TEST_CASE("Thrust's sort and scatter give the permutation of the library, and its sums give the rows it combines") {
  compare({0, 4, 2}, 8);
  compare({1, 1, 1}, 1);
  compare({333, 5, 2}, 13);
  compare({2048, 128, 8}, 64);
  compare({60'000, 9, 3}, 4);  // more rows than one thread of the host takes
}
