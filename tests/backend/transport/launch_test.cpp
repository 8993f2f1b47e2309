// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/launch.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace mo = moiety;
using namespace std::chrono_literals;
using mo::detail::meeting_file;

namespace {

using variables = std::map<std::string, std::string>;

mo::launched job_of(variables const& set) {
  return mo::detail::launched_by([&](char const* name) -> char const* {
    auto const found = set.find(name);
    return found == set.end() ? nullptr : found->second.c_str();
  });
}

std::string refusal_of(variables const& set) {
  try {
    job_of(set);
  } catch (mo::config_error const& e) {
    return e.what();
  }
  return "";
}

bool is(mo::launched const& job, int rank, int size, int local_rank) {
  return job.rank == rank && job.size == size && job.local_rank == local_rank;
}

/// A folder of this case alone.
struct folder {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("moiety-launch-" + std::to_string(std::random_device{}()));
  folder() { std::filesystem::create_directory(path); }
  folder(folder const&) = delete;
  folder& operator=(folder const&) = delete;
  ~folder() { std::filesystem::remove_all(path); }
};

std::vector<char> some_bytes(std::size_t count) {
  std::mt19937 draw(7);
  std::vector<char> bytes(count);
  for (char& b : bytes) b = static_cast<char>(draw());
  return bytes;
}

}  // namespace

TEST_CASE("a process knows its rank from the first launcher whose variables are set") {
  CHECK(is(job_of({}), 0, 1, 0));
  CHECK(is(job_of({{"LOCAL_RANK", "3"}}), 0, 1, 0));
  CHECK(is(job_of({{"RANK", "5"}, {"WORLD_SIZE", "8"}, {"LOCAL_RANK", "1"}}), 5, 8, 1));
  variables const slurm{{"SLURM_PROCID", "2"}, {"SLURM_NTASKS", "3"}, {"SLURM_LOCALID", "0"}};
  CHECK(is(job_of(slurm), 2, 3, 0));
  variables both = slurm;
  both["OMPI_COMM_WORLD_RANK"] = "1", both["OMPI_COMM_WORLD_SIZE"] = "4", both["OMPI_COMM_WORLD_LOCAL_RANK"] = "1";
  CHECK(is(job_of(both), 1, 4, 1));
}

TEST_CASE("variables that are no ranks are named") {
  for (char const* wrong : {"", "-1", "3x", " 3", "99999999999", "0x1"}) {
    std::string const said = refusal_of({{"RANK", wrong}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "0"}});
    CHECK(said == "RANK is '" + std::string(wrong) + "', which is no rank or number of ranks.");
  }
  CHECK(refusal_of({{"RANK", "1"}, {"LOCAL_RANK", "0"}}).find("WORLD_SIZE is not set") == 0);
  CHECK(refusal_of({{"WORLD_SIZE", "1"}, {"LOCAL_RANK", "0"}}).find("RANK is not set") == 0);
  CHECK(refusal_of({{"RANK", "1"}, {"WORLD_SIZE", "2"}}).find("LOCAL_RANK is not set") == 0);
  CHECK(refusal_of({{"RANK", "2"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "0"}}) == "RANK is 2, and WORLD_SIZE is 2.");
}

TEST_CASE("what rank 0 leaves in a file comes whole to ranks that wait for it, and is gone with rank 0's object") {
  folder const here;
  std::filesystem::path const path = here.path / "id";
  std::vector<char> const sent = some_bytes(128);
  std::vector<std::vector<char>> came(3, std::vector<char>(sent.size()));
  {
    std::vector<std::thread> others;
    for (auto& to : came) others.emplace_back([&] { meeting_file(path).take(to, {.deadline = 20s}); });
    std::this_thread::sleep_for(5ms);
    meeting_file mine(path);
    mine.leave(sent);
    for (std::thread& other : others) other.join();
    CHECK(std::filesystem::exists(path));
  }
  for (auto const& bytes : came) CHECK(bytes == sent);
  CHECK(std::filesystem::is_empty(here.path));
}

TEST_CASE("a file of another run is refused by rank 0, and left alone") {
  folder const here;
  std::filesystem::path const path = here.path / "id";
  std::ofstream(path) << "stale";
  {
    meeting_file mine(path);
    CHECK_THROWS_AS(mine.leave(some_bytes(128)), mo::config_error);
  }
  CHECK(std::filesystem::file_size(path) == 5);
}

TEST_CASE("files that hold other than rank 0 leaves, do not come, or cannot be written") {
  folder const here;
  std::vector<char> room(128);
  for (std::size_t const size : {std::size_t{0}, std::size_t{127}, std::size_t{129}}) {
    std::filesystem::path const path = here.path / std::to_string(size);
    std::ofstream(path) << std::string(size, 'x');
    CHECK_THROWS_AS(meeting_file(path).take(room, {.deadline = 1s}), mo::config_error);
  }
  auto const begin = std::chrono::steady_clock::now();
  try {
    meeting_file(here.path / "never").take(room, {.deadline = 30ms});
    FAIL("nobody left a file");
  } catch (mo::comm_error const& e) {
    CHECK(e.fault == mo::comm_fault::timeout);
    CHECK(e.rank == 0);
    CHECK(std::string(e.what()).find("within 30 ms") != std::string::npos);
  }
  CHECK(std::chrono::steady_clock::now() - begin >= 30ms);
  CHECK_THROWS_AS(meeting_file(here.path / "no folder" / "id").leave(room), mo::resource_error);
}

TEST_CASE("waiting ends with the condition, or with the deadline of the run's clock") {
  static std::chrono::steady_clock::duration time;
  time = 0s;
  mo::run_options const options{.deadline = 10s, .now = [] { return std::chrono::steady_clock::time_point(time); }};
  int polls = 0;
  CHECK(mo::detail::await_within(options, [&] { return time += 1s, ++polls == 10; }));
  CHECK(polls == 10);
  CHECK(!mo::detail::await_within(options, [&] { return time += 4s, false; }));
  CHECK(time == 22s);
}
