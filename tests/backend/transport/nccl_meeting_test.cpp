// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/nccl_meeting.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace mo = moiety;
using namespace std::chrono_literals;

namespace {

using variables = std::map<std::string, std::string>;

ncclUniqueId id_of(int rank, int size, variables const& set, std::optional<mo::detail::meeting_file>& file) {
  auto const lookup = [&](char const* name) -> char const* {
    auto const found = set.find(name);
    return found == set.end() ? nullptr : found->second.c_str();
  };
  return mo::detail::nccl_id_of({rank, size, rank}, lookup, {.deadline = 20s}, file);
}

bool same(ncclUniqueId const& a, ncclUniqueId const& b) { return std::memcmp(&a, &b, sizeof a) == 0; }

}  // namespace

TEST_CASE("the ranks of a job meet through a file, at an id that is of this run") {
  std::string const path =
      (std::filesystem::temp_directory_path() / ("moiety-nccl-" + std::to_string(std::random_device{}()))).string();
  variables const set{{"MOIETY_NCCL_ID_FILE", path}};
  std::vector<ncclUniqueId> before(3);
  for (int run = 0; run < 2; ++run) {
    std::vector<ncclUniqueId> ids(3);
    {
      std::vector<std::optional<mo::detail::meeting_file>> files(3);
      std::vector<std::thread> ranks;
      for (std::size_t r = 0; r < 3; ++r)
        ranks.emplace_back([&, r] { ids[r] = id_of(static_cast<int>(r), 3, set, files[r]); });
      for (std::thread& rank : ranks) rank.join();
      CHECK(std::filesystem::exists(path));
    }
    CHECK(!std::filesystem::exists(path));
    CHECK(same(ids[0], ids[1]));
    CHECK(same(ids[0], ids[2]));
    CHECK(!same(ids[0], before[0]));
    before = ids;
  }
}

TEST_CASE("a rank alone needs no place to meet; more ranks are told how to name one") {
  std::optional<mo::detail::meeting_file> file;
  CHECK(!same(id_of(0, 1, {}, file), ncclUniqueId{}));
  CHECK(!file);
  for (variables const& set : {variables{}, variables{{"MOIETY_NCCL_ID_FILE", ""}}}) try {
      id_of(0, 2, set, file);
      FAIL("there is no place to meet");
    } catch (mo::config_error const& e) {
      std::string const said = e.what();
      CHECK(said.find("the 2 ranks of the job") == 0);
      CHECK(said.find("NCCL_COMM_ID") != std::string::npos);
      CHECK(said.find("MOIETY_NCCL_ID_FILE") != std::string::npos);
    }
}

TEST_CASE("an address in NCCL_COMM_ID is the id of every rank, and no file is used") {
  variables const set{{"NCCL_COMM_ID", "127.0.0.1:51423"}, {"MOIETY_NCCL_ID_FILE", "/nowhere/id"}};
  setenv("NCCL_COMM_ID", set.at("NCCL_COMM_ID").c_str(), 1);  // NCCL reads it itself
  std::optional<mo::detail::meeting_file> file;
  ncclUniqueId const first = id_of(0, 2, set, file), second = id_of(1, 2, set, file);
  unsetenv("NCCL_COMM_ID");
  CHECK(same(first, second));
  CHECK(!file);
}
