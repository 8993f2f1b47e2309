// SPDX-License-Identifier: Apache-2.0
// The transport whose ranks are processes of a job that MPI has launched: include it beside <moiety/moiety.hpp>, and link
// moiety::mpi.
//
//   struct four : mo::deployment<mo::layout{.data = 4}> {
//     using transport = mo::mpi;
//   };
//
//   mpirun -n 4 program
#pragma once

#include <moiety/backend/transport/mpi.hpp>
