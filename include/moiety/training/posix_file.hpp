// SPDX-License-Identifier: Apache-2.0
// A file that is read and written at 64-bit places, by POSIX calls.
//
// Each call goes on after a part was transferred or a signal came, in pieces of at most 1 GiB. Throws data_error where a
// file cannot be read, resource_error where it cannot be written, with the file and what the system said.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <system_error>
#include <utility>

namespace moiety::inline MOIETY_ABI::detail {

static_assert(sizeof(off_t) == 8, "places in files are 64-bit.");

/// Throws Error with what the system says of a call that failed.
template <class Error> [[noreturn]] void throw_errno(std::string const& path, char const* what) {
  int const number = errno;
  throw Error(sentence(path, ' ', what, ": ", std::generic_category().message(number), '.'));
}

/// Calls a function of POSIX again as long as signals interrupt it.
template <class F> auto uninterrupted(F const& call) {
  for (;;) {
    auto const result = call();
    if (result >= 0 || errno != EINTR) return result;
  }
}

class posix_file {
  static constexpr std::int64_t piece = std::int64_t{1} << 30;

 public:
  static posix_file open_to_read(std::string path) {
    int const file = open_with(path, O_RDONLY | O_NONBLOCK);  // a pipe must not wait for its writer
    if (file < 0) throw_errno<data_error>(path, "cannot be opened");
    return {std::move(path), file};
  }
  /// To be read too.
  static posix_file open_to_write(std::string path) {
    int const file = open_with(path, O_RDWR);
    if (file < 0) throw_errno<resource_error>(path, "cannot be opened");
    return {std::move(path), file};
  }
  /// A new file, whose name is `stem` and a number that no file has yet.
  static posix_file create(std::string const& stem) {
    for (int number = 0;; ++number) {
      std::string path = stem + std::to_string(number);
      int const file = open_with(path, O_WRONLY | O_CREAT | O_EXCL);
      if (file >= 0) return {std::move(path), file};
      if (errno != EEXIST) throw_errno<resource_error>(path, "cannot be created");
    }
  }

  posix_file(posix_file&& other) noexcept : path_(std::move(other.path_)), file_(std::exchange(other.file_, -1)) {}
  posix_file& operator=(posix_file&&) = delete;
  ~posix_file() {
    if (file_ >= 0) ::close(file_);
  }

  std::string const& path() const { return path_; }

  std::int64_t size() const {
    struct stat about {};
    if (::fstat(file_, &about) != 0) throw_errno<data_error>(path_, "cannot be examined");
    require<data_error>(S_ISREG(about.st_mode), path_, " is not a file.");
    return about.st_size;
  }

  void resize(std::int64_t bytes) {
    if (uninterrupted([&] { return ::ftruncate(file_, bytes); }) != 0)
      throw_errno<resource_error>(path_, "cannot be given its size");
  }

  void read(void* to, std::int64_t bytes, std::int64_t from) const {
    auto* values = static_cast<std::byte*>(to);
    for (std::int64_t done = 0; done < bytes;) {
      auto const part = static_cast<std::size_t>(std::min(bytes - done, piece));
      auto const count = uninterrupted([&] { return ::pread(file_, values + done, part, from + done); });
      if (count < 0) throw_errno<data_error>(path_, "cannot be read");
      require<data_error>(count > 0, path_, " ends at byte ", from + done, ", before byte ", from + bytes, '.');
      done += count;
    }
  }

  void write(void const* from, std::int64_t bytes, std::int64_t to) {
    auto const* values = static_cast<std::byte const*>(from);
    for (std::int64_t done = 0; done < bytes;) {
      auto const part = static_cast<std::size_t>(std::min(bytes - done, piece));
      auto const count = uninterrupted([&] { return ::pwrite(file_, values + done, part, to + done); });
      if (count <= 0) throw_errno<resource_error>(path_, "cannot be written");
      done += count;
    }
  }

  /// Returns once the file is on its disk. Where a file system cannot promise that of a folder, it says EINVAL.
  void sync() {
    if (uninterrupted([&] { return ::fsync(file_); }) != 0 && errno != EINVAL)
      throw_errno<resource_error>(path_, "cannot be synced");
  }

 private:
  posix_file(std::string path, int file) : path_(std::move(path)), file_(file) {}
  static int open_with(std::string const& path, int flags) {
    return uninterrupted([&] { return ::open(path.c_str(), flags | O_CLOEXEC, 0666); });
  }

  std::string path_;
  int file_;
};

/// The file `from` takes the name `to`, whose file is gone. Both are in one folder.
inline void replace_file(std::string const& from, std::string const& to) {
  auto const slash = to.rfind('/');
  posix_file folder = posix_file::open_to_read(slash == to.npos ? "." : to.substr(0, slash + 1));
  if (std::rename(from.c_str(), to.c_str()) != 0) throw_errno<resource_error>(to, "cannot be replaced");
  folder.sync();
}

}  // namespace moiety::inline MOIETY_ABI::detail
