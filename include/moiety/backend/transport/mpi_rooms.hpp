// SPDX-License-Identifier: Apache-2.0
// Memory of a process that other processes of its machine read.
//
// It is a file without a name (Linux: memfd_create), which others open by its process and descriptor, as /proc has them. Not
// every system has that, nor lets every process read every other: who relies on it tries first.
#pragma once

#include <moiety/core/config.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// A file in memory as this process sees it.
class mapped_file {
 public:
  mapped_file() = default;
  /// All of it; nothing where the system does not let it.
  mapped_file([[maybe_unused]] int file, [[maybe_unused]] bool writes) {
#if defined(__linux__)
    struct stat about {};
    if (::fstat(file, &about) != 0 || about.st_size == 0) return;
    void* const at = ::mmap(nullptr, static_cast<std::size_t>(about.st_size), PROT_READ | (writes ? PROT_WRITE : 0),
                            MAP_SHARED | MAP_POPULATE, file, 0);
    if (at != MAP_FAILED) data_ = static_cast<std::byte*>(at), size_ = about.st_size;
#endif
  }
  mapped_file(mapped_file&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  mapped_file& operator=(mapped_file other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~mapped_file() {
#if defined(__linux__)
    if (data_ != nullptr) ::munmap(data_, static_cast<std::size_t>(size_));
#endif
  }

  std::byte* data() const { return data_; }
  std::int64_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t size_ = 0;
};

/// Where rows lie in a room: `at` bytes from its beginning. A negative file: nowhere that others can read.
struct room_place {
  std::int32_t process = 0, file = -1;
  std::int64_t at = 0;
};

/// Memory of this process that others can read, if the system has such files. It grows where more is asked for; what it held
/// is lost then.
class shared_room {
 public:
  shared_room() = default;
  shared_room(shared_room const&) = delete;
  shared_room& operator=(shared_room const&) = delete;
  ~shared_room() {
#if defined(__linux__)
    if (file_ >= 0) ::close(file_);
#endif
  }

  /// Room for so many bytes; null where there is none.
  std::byte* of(std::int64_t bytes) {
    if (bytes > mapped_.size()) grow(bytes);
    return mapped_.data();
  }
  /// Where a part of it lies.
  room_place place([[maybe_unused]] std::byte const* part) const {
#if defined(__linux__)
    if (file_ >= 0) return {::getpid(), file_, part - mapped_.data()};
#endif
    return {};
  }

 private:
  /// By a quarter more, so that readers seldom have to map it again.
  void grow([[maybe_unused]] std::int64_t bytes) {
#if defined(__linux__)
    constexpr std::int64_t piece = 1 << 16;
    std::int64_t const whole = (bytes / 4 * 5 + piece) / piece * piece;
    mapped_ = {};
    if (file_ < 0) file_ = ::memfd_create("moiety", MFD_CLOEXEC);
    if (file_ >= 0 && ::posix_fallocate(file_, 0, whole) == 0) mapped_ = mapped_file(file_, true);
    if (mapped_.size() < bytes) mapped_ = {};
#endif
  }

  int file_ = -1;
  mapped_file mapped_;
};

/// Rooms of other processes, as this one reads them.
class rooms_of_others {
 public:
  /// `bytes` at a place; null where they cannot be read.
  std::byte const* read(room_place const& place, std::int64_t bytes) {
    auto const known = std::find_if(views_.begin(), views_.end(), [&](view const& v) {
      return v.of.process == place.process && v.of.file == place.file;
    });
    view& it = known != views_.end() ? *known : views_.emplace_back(view{place, {}});
    auto const holds = [&] { return place.at >= 0 && bytes <= it.memory.size() - place.at; };
    if (!holds()) it.memory = map(place);
    return holds() ? it.memory.data() + place.at : nullptr;
  }

 private:
  struct view {
    room_place of;
    mapped_file memory;
  };

  static mapped_file map([[maybe_unused]] room_place const& place) {
    mapped_file made;
#if defined(__linux__)
    std::string const path = "/proc/" + std::to_string(place.process) + "/fd/" + std::to_string(place.file);
    int const file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) return made;
    made = mapped_file(file, false);
    ::close(file);
#endif
    return made;
  }

  std::vector<view> views_;
};

}  // namespace detail

}  // namespace moiety
