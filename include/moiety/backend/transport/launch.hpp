// SPDX-License-Identifier: Apache-2.0
// What a launcher tells a process of its job, and how the processes of a job hand each other their first bytes.
//
//   mo::launched job = mo::launched_job();      from the variables of torchrun, Open MPI or Slurm, the first that are set
//
//   torchrun   RANK, WORLD_SIZE, LOCAL_RANK
//   Open MPI   OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE, OMPI_COMM_WORLD_LOCAL_RANK
//   Slurm      SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID
//
// A process that nobody has launched is the only rank of its job. Throws config_error for variables that are no ranks.
#pragma once

#include <moiety/backend/transport/run_options.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <ios>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

namespace moiety::inline MOIETY_ABI {

/// One process of a job: its rank of all, and of those on its machine.
struct launched {
  int rank = 0, size = 1, local_rank = 0;
};

namespace detail {

/// Polls until poll() holds; false where it does not within the deadline.
template <class Poll> bool await_within(run_options const& options, Poll const& poll) {
  auto const begin = options.now();
  for (;;) {
    if (poll()) return true;
    auto const waited = options.now() - begin;
    if (waited >= options.deadline) return false;
    waited < std::chrono::milliseconds(100) ? std::this_thread::yield()
                                            : std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

inline int number_of_variable(char const* name, char const* text) {
  require<config_error>(text != nullptr, name, " is not set, and other variables of its launcher are.");
  std::string_view const whole(text);
  int number = -1;
  auto const end = std::from_chars(whole.data(), whole.data() + whole.size(), number);
  require<config_error>(end.ec == std::errc{} && end.ptr == whole.data() + whole.size() && number >= 0, name, " is '",
                        whole, "', which is no rank or number of ranks.");
  return number;
}

/// lookup(name) is the text of a variable, or null.
template <class Lookup> launched launched_by(Lookup const& lookup) {
  constexpr char const* launchers[][3] = {
      {"RANK", "WORLD_SIZE", "LOCAL_RANK"},
      {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
      {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"}};
  for (auto const& [rank, size, local] : launchers) {
    if (lookup(rank) == nullptr && lookup(size) == nullptr) continue;
    launched const job{number_of_variable(rank, lookup(rank)), number_of_variable(size, lookup(size)),
                       number_of_variable(local, lookup(local))};
    require<config_error>(job.rank < job.size, rank, " is ", job.rank, ", and ", size, " is ", job.size, '.');
    return job;
  }
  return {};
}

/// A file in which rank 0 leaves bytes for the others. It is there whole or not at all, and gone with the object of rank 0.
class meeting_file {
 public:
  explicit meeting_file(std::filesystem::path path) : path_(std::move(path)) {}
  meeting_file(meeting_file const&) = delete;
  meeting_file& operator=(meeting_file const&) = delete;
  ~meeting_file() {
    std::error_code ignored;
    if (ours_) std::filesystem::remove(path_, ignored);
  }

  void leave(std::span<char const> bytes) {
    std::error_code error;
    require<config_error>(!std::filesystem::exists(path_, error), "the file ", path_,
                          ", in which rank 0 is to meet the others, is there from another run: remove it, or name a "
                          "fresh one for each run.");
    std::filesystem::path part = path_;
    part += ".part";
    std::ofstream out(part, std::ios::binary | std::ios::trunc);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    out.close();
    if (out) std::filesystem::rename(part, path_, error);
    require<resource_error>(out && !error, "the file ", path_, ", in which rank 0 is to meet the others, cannot be ",
                            "written.");
    ours_ = true;
  }

  /// Waits for the file. Throws comm_error{timeout} where it does not come.
  void take(std::span<char> bytes, run_options const& options) const {
    std::error_code error;
    if (!await_within(options, [&] { return std::filesystem::exists(path_, error); }))
      throw comm_error(
          comm_fault::timeout, "world", 0, 0,
          sentence("world: rank 0 did not leave the file ", path_, " within ", options.deadline.count(), " ms."));
    std::ifstream in(path_, std::ios::binary);
    in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    bool const whole = in && in.peek() == std::ifstream::traits_type::eof();
    require<config_error>(whole, "the file ", path_, " does not hold the ", bytes.size(),
                          " bytes that rank 0 leaves there.");
  }

 private:
  std::filesystem::path path_;
  bool ours_ = false;
};

}  // namespace detail

/// The rank of this process.
inline launched launched_job() {
  return detail::launched_by([](char const* name) { return std::getenv(name); });
}

}  // namespace moiety
