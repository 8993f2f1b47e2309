// SPDX-License-Identifier: Apache-2.0
// Ranks that are processes of a job of MPI: mpirun -n 4 train_lm --mpi --pipeline 2 --expert 2
#include "ranks.hpp"

#include <moiety/mpi.hpp>

namespace lm {

namespace {
struct of_processes : mo::deployment<mo::dynamic> {
  using transport = mo::mpi;
};
}  // namespace

summary train_on_processes(text const& corpus, options const& o) { return train_on<of_processes>(corpus, o); }
trace trace_on_processes(text const& corpus, options const& o) { return trace_on<of_processes>(corpus, o); }

}  // namespace lm
