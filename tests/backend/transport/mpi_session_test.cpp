// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/mpi_session.hpp>

#include <doctest/doctest.h>

#include <memory>
#include <string>

namespace mo = moiety;

TEST_CASE("a thread level that is too low names what is required and what is there") {
  for (int const level : {MPI_THREAD_SERIALIZED, MPI_THREAD_MULTIPLE})
    CHECK_NOTHROW(mo::detail::require_thread_level(level));
  auto said = [](int level) {
    try {
      mo::detail::require_thread_level(level);
    } catch (mo::config_error const& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  CHECK(said(MPI_THREAD_SINGLE).find("requires MPI_THREAD_SERIALIZED, and MPI provides MPI_THREAD_SINGLE") !=
        std::string::npos);
  CHECK(said(MPI_THREAD_FUNNELED).find("MPI provides MPI_THREAD_FUNNELED") != std::string::npos);
}

TEST_CASE("MPI is there once it has been asked for, at a level that is enough") {
  mo::detail::mpi_session::get();
  int initialised = 0, provided = MPI_THREAD_SINGLE;
  MPI_Initialized(&initialised);
  MPI_Query_thread(&provided);
  CHECK(initialised != 0);
  CHECK(provided >= MPI_THREAD_SERIALIZED);
  CHECK(!mo::detail::mpi_finalised());
  CHECK(mo::detail::largest_tag() >= 32767);
}

TEST_CASE("texts of fixed size end") {
  char small[4] = {'x', 'x', 'x', 'x'};
  mo::detail::copy_text(small, "ab");
  CHECK(std::string(small) == "ab");
  mo::detail::copy_text(small, "abcdef");
  CHECK(std::string(small) == "abc");
  CHECK(!mo::detail::mpi_text(MPI_ERR_TRUNCATE).empty());
}

TEST_CASE("what is kept stays where it is") {
  int& first = mo::detail::keep_for_ever(int{7});
  for (int i = 0; i < 100; ++i) mo::detail::keep_for_ever(std::make_unique<int>(i));
  CHECK(first == 7);
}
