// SPDX-License-Identifier: Apache-2.0
// The bodies of the routing kernels for a GPU: a warp for each token, its row in the lanes (warp_row), the policies as they
// are on the host. The same logits give the bits of the host, whatever the number of tokens and the size of the GPU.
//
// A kernel cannot throw. A token whose logits are rejected, or to which the router gave no expert for some slot, is noted
// in the engine's faults; it becomes unroutable, with the ids 0 … k − 1 and weights 0.
//
// Experts, the last template parameter of each, is the number of experts where it is a constant: then one kernel is
// compiled, else one for each of six ranges, of which the columns of the logits pick one. More than 1024: config_error.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/batch/batch.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/exact_sum.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/kernels/cuda/portable/warp_row.cuh>
#include <moiety/kernels/route.hpp>
#include <moiety/kernels/route_row.hpp>

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

inline constexpr int route_threads = 128, route_warps = route_threads / warp_lanes;
inline constexpr std::int64_t most_experts = 1024;

/// Calls f(number of registers a lane), a constant, for rows of `experts` values.
template <int Experts, class F> void with_registers(std::int64_t experts, F const& f) {
  static_assert(Experts >= 0 && Experts <= most_experts, "a router has at most 1024 experts on a GPU.");
  moiety::detail::require<config_error>(experts <= most_experts, "a router has at most ", most_experts,
                                        " experts on a GPU, but this one has ", experts, '.');
  if constexpr (Experts > 0) {
    moiety::detail::require<data_error>(experts == Experts, "a router of ", Experts,
                                        " experts was given the logits of ", experts, '.');
    f(std::integral_constant<int, (Experts + warp_lanes - 1) / warp_lanes>{});
  } else {
    if (experts <= 32) return f(std::integral_constant<int, 1>{});
    if (experts <= 64) return f(std::integral_constant<int, 2>{});
    if (experts <= 128) return f(std::integral_constant<int, 4>{});
    if (experts <= 256) return f(std::integral_constant<int, 8>{});
    if (experts <= 512) return f(std::integral_constant<int, 16>{});
    f(std::integral_constant<int, 32>{});
  }
}

/// Blocks for a warp a token; a warp takes several where there are many.
inline std::int64_t route_blocks(cuda_engine const& engine, std::int64_t tokens) {
  return std::min((tokens + route_warps - 1) / route_warps, std::int64_t{16} * engine.multiprocessors());
}

/// Tokens in a row for a block that adds up statistics, and the blocks of a call.
inline std::int64_t tokens_of_block(cuda_engine const& engine, std::int64_t tokens) {
  std::int64_t const most = std::int64_t{4} * engine.multiprocessors();
  return std::max<std::int64_t>((tokens + most - 1) / most, std::int64_t{4} * route_warps);
}
inline std::int64_t blocks_of(std::int64_t tokens, std::int64_t span) {
  return std::max<std::int64_t>((tokens + span - 1) / span, 1);
}

/// The warp's first token, and the distance to its next.
__device__ __forceinline__ std::int64_t first_token() {
  return static_cast<std::int64_t>(blockIdx.x) * route_warps + threadIdx.x / 32u;
}
__device__ __forceinline__ std::int64_t token_stride() { return static_cast<std::int64_t>(gridDim.x) * route_warps; }

template <int Experts> __device__ __forceinline__ int row_size(std::int64_t cols) {
  return Experts > 0 ? Experts : static_cast<int>(cols);
}

template <class S, int N> __device__ __forceinline__ void load_row(warp_row<S, N> const& row, S const* from) {
  row.each([&](int i, S& v) { v = from[i]; });
}

__device__ __forceinline__ void lower(long long* least, std::int64_t value) {
  if (lane_of_thread() == 0) atomicMin(least, static_cast<long long>(value));
}

/// The ids of a token, which all lanes know, are stored by one lane each.
template <int Slots> __device__ __forceinline__ void store_ids(std::int32_t const* ids, std::int32_t* to) {
  MOIETY_REGISTERS
  for (int first = 0; first < Slots; first += warp_lanes) {
    std::int32_t mine = 0;
    MOIETY_REGISTERS
    for (int j = first; j < Slots && j < first + warp_lanes; ++j) mine = lane_of_thread() == j - first ? ids[j] : mine;
    if (first + lane_of_thread() < Slots) to[first + lane_of_thread()] = mine;
  }
}

