// SPDX-License-Identifier: Apache-2.0
// All ways to run a model on a number of ranks, best first: order × layout × split.
#pragma once

#include "model.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace plan {

struct question {
  model what;
  machine on;
  int ranks;
  int microbatches;                           // of a step, over all replicas
  std::int64_t tokens, sequence;              // of a micro-batch
  std::vector<mo::step_costs> measured = {};  // of each block, without expert exchange; empty: derived
};

struct layout {
  int data, pipeline, expert;
};

struct proposal {
  mo::schedule schedule;
  layout ranks;
  mo::layer_split<std::vector<int>> split;
  std::vector<mo::step_costs> times;  // of each stage
  std::int64_t hop;
  std::int64_t makespan, bubble, reduction;  // nanoseconds
  double idle;
  std::int64_t memory, buffers;  // of the fullest rank

  std::int64_t step() const { return makespan + reduction; }
  mo::stage_costs costs() const { return {times, hop}; }
};

struct answer {
  std::vector<proposal> proposals;        // shortest step first
  std::map<std::string, int> impossible;  // reasons, and how often
};

namespace detail {

/// Why an order cannot run.
struct impossible : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What one stage needs, and what it takes.
struct stage_load {
  mo::step_costs time;
  std::int64_t weights = 0, activations = 0, dense_parameters = 0, expert_parameters = 0;
};

inline std::vector<stage_load> loads_of_stages(std::vector<block_load> const& blocks,
                                               mo::layer_split<std::vector<int>> const& split) {
  std::vector<stage_load> stages(static_cast<std::size_t>(split.stages()), {.time = {0, 0, 0}});
  std::vector<std::int64_t> exchange(stages.size(), 0);
  for (int b = 0; b < split.blocks(); ++b) {
    block_load const& from = blocks[static_cast<std::size_t>(b)];
    auto const s = static_cast<std::size_t>(split.stage_of(b));
    stages[s].time.forward += from.time.forward;
    stages[s].time.input_gradient += from.time.input_gradient;
    stages[s].time.weight_gradient += from.time.weight_gradient;
    stages[s].weights += from.weights;
    stages[s].activations += from.activations;
    stages[s].dense_parameters += from.dense_parameters;
    stages[s].expert_parameters += from.expert_parameters;
    exchange[s] += from.exchange;
  }
  // A joined step runs the exchange of one half beside the products of the other.
  for (std::size_t s = 0; s < stages.size(); ++s) {
    mo::step_costs& t = stages[s].time;
    t.hidden = std::min(2 * exchange[s], t.forward + t.of(mo::computation::backward) - 2 * exchange[s]);
  }
  return stages;
}

/// Bytes of the fullest rank: state, activations at their peak, receive buffers.
inline std::int64_t fullest_rank(mo::schedule_view const& schedule, std::vector<stage_load> const& stages,
                                 std::int64_t buffers, std::int64_t message) {
  std::vector<std::int64_t> weights;
  for (stage_load const& s : stages) weights.push_back(s.weights);
  std::vector<int> own(stages.size());
  for (std::size_t s = 0; s < own.size(); ++s) own[s] = static_cast<int>(s);
  std::vector<std::int64_t> const held =
      mo::rank_loads(mo::layer_split<std::vector<int>>(own, schedule.stages()), weights, schedule);
  std::int64_t most = 0;
  for (int r = 0; r < schedule.ranks(); ++r) {
    std::int64_t const peak = mo::peak_activations(
        schedule, r, [&](int stage) { return stages[static_cast<std::size_t>(stage)].activations; });
    most = std::max(most, held[static_cast<std::size_t>(r)] + peak + buffers * message);
  }
  return most;
}

/// Summing the gradients of the fullest stage over its replicas, 4 bytes each, after the last backward.
inline std::int64_t reduction_of(question const& q, layout const& ranks, bool bidirectional,
                                 std::vector<stage_load> const& stages) {
  int const copies = bidirectional ? 2 : 1;  // of a stage, in one pipeline
  auto const ring = [&](int replicas) { return 2.0 * (copies * replicas - 1) / (copies * replicas); };
  double most = 0;
  for (stage_load const& s : stages)
    most = std::max(most, 4.0 * static_cast<double>(s.dense_parameters) * ring(ranks.data) +
                              4.0 * static_cast<double>(s.expert_parameters) * ring(ranks.data / ranks.expert));
  return static_cast<std::int64_t>(most / q.on.link * 1e9);
}

/// The best split whose ranks have room for it.
inline mo::layer_split<std::vector<int>> find_split(mo::schedule_view const& schedule,
                                                    std::vector<block_load> const& blocks, std::int64_t capacity) {
  std::vector<std::int64_t> cost, weights, activations;
  for (block_load const& b : blocks) {
    cost.push_back(b.total());
    weights.push_back(b.weights);
    activations.push_back(b.activations);
  }
  return mo::split_layers(cost, schedule, {weights, activations, capacity});
}

/// The proposal of one order on one layout. Throws impossible where there is none.
template <class Order> proposal propose(question const& q, layout const& ranks, int chunks) {
  mo::pipeline_shape const shape{
      .ranks = ranks.pipeline, .chunks = chunks, .microbatches = q.microbatches / ranks.data};
  if (auto const fault = mo::fault_of<Order>(shape); fault != mo::shape_fault::none)
    throw impossible(std::string(mo::sentence_of(fault)));
  std::vector<block_load> const blocks = loads_of(q.what, q.on, q.tokens, q.sequence, ranks.expert, q.measured);
  if (mo::stages_of(Order::placed, shape) > q.what.layers)
    throw impossible("the model has fewer layers than there would be stages");
  mo::schedule const schedule = mo::make_schedule(Order{}, shape);
  mo::lowered_schedule const lowered = mo::lower(schedule);
  std::int64_t buffers = 0;
  for (int r = 0; r < lowered.ranks(); ++r) buffers = std::max(buffers, lowered.receive_buffers(r));
  std::int64_t const message = 2 * q.tokens * q.what.moe.hidden;

  auto const split = find_split(schedule, blocks, q.on.memory - buffers * message);
  std::vector<stage_load> const stages = loads_of_stages(blocks, split);
  proposal p{schedule,
             ranks,
             split,
             {},
             static_cast<std::int64_t>(static_cast<double>(message) / q.on.link * 1e9),
             0,
             0,
             reduction_of(q, ranks, Order::placed == mo::placement::bidirectional, stages),
             0,
             fullest_rank(schedule, stages, buffers, message),
             buffers};
  for (stage_load const& s : stages) p.times.push_back(s.time);
  p.makespan = mo::makespan(p.schedule, p.costs());
  p.bubble = mo::bubble(p.schedule, p.costs());
  p.idle = mo::idle_fraction(p.schedule, p.costs());
  return p;
}

template <class Order> void propose_to(answer& to, question const& q, layout const& ranks, int chunks) {
  try {
    to.proposals.push_back(propose<Order>(q, ranks, chunks));
  } catch (impossible const& reason) {
    ++to.impossible[reason.what()];
  } catch (mo::split_too_hard const&) {
    ++to.impossible["the search for a split that fits the memory was given up"];
  } catch (mo::config_error const&) {
    ++to.impossible["a rank's memory is too small"];
  }
}

template <class... Orders> void propose_all(question const& q, layout const& ranks, int chunks, answer& to) {
  (propose_to<Orders>(to, q, ranks, chunks), ...);
}

}  // namespace detail

