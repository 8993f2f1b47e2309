// SPDX-License-Identifier: Apache-2.0
// The two things that ranks do, training and being compared, on threads and, where they are built, on a device and on the
// processes of mpirun.
#pragma once

#include "compare.hpp"
#include "experts.hpp"
#include "options.hpp"
#include "text.hpp"
#include "train.hpp"

#include <moiety/moiety.hpp>

#include <chrono>
#include <type_traits>

namespace lm {

struct of_threads : mo::deployment<mo::dynamic> {};

/// What the contexts of a run are made of.
template <class Deployment> auto engine_of([[maybe_unused]] options const& o) {
  using backend = typename mo::context<Deployment>::backend;
  if constexpr (std::is_same_v<backend, mo::host>)
    return mo::host{.threads = o.threads};
  else
    return backend{};
}

/// body(trainer) on every rank of the layout, with this expert block; what it returned on rank 0, or in this process.
template <class Spec, class Deployment, class Body>
auto on_ranks_with(text const& corpus, options const& o, Body const& body) {
  auto const rank = [&](mo::context<Deployment>& ctx) {
    trainer<Spec, Deployment> t(ctx, o, corpus);
    return body(t);
  };
  return mo::run<Deployment>(rank, {.deadline = std::chrono::minutes(10)}, layout_of(o), engine_of<Deployment>(o));
}
/// The same with that of the options.
template <class Deployment, class Body> auto on_ranks(text const& corpus, options const& o, Body const& body) {
  switch (o.hidden) {
    case 64: return on_ranks_with<expert_block<64>, Deployment>(corpus, o, body);
    case 128: return on_ranks_with<expert_block<128>, Deployment>(corpus, o, body);
    case 256: return on_ranks_with<expert_block<256>, Deployment>(corpus, o, body);
    default: throw command_line::usage_error("--hidden is 64, 128 or 256.");
  }
}

template <class Deployment> summary train_on(text const& corpus, options const& o) {
  return on_ranks<Deployment>(corpus, o, [&](auto& t) { return train_rank(t, corpus, o); });
}
template <class Deployment> trace trace_on(text const& corpus, options const& o) {
  return on_ranks<Deployment>(corpus, o, [&](auto& t) { return trace_rank(t, o); });
}

/// The same on processes: processes.cpp.
summary train_on_processes(text const& corpus, options const& o);
trace trace_on_processes(text const& corpus, options const& o);

/// The same on a device: devices.cu.
summary train_on_devices(text const& corpus, options const& o);
trace trace_on_devices(text const& corpus, options const& o);

/// The whole job for a text that is split already.
inline summary train(text const& corpus, options const& o) {
#if defined(TRAIN_LM_MPI)
  if (o.mpi) return train_on_processes(corpus, o);
#endif
#if defined(TRAIN_LM_CUDA)
  if (o.backend == "cuda") return train_on_devices(corpus, o);
#endif
  return train_on<of_threads>(corpus, o);
}

/// A few steps on one rank of this process and on the layout.
inline comparison compare(text const& corpus, options const& o) {
#if defined(TRAIN_LM_CUDA)
  if (o.backend == "cuda") return compared(trace_on_devices(corpus, alone(o)), trace_on_devices(corpus, o), o);
#endif
  trace const one = trace_on<of_threads>(corpus, alone(o));
#if defined(TRAIN_LM_MPI)
  if (o.mpi) return compared(one, trace_on_processes(corpus, o), o);
#endif
  return compared(one, trace_on<of_threads>(corpus, o), o);
}

}  // namespace lm
