// SPDX-License-Identifier: Apache-2.0
// What ranks complain of, and a folder for their files.
#pragma once

#include "training/thread_ranks.hpp"

#include <moiety/core/errors.hpp>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace ranks {

/// "config_error: what it says".
inline std::string words_of(std::exception_ptr const& thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (moiety::config_error const& error) {
    return std::string("config_error: ") + error.what();
  } catch (moiety::data_error const& error) {
    return std::string("data_error: ") + error.what();
  } catch (moiety::resource_error const& error) {
    return std::string("resource_error: ") + error.what();
  } catch (moiety::comm_error const& error) {
    return std::string("comm_error: ") + error.what();
  } catch (std::exception const& error) {
    return std::string("exception: ") + error.what();
  }
}

/// body(communicator) on each of n ranks; what it threw on each, "" where nothing.
template <class F> std::vector<std::string> complaints(int n, F const& body) {
  std::vector<std::string> words;
  for (auto const& error : errors_of(n, body)) words.push_back(error == nullptr ? "" : words_of(error));
  return words;
}

/// The one complaint of all ranks, or "config_error: rank 2: …" where rank 2 has it and the others tell it of rank 2 as
/// mo::agree does; "they differ: …" otherwise.
template <class F> std::string complaint(int n, F const& body) {
  auto const all = complaints(n, body);
  if (std::equal(all.begin() + 1, all.end(), all.begin())) return all[0];
  for (int r = 0; r < n; ++r) {
    std::string const own = all[static_cast<std::size_t>(r)];
    auto const words = own.find(": ") + 2;
    auto const from = [&](std::string const& rank) { return own.substr(0, words) + rank + own.substr(words); };
    std::string const told = from(moiety::detail::sentence("rank ", r, " of the ", n, " that call together refused: "));
    if (own.empty() || std::count(all.begin(), all.end(), told) != n - 1) continue;
    return from(moiety::detail::sentence("rank ", r, ": "));
  }
  return "they differ: " + all[0] + " | " + all[1];
}

}  // namespace ranks

/// An empty folder for as long as the object lives.
class scratch_folder {
 public:
  scratch_folder() {
    std::string name = (std::filesystem::temp_directory_path() / "moiety_XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  scratch_folder(scratch_folder const&) = delete;
  scratch_folder& operator=(scratch_folder const&) = delete;
  ~scratch_folder() { std::filesystem::remove_all(path_); }

  std::string file(std::string const& name) const { return (path_ / name).string(); }
  /// The names of its files, in order.
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (auto const& entry : std::filesystem::directory_iterator(path_))
      all.push_back(entry.path().filename().string());
    std::sort(all.begin(), all.end());
    return all;
  }

 private:
  std::filesystem::path path_;
};

inline std::string contents(std::string const& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_file(std::string const& path, std::string const& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}
