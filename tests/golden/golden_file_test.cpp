// SPDX-License-Identifier: Apache-2.0
#include "golden/golden_file.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <unistd.h>

namespace {

std::filesystem::path const folder = std::filesystem::path(__FILE__).parent_path() / "transformers";

// A file in the temporary folder for as long as the object lives.
struct written {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("golden_file_test." + std::to_string(getpid()) + ".safetensors");
  explicit written(std::string const& header, std::string const& data = "", std::uint64_t more = 0) {
    std::uint64_t const length = header.size() + more;
    std::string bytes(sizeof length, '\0');
    std::memcpy(bytes.data(), &length, sizeof length);
    std::ofstream(path, std::ios::binary) << bytes << header << data;
  }
  ~written() { std::filesystem::remove(path); }
};

std::string complaint(std::filesystem::path const& path) {
  try {
    golden::file const file(path);
  } catch (std::exception const& error) {
    return std::string(error.what()).substr(path.string().size());
  }
  return "";
}

std::string complaint_of(std::string const& header, std::string const& data = "") {
  return complaint(written(header, data).path);
}

}  // namespace

TEST_CASE("a file gives arrays of three kinds, their shapes and the metadata") {
  std::string data(8 + 8 + 8, '\0');
  double const wide = 0.1;
  float const narrow[] = {0.5F, -3};
  std::int64_t const id = -7;
  std::memcpy(data.data(), &wide, 8);
  std::memcpy(data.data() + 8, narrow, 8);
  std::memcpy(data.data() + 16, &id, 8);
  written const source(R"({"__metadata__": {"note": "a: {b}, [c]", "k": "3"}, )"
                       R"("a": {"dtype": "F64", "shape": [], "data_offsets": [0, 8]}, )"
                       R"("b.c": {"dtype":"F32","shape":[1,2],"data_offsets":[8,16]},)"
                       R"("ids": {"dtype": "I64", "shape": [1], "data_offsets": [16, 24]}, )"
                       R"("none": {"dtype": "F64", "shape": [3, 0], "data_offsets": [24, 24]}}  )",
                       data);
  golden::file const file(source.path);
  CHECK(file.reals("a") == std::vector<double>{0.1});
  CHECK(file.shape("a").empty());
  CHECK(file.reals("b.c") == std::vector<double>{0.5, -3});
  CHECK(file.shape("b.c") == std::vector<std::size_t>{1, 2});
  CHECK(file.integers("ids") == std::vector<std::int64_t>{-7});
  CHECK(file.reals("none").empty());
  CHECK(file.text("note") == "a: {b}, [c]");
  CHECK(file.number("k") == 3);
  CHECK(file.arrays().contains("ids"));
  CHECK_FALSE(file.arrays().contains("id"));
  CHECK_THROWS_WITH(file.integers("a"), doctest::Contains("a holds no integers"));
  CHECK_THROWS_WITH(file.reals("ids"), doctest::Contains("ids holds integers"));
  CHECK_THROWS_WITH(file.reals("id"), doctest::Contains(".safetensors: there is no id"));
  CHECK_THROWS_WITH(file.number("note"), doctest::Contains("note is no number: a: {b}, [c]"));
  CHECK_THROWS_WITH(file.text("notes"), doctest::Contains(".safetensors: there is no notes"));
}

TEST_CASE("a file that is not whole, or of other kinds, says what is wrong") {
  CHECK(complaint(folder / "no_such_model.safetensors") == " cannot be opened: No such file or directory.");
  CHECK(complaint(written("{}", "", 1).path) == " is cut off: its header takes 3 bytes, but 2 are there.");
  CHECK(complaint_of(R"({"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}})", "1234567") ==
        ": the tensors take 8 bytes, but 7 follow the header.");
  CHECK(complaint_of(R"({"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}})", "12345678") ==
        ": a is of no kind that the files have");
}

TEST_CASE("every file of transformers is whole, and its gradients have the shapes of its weights") {
  int files = 0;
  for (auto const& entry : std::filesystem::directory_iterator(folder)) {
    CAPTURE(entry.path().string());
    golden::file const file(entry.path());
    ++files;
    CHECK(file.text("transformers") == "5.24.0");
    CHECK(file.text("model") == entry.path().stem().string());
    CHECK(file.number("tolerance") == (file.text("computes") == "float64 throughout" ? 1e-10 : 1e-5));
    for (auto const& [key, array] : file.arrays()) {
      std::string const& name = key;
      CAPTURE(name);
      if (name.starts_with("grad.") && file.arrays().contains("x"))
        CHECK(array.shape == file.shape("weight." + name.substr(5)));
      if (name.starts_with("float64.")) CHECK(array.shape == file.shape(name.substr(8)));
    }
    if (!file.arrays().contains("x")) continue;
    auto const tokens = static_cast<std::size_t>(file.number("tokens"));
    CHECK(file.shape("y") == file.shape("x"));
    CHECK(file.shape("dx") == file.shape("dy"));
    CHECK(file.shape("x").front() == tokens);
    CHECK(file.shape("router_logits") == std::vector{tokens, static_cast<std::size_t>(file.number("experts"))});
    CHECK(file.shape("top_k_index") == file.shape("top_k_weights"));
    for (std::int64_t const id : file.integers("top_k_index")) CHECK(static_cast<double>(id) < file.number("experts"));
    for (double const y : file.reals("y")) CHECK(std::isfinite(y));
  }
  CHECK(files == 23);
}