/// The ids of a token: in registers, or where they lie if a token may have any number of them (0 slots).
template <int Slots> class token_ids {
 public:
  __device__ __forceinline__ explicit token_ids(std::int32_t const* from) {
    MOIETY_REGISTERS
    for (int j = 0; j < Slots; ++j) ids_[j] = from[j];
  }
  __device__ __forceinline__ operator std::int32_t const*() const { return ids_; }

 private:
  registers_of<std::int32_t, Slots> ids_;
};
template <> class token_ids<0> {
 public:
  __device__ __forceinline__ explicit token_ids(std::int32_t const* from) : ids_(from) {}
  __device__ __forceinline__ operator std::int32_t const*() const { return ids_; }

 private:
  std::int32_t const* ids_;
};

/// The slots of a token: a constant, or as many as there are experts.
template <class Router> __device__ __forceinline__ int slots_of(int experts) {
  return Router::slots > 0 ? Router::slots : experts;
}

template <int Slots> __device__ __forceinline__ bool each_found(std::int32_t const* ids) {
  std::int32_t bits = 0;
  MOIETY_REGISTERS
  for (int j = 0; j < Slots; ++j) bits |= ids[j];
  return bits >= 0;
}

/// The state of a token whose logits become the row, sanitised; masked ones are not read. Rejected ones are noted.
template <class S, int N>
__device__ __forceinline__ token_state read_token(matrix_view<S const> const& logits, std::uint8_t const* mask,
                                                  bool reject, std::int64_t t, warp_row<S, N> const& row,
                                                  cuda_faults* faults) {
  if (mask != nullptr && mask[t] == 0) return token_state::masked;
  load_row(row, logits.row(t));
  token_state const state = detail::sanitise(row, row);
  if (!reject || state == token_state::routed) return state;
  lower(&faults->rejected_token, t);
  return token_state::unroutable;
}

template <class Router, class S, int N, int Experts>
__global__ void __launch_bounds__(route_threads, 1)
    route_tokens(Router const router, matrix_view<S const> const logits, std::uint8_t const* mask,
                 token_table const tokens, bool const reject, routing_view<S> const out, cuda_faults* faults) {
  constexpr int slots = Router::slots;
  int const experts = row_size<Experts>(logits.cols());
  for (std::int64_t t = first_token(); t < logits.rows(); t += token_stride()) {
    registers_of<S, N> values = {}, score_values = {}, weight_values = {};
    warp_row<S, N> const row(values, experts), scores(score_values, experts), weights(weight_values, slots);
    registers_of<S, Router::changes_scores ? N : 1> candidate_values = {};
    warp_row<S, N> const candidates(Router::changes_scores ? candidate_values : score_values, experts);
    registers_of<std::int32_t, slots> ids;
    token_state state = read_token(logits, mask, reject, t, row, faults);
    if (state <= token_state::sanitised) {
      router.forward_row(row, scores, candidates, weights, ids, tokens[t]);
      if (Router::needs_every_slot && !each_found<slots>(ids)) {
        lower(&faults->short_token, t);
        state = token_state::unroutable;
      }
      if (state == token_state::sanitised) detail::drop_non_finite(weights);
    }
    if (state > token_state::sanitised) {
      MOIETY_REGISTERS
      for (int j = 0; j < slots; ++j) ids[j] = j;
      weights.each([](int, S& w) { w = 0; });
    }
    if (lane_of_thread() == 0) out.states[t] = state;
    store_ids<slots>(ids, out.ids + t * slots);
    weights.each([&](int j, S w) { out.weights[t * slots + j] = w; });
  }
}

/// add(word, value) of exact_sum, for words that several threads add to.
struct add_atomically {
  __device__ __forceinline__ std::uint64_t operator()(std::uint64_t& word, std::uint64_t value) const {
    return atomicAdd(reinterpret_cast<unsigned long long*>(&word), static_cast<unsigned long long>(value));
  }
};

__device__ __forceinline__ void add_count(std::int64_t& total, std::uint64_t count) {
  if (count != 0) add_atomically{}(reinterpret_cast<std::uint64_t&>(total), count);
}

/// The units that the tokens of one run belong to: their sequence if sequences have units, and the batch.
struct run_units {
  statistics_view batch, sequence;
  bool with_sequence;

  template <class F> __device__ __forceinline__ void each(F const& f) const {
    f(batch);
    if (with_sequence) f(sequence);
  }
};