inline answer make_plans(question const& q) {
  answer all;
  for (int pipeline = 1; pipeline <= q.ranks; ++pipeline) {
    if (q.ranks % pipeline != 0) continue;
    int const data = q.ranks / pipeline;
    if (q.microbatches % data != 0) {
      ++all.impossible["the micro-batches do not divide among the replicas"];
      continue;
    }
    for (int expert = 1; expert <= data; ++expert) {
      if (data % expert != 0 || q.what.moe.experts % expert != 0) continue;
      layout const ranks{data, pipeline, expert};
      detail::propose_all<mo::gpipe, mo::one_f_one_b, mo::zb_h1, mo::zb_h2>(q, ranks, 1, all);
      detail::propose_all<mo::zb_v, mo::dual_pipe, mo::dual_pipe_v>(q, ranks, 2, all);
      for (int const chunks : {2, 3, 4})
        detail::propose_all<mo::interleaved_1f1b, mo::interleaved_1f1b_overlapped, mo::interleaved_zb1p,
                            mo::looped_bfs>(q, ranks, chunks, all);
    }
  }
  std::stable_sort(all.proposals.begin(), all.proposals.end(), [](proposal const& a, proposal const& b) {
    return std::pair(a.step(), a.memory) < std::pair(b.step(), b.memory);
  });
  return all;
}

}  // namespace plan
