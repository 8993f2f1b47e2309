// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/posix_file.hpp>

#include "training/rank_files.hpp"

#include <doctest/doctest.h>

#include <sys/stat.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>

namespace mo = moiety;
using mo::detail::posix_file;

TEST_CASE("values beyond 4 GiB of a file are read where they were written") {
  scratch_folder const folder;
  std::int64_t const far = (std::int64_t{5} << 30) + 3;
  std::array<std::uint64_t, 2> const values{0x0123456789abcdef, 42};
  posix_file made = posix_file::create(folder.file("a-"));
  CHECK(made.path() == folder.file("a-0"));
  made.resize(far + 16);
  made.write(values.data(), 16, far);
  made.sync();
  posix_file moved = std::move(made);
  CHECK(moved.size() == far + 16);
  posix_file const file = posix_file::open_to_read(folder.file("a-0"));
  std::array<std::uint64_t, 2> read{};
  file.read(read.data(), 16, far);
  CHECK(read == values);
  file.read(read.data(), 0, far + 16);
  file.read(read.data(), 8, 5);
  CHECK(read[0] == 0);
  CHECK_THROWS_WITH_AS(file.read(read.data(), 16, far + 8), doctest::Contains("ends at byte 5368709139, before byte"),
                       mo::data_error);
}

TEST_CASE("a new file has a name that was not taken, and takes that of another") {
  scratch_folder const folder;
  write_file(folder.file("new0"), "kept");
  write_file(folder.file("old"), "old");
  posix_file file = posix_file::create(folder.file("new"));
  file.write("fresh", 5, 0);
  mo::detail::replace_file(file.path(), folder.file("old"));
  CHECK(contents(folder.file("old")) == "fresh");
  CHECK(contents(folder.file("new0")) == "kept");
  CHECK(folder.names() == std::vector<std::string>{"new0", "old"});
}

TEST_CASE("what fails says what the system said") {
  scratch_folder const folder;
  std::string const none = folder.file("none");
  CHECK_THROWS_WITH_AS(posix_file::open_to_read(none), (none + " cannot be opened: No such file or directory.").c_str(),
                       mo::data_error);
  CHECK_THROWS_WITH_AS(posix_file::open_to_write(none), doctest::Contains("none cannot be opened: No such file"),
                       mo::resource_error);
  CHECK_THROWS_WITH_AS(posix_file::create(none + "/a"), doctest::Contains("none/a0 cannot be created: No such file"),
                       mo::resource_error);
  CHECK_THROWS_WITH_AS(mo::detail::replace_file(none, folder.file("a")), doctest::Contains("a cannot be replaced: No"),
                       mo::resource_error);
  CHECK_THROWS_WITH_AS(posix_file::open_to_read(folder.file("")).size(), doctest::Contains("is not a file"),
                       mo::data_error);
  REQUIRE(::mkfifo(folder.file("pipe").c_str(), 0600) == 0);
  CHECK_THROWS_WITH_AS(posix_file::open_to_read(folder.file("pipe")).size(), doctest::Contains("is not a file"),
                       mo::data_error);
}

TEST_CASE("a full disk is an error of its file" * doctest::skip(!std::filesystem::exists("/dev/full"))) {
  posix_file full = posix_file::open_to_write("/dev/full");
  CHECK_THROWS_WITH_AS(full.write("abc", 3, 0), "/dev/full cannot be written: No space left on device.",
                       mo::resource_error);
}