/// Σ of probabilities in [0, 1], at most 2³² of them, with the bits of exact_sum but in fewer registers.
struct probability_sum {
  std::uint64_t fraction = 0;
  std::uint32_t whole = 0;

  __device__ __forceinline__ void add(double p) {
    exact_sum term;
    term.add(p);
    add(static_cast<std::uint32_t>(term.whole()), term.fraction());
  }

  /// In integers: not every device is quick in double. p is mantissa · 2^(exponent − 150).
  __device__ __forceinline__ void add(float p) {
    std::uint32_t const bits = moiety::detail::bit_cast<std::uint32_t>(p) & 0x7fffffffu, field = bits >> 23;
    std::uint32_t const mantissa = (bits & 0x7fffffu) | (field != 0u ? 0x800000u : 0u),
                        exponent = field | (field == 0u);
    constexpr std::uint32_t of_integers = 86;  // the exponent whose mantissas count multiples of 2⁻⁶⁴
    if (exponent >= of_integers) return add(p == 1.0f ? 1u : 0u, std::uint64_t{mantissa} << (exponent - of_integers));
    std::uint32_t const shift = of_integers - exponent < 25u ? of_integers - exponent : 25u;
    std::uint32_t const integer = mantissa >> shift, rest = mantissa & ((1u << shift) - 1u), half = 1u << (shift - 1u);
    add(0u, integer + (rest > half || (rest == half && (integer & 1u) != 0u) ? 1u : 0u));
  }

 private:
  __device__ __forceinline__ void add(std::uint32_t w, std::uint64_t f) {
    fraction += f;
    whole += w + (fraction < f ? 1u : 0u);
  }
};

/// What the warps of one block add up of a run of tokens. Shared memory, so nothing of it is initialised when made.
template <int N> struct run_sums {
  static constexpr int room = N * warp_lanes;
  registers_of<std::uint64_t, room> fraction, whole;
  registers_of<std::uint32_t, room> count;

  __device__ __forceinline__ void clear() {
    for (int e = static_cast<int>(threadIdx.x); e < room; e += route_threads) fraction[e] = whole[e] = 0, count[e] = 0;
  }

  __device__ __forceinline__ void add(int e, probability_sum const& sum) {
    fraction[e] += sum.fraction;
    whole[e] += sum.whole + (fraction[e] < sum.fraction ? 1u : 0u);
  }

  __device__ __forceinline__ void add_to(run_units const& units, int experts) const {
    unsigned chosen = 0;
    for (int e = static_cast<int>(threadIdx.x); e < experts; e += route_threads) {
      chosen += count[e];
      units.each([&](statistics_view const& unit) {
        expert_statistics& total = unit.experts[static_cast<std::size_t>(e)];
        exact_sum(static_cast<std::int64_t>(whole[e]), fraction[e]).add_to(total.probability, add_atomically{});
        add_count(total.count, count[e]);
      });
    }
    chosen = __reduce_add_sync(all_lanes, chosen);
    if (lane_of_thread() == 0) units.each([&](statistics_view const& unit) { add_count(unit.unit->chosen, chosen); });
  }
};

