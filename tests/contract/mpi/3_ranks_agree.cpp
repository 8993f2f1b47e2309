// SPDX-License-Identifier: Apache-2.0
// The program whose ranks are threads says "mo::mpi: the same body under mpirun -n 4". This is that body, on processes.
#include <moiety/moiety.hpp>
#include <moiety/mpi.hpp>

#include <cstdlib>
#include <cstring>
#include <vector>

#define threads mpi  // all headers are read by now
#include "../3_ranks_agree.cpp"
