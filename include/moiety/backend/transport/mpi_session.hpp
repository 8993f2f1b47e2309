// SPDX-License-Identifier: Apache-2.0
// MPI from its first use to the end of the process.
//
// MPI is initialised with MPI_THREAD_SERIALIZED by the first who asks for it, unless the program has done so, and is then
// finalised when the process ends. Where a run has failed, ranks that do not come to their end within its deadline are ended
// with the whole job: MPI_Abort.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

inline bool mpi_finalised() {
  int yes = 0;
  MPI_Finalized(&yes);
  return yes != 0;
}

inline std::string mpi_text(int code) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  return {text, static_cast<std::size_t>(length)};
}

inline int largest_tag() {
  void* tag = nullptr;
  int known = 0;
  MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &tag, &known);
  return known != 0 ? *static_cast<int*>(tag) : 32767;  // which every MPI has
}

inline void require_thread_level(int provided) {
  char const* const name = provided == MPI_THREAD_SINGLE     ? "MPI_THREAD_SINGLE"
                           : provided == MPI_THREAD_FUNNELED ? "MPI_THREAD_FUNNELED"
                                                             : "an unknown level";
  require<config_error>(provided >= MPI_THREAD_SERIALIZED,
                        "the transport mpi requires MPI_THREAD_SERIALIZED, and MPI provides ", name,
                        ": leave its initialisation to the library, or use MPI_Init_thread.");
}

/// Memory that messages may need after the one who sent them has gone.
template <class T> T& keep_for_ever(T&& value) {
  static auto& kept = *new std::vector<std::shared_ptr<void>>;
  auto const it = std::make_shared<T>(std::forward<T>(value));
  kept.push_back(it);
  return *it;
}

template <std::size_t N> void copy_text(char (&to)[N], std::string_view text) {
  std::fill_n(to, N, '\0');
  std::copy_n(text.data(), std::min(text.size(), N - 1), to);
}

/// MPI until the end of the process.
class mpi_session {
 public:
  static mpi_session& get() {
    static mpi_session one;
    return one;
  }
  mpi_session(mpi_session const&) = delete;
  mpi_session& operator=(mpi_session const&) = delete;
  ~mpi_session() {
    if (!ours_ || mpi_finalised()) return;
    auto const begin = std::chrono::steady_clock::now();
    MPI_Request at_end = MPI_REQUEST_NULL;
    MPI_Ibarrier(MPI_COMM_WORLD, &at_end);
    for (int all = 0; MPI_Test(&at_end, &all, MPI_STATUS_IGNORE), all == 0;) {
      if (patience_ && std::chrono::steady_clock::now() - begin > *patience_) MPI_Abort(MPI_COMM_WORLD, 1);
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    MPI_Finalize();
  }

  /// A run has failed: its ranks are not waited for longer than its deadline at the end, or some seconds where that is short.
  void limit_patience(std::chrono::milliseconds deadline) {
    patience_ = std::max<std::chrono::milliseconds>(deadline, std::chrono::seconds(5));
  }

 private:
  mpi_session() {
    int initialised = 0;
    MPI_Initialized(&initialised);
    int provided = 0;
    if (initialised == 0) MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
    ours_ = initialised == 0;
  }

  bool ours_ = false;
  std::optional<std::chrono::milliseconds> patience_;
};

}  // namespace detail

}  // namespace moiety