/// Tokens [begin, end), all of the units given. The threads of a block call it together.
template <class Router, class S, int N>
__device__ void accumulate_run(Router const& router, matrix_view<S const> const& logits, routing_view<S> const& routing,
                               std::int64_t begin, std::int64_t end, run_units const& units, int experts,
                               run_sums<N>& shared) {
  int const warp = static_cast<int>(threadIdx.x / 32u), lane = lane_of_thread();
  registers_of<probability_sum, N> sums;
  exact_sum lse_squared;
  shared.clear();
  __syncthreads();
  for (std::int64_t t = begin + warp; t < end; t += route_warps) {
    if (!routing.dispatched(t)) continue;
    bool const counts = routing.states[t] == token_state::routed;
    for (std::int64_t j = lane; j < routing.slots; j += warp_lanes) {
      std::int32_t const id = routing.expert(t, j), e = asked_for(id);
      if (counts && e >= 0) atomicAdd(&shared.count[e], 1u);
      if (is_dropped(id))
        units.each(
            [&](statistics_view const& unit) { add_count(unit.experts[static_cast<std::size_t>(e)].dropped, 1); });
    }
    if (!counts) continue;
    registers_of<S, N> values = {};
    warp_row<S, N> const row(values, experts);
    load_row(row, logits.row(t));
    double const lse = detail::log_sum_exp(row);
    lse_squared.add(lse * lse);
    router.probability_row(row);
    MOIETY_REGISTERS
    for (int r = 0; r < N; ++r) {
      int const e = lane + r * warp_lanes;
      S const p = e < experts ? values[r] : S{0};
      if (p >= 0 && p <= 1)
        sums[r].add(p);
      else
        units.each([&](statistics_view const& unit) {
          exact_sum term;
          term.add(p);
          term.add_to(unit.experts[static_cast<std::size_t>(e)].probability, add_atomically{});
        });
    }
  }
  unsigned tokens = 0;  // counted here, so that no register holds it above
  for (std::int64_t t = begin + warp; t < end; t += route_warps)
    tokens += routing.states[t] == token_state::routed ? 1u : 0u;
  for (int w = 0; w < route_warps; ++w) {
    if (w == warp) {
      MOIETY_REGISTERS
      for (int r = 0; r < N; ++r) shared.add(lane + r * warp_lanes, sums[r]);
    }
    __syncthreads();
  }
  shared.add_to(units, experts);
  if (lane == 0)
    units.each([&](statistics_view const& unit) {
      lse_squared.add_to(unit.unit->lse_squared, add_atomically{});
      add_count(unit.unit->tokens, tokens);
    });
  __syncthreads();
}

__device__ inline void count_states(token_state const* states, std::int64_t begin, std::int64_t end,
                                    token_counts& into) {
  unsigned counts[4] = {};
  for (std::int64_t t = begin + threadIdx.x; t < end; t += route_threads) {
    MOIETY_REGISTERS
    for (int s = 0; s < 4; ++s) counts[s] += static_cast<int>(states[t]) == s ? 1u : 0u;
  }
  MOIETY_REGISTERS
  for (int s = 0; s < 4; ++s) {
    unsigned const total = __reduce_add_sync(all_lanes, counts[s]);
    if (lane_of_thread() == 0) add_count(into[static_cast<token_state>(s)], total);
  }
}

/// A block has `span` tokens in a row, cut where a sequence ends.
template <class Router, class S, int N, int Experts>
__global__ void __launch_bounds__(route_threads, 1)
    accumulate_tokens(Router const router, matrix_view<S const> const logits, routing_view<S> const routing,
                      std::int64_t const span, batch_statistics const into) {
  __shared__ run_sums<N> shared;
  std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * span;
  std::int64_t const end = begin + span < logits.rows() ? begin + span : logits.rows();
  if (blockIdx.x == 0)
    for (std::int64_t u = threadIdx.x; u < into.count; u += route_threads) into.units[u].slots = routing.slots;
  count_states(routing.states, begin, end, *into.states);
  bool const cut = into.count > 1;
  for (std::int64_t u = cut ? into.sequence_of(begin) : 0; begin < end; ++u) {
    std::int64_t const next = cut ? into.sequences[u] : end, last = next < end ? next : end;
    if (begin < last)
      accumulate_run(router, logits, routing, begin, last, run_units{into.unit(0), into.unit(u), cut},
                     row_size<Experts>(logits.cols()), shared);
    begin = last > begin ? last : begin;
  }
}

/// Counts tokens for groups of `size` experts, see batch_statistics::groups. Blocks have tokens as in accumulate_tokens.
template <class S>
__global__ void __launch_bounds__(route_threads)
    count_groups(routing_view<S> const routing, std::int64_t const span, int const size, batch_statistics const into) {
  __shared__ registers_of<std::uint32_t, most_experts> reached;
  std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * span;
  std::int64_t const end = begin + span < routing.tokens ? begin + span : routing.tokens, slots = routing.slots;
  int const groups = static_cast<int>(into.groups);
  if (blockIdx.x == 0)
    for (std::int64_t u = threadIdx.x; u < into.count; u += route_threads) into.units[u].groups = groups;
  bool const cut = into.count > 1;
  for (std::int64_t u = cut ? into.sequence_of(begin) : 0; begin < end; ++u) {
    std::int64_t const next = cut ? into.sequences[u] : end, last = next < end ? next : end;
    for (int g = static_cast<int>(threadIdx.x); g < groups; g += route_threads) reached[g] = 0;
    __syncthreads();
    for (std::int64_t i = begin * slots + threadIdx.x; i < last * slots; i += route_threads) {
      std::int64_t const t = i / slots;
      if (routing.states[t] == token_state::routed && detail::first_of_group(routing.ids + t * slots, i % slots, size))
        atomicAdd(&reached[asked_for(routing.ids[i]) / size], 1u);
    }
    __syncthreads();
    for (int g = static_cast<int>(threadIdx.x); g < groups; g += route_threads)
      run_units{into.unit(0), into.unit(u), cut}.each([&](statistics_view const& unit) {
        add_count(unit.experts[static_cast<std::size_t>(g * size)].reached, reached[g]);
      });
    __syncthreads();
    begin = last > begin ? last : begin;
  }
}

