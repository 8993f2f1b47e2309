// SPDX-License-Identifier: Apache-2.0
// Every process of the job runs the same cases in the same order; what one of them says is headed by its rank.
#define DOCTEST_CONFIG_IMPLEMENT
#include <moiety/backend/transport/mpi_session.hpp>

#include <doctest/doctest.h>

#include <mpi.h>

#include <iostream>
#include <sstream>
#include <string>

int main(int argc, char** argv) {
  moiety::detail::mpi_session::get();
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);

  doctest::Context context(argc, argv);
  context.setOption("no-colors", true);
  std::stringstream said;
  context.setCout(&said);
  int const result = context.run();
  if (rank == 0 || result != 0)
    for (std::string line; std::getline(said, line);) std::cout << "rank " << rank << ": " << line << '\n';
  std::cout << std::flush;
  return result;
}
