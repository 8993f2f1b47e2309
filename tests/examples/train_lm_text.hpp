// SPDX-License-Identifier: Apache-2.0
// What the tests of train_lm's runs read and write.
#pragma once

#include "../../examples/train_lm/text.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

/// The first bytes of the example's text, split for windows of this length.
inline lm::text austen(std::int64_t window, std::size_t size) {
  auto const path = std::filesystem::path(__FILE__).parent_path() / "../../examples/train_lm/data/austen.txt";
  std::vector<lm::byte> bytes = lm::read_file(path.string());
  bytes.resize(std::min(size, bytes.size()));
  return lm::split(std::move(bytes), window);
}

/// A file that is gone with this object.
struct temporary {
  std::string path = (std::filesystem::temp_directory_path() / ("train_lm_test." + std::to_string(getpid()) + '.' +
                                                                std::to_string(reinterpret_cast<std::uintptr_t>(this))))
                         .string();
  temporary() = default;
  temporary(temporary const&) = delete;
  temporary& operator=(temporary const&) = delete;
  ~temporary() { std::filesystem::remove(path); }
};