template <class Router, class S, int N, int Experts, class AddLosses>
__global__ void __launch_bounds__(route_threads, 1)
    route_tokens_backward(Router const router, matrix_view<S const> const logits, routing_view<S> const routing,
                          S const* dweights, AddLosses const add_losses, matrix_view<S> const dlogits,
                          bool const accumulate) {
  int const experts = row_size<Experts>(logits.cols()), slots = slots_of<Router>(experts);
  for (std::int64_t t = first_token(); t < logits.rows(); t += token_stride()) {
    registers_of<S, N> gradient_values = {};
    warp_row<S, N> const gradient(gradient_values, experts);
    if (routing.states[t] == token_state::routed) {
      registers_of<S, N> values = {}, score_values = {}, normalised_values = {}, probability_values = {};
      registers_of<S, N> dweight_values = {}, input_values = {}, weight_values = {};
      warp_row<S, N> const row(values, experts), scores(score_values, experts), normalised(normalised_values, experts),
          dprobabilities(probability_values, experts), dweight(dweight_values, slots), inputs(input_values, slots),
          weights(weight_values, slots);
      token_ids<Router::slots> const ids(routing.ids + t * slots);
      load_row(row, logits.row(t));
      if (dweights != nullptr) load_row(dweight, dweights + t * slots);
      add_losses(t, row, dprobabilities, gradient);
      router.backward_row(row, ids, dweight, dprobabilities, gradient, scores, normalised, inputs, weights);
    }
    S* const out = dlogits.row(t);
    gradient.each([&](int e, S g) { out[e] = accumulate ? out[e] + g : g; });
  }
}

}  // namespace gpu

template <class Router, class S, int Experts>
void route(cuda_engine& engine, Router const& router, matrix_view<S const> logits, batch const& about,
           non_finite policy, routing_view<S> out, std::string_view) {
  static_assert(!Router::couples_tokens, "a selection over the whole batch is the work of route_together.");
  gpu::with_registers<Experts>(logits.cols(), [&](auto n) {
    engine.launch("route", &gpu::route_tokens<Router, S, n(), Experts>,
                  {gpu::route_blocks(engine, logits.rows()), gpu::route_threads}, router, logits, about.mask.data(),
                  about.tokens(out.slots), policy == non_finite::reject, out, engine.faults());
  });
}

template <class Router, class S, int Experts>
void accumulate(cuda_engine& engine, Router const& router, matrix_view<S const> logits, routing_view<S> routing,
                batch_statistics const& into) {
  std::int64_t const span = gpu::tokens_of_block(engine, logits.rows()), blocks = gpu::blocks_of(logits.rows(), span);
  gpu::with_registers<Experts>(logits.cols(), [&](auto n) {
    engine.launch("accumulate", &gpu::accumulate_tokens<Router, S, n(), Experts>, {blocks, gpu::route_threads}, router,
                  logits, routing, span, into);
  });
  if (into.groups > 0)
    engine.launch("count groups", &gpu::count_groups<S>, {blocks, gpu::route_threads}, routing, span,
                  static_cast<int>(logits.cols() / into.groups), into);
}

template <class Router, class S, int Experts, class AddLosses>
void route_backward(cuda_engine& engine, Router const& router, matrix_view<S const> logits, routing_view<S> routing,
                    S const* dweights, AddLosses const& add_losses, matrix_view<S> dlogits, bool accumulate) {
  gpu::with_registers<Experts>(logits.cols(), [&](auto n) {
    engine.launch("route_backward", &gpu::route_tokens_backward<Router, S, n(), Experts, AddLosses>,
                  {gpu::route_blocks(engine, logits.rows()), gpu::route_threads}, router, logits, routing, dweights,
                  add_losses, dlogits, accumulate);
  });
}

}  // namespace moiety::inline MOIETY_ABI::kernels
