// SPDX-License-Identifier: Apache-2.0
// Ranks as threads for the tests of this room, and their groups.
#pragma once

#include "backend/transport/thread_ranks.hpp"

#include <moiety/backend/transport/threads.hpp>
#include <moiety/core/config.hpp>
#include <moiety/training/replication.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <random>
#include <string>
#include <vector>

namespace ranks {

using communicator = moiety::thread_communicator;
using groups = moiety::rank_groups<communicator>;

/// f(communicator of the run) on every rank; what each threw.
template <class F> std::vector<std::exception_ptr> errors_of(int size, F const& f) {
  return thread_ranks(size).run([&](communicator& of) { f(of); });
}

/// f(communicator of the run) on every rank; throws what the first of them threw.
template <class F> void run(int size, F const& f) {
  for (auto const& error : errors_of(size, f))
    if (error != nullptr) std::rethrow_exception(error);
}

/// Whether every rank threw an Error.
template <class Error> bool all_throw(std::vector<std::exception_ptr> const& errors) {
  return std::all_of(errors.begin(), errors.end(), [](std::exception_ptr const& error) {
    try {
      if (error != nullptr) std::rethrow_exception(error);
    } catch (Error const&) {
      return true;
    } catch (...) {
    }
    return false;
  });
}

/// The groups of a run of `stages` pipeline stages, in which the experts are spread over `expert` ranks of each, and
/// dense layers over `tensor`.
struct mesh {
  communicator& world;
  communicator stage, data_context, expert_data, tied;

  mesh(communicator& of, int expert, int tensor = 1, int stages = 1)
      : mesh(of, of.rank() * stages / of.size(), stages, expert, tensor) {}

  groups of_rank() { return {world, stage, data_context, expert_data, tied}; }

 private:
  mesh(communicator& of, int stage_number, int stages, int expert, int tensor)
      : world(of),
        stage(of.split(stage_number, of.rank(), "stage")),
        data_context(stage.split(stage.rank() % tensor, stage.rank(), "data_context")),
        expert_data(stage.split(stage.rank() % expert, stage.rank(), "expert_data")),
        tied(of.split(stage_number == 0 || stage_number == stages - 1 ? 0 : stage_number, of.rank(), "tied")) {}
};

/// Values that are the same wherever they are drawn.
template <class S> std::vector<S> normals(std::size_t n, unsigned seed) {
  std::mt19937 bits(seed);
  std::normal_distribution<double> draw;
  std::vector<S> values(n);
  for (S& v : values) v = static_cast<S>(static_cast<float>(draw(bits)));
  return values;
}

}  // namespace ranks
