// SPDX-License-Identifier: Apache-2.0
// Reads the files of tests/golden/transformers: safetensors of float64, float32 and int64, with metadata.
#pragma once

#include <bit>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace golden {

static_assert(std::endian::native == std::endian::little, "the files are little-endian, and read as they are.");

struct array {
  std::vector<std::size_t> shape;
  std::vector<double> reals;  // of both widths, as a double holds either; empty for integers
  std::vector<std::int64_t> integers;
};

// The part of JSON that a header uses: objects, strings, lists of whole numbers.
class json_reader {
 public:
  json_reader(std::string_view text, std::string const& file) : rest_(text), file_(file) {}

  template <class F> void object(F const& member) {
    for (expect('{'); !skip('}'); skip(',')) {
      std::string const name = string();
      expect(':');
      member(name);
    }
  }

  std::vector<std::size_t> list() {
    std::vector<std::size_t> numbers;
    for (expect('['); !skip(']'); skip(',')) {
      auto const* end = std::from_chars(rest_.data(), rest_.data() + rest_.size(), numbers.emplace_back()).ptr;
      if (end == rest_.data()) fail();
      rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
    }
    return numbers;
  }

  std::string string() {
    expect('"');
    auto const end = rest_.find_first_of("\"\\");  // make_golden.py writes no escapes
    if (end == rest_.npos || rest_[end] != '"') fail();
    std::string out(rest_.substr(0, end));
    rest_.remove_prefix(end + 1);
    return out;
  }

 private:
  [[noreturn]] void fail() const { throw std::runtime_error(file_ + ": bad header at " + std::string(rest_, 0, 20)); }

  bool skip(char c) {
    while (rest_.starts_with(' ')) rest_.remove_prefix(1);
    bool const found = rest_.starts_with(c);
    rest_.remove_prefix(found);
    return found;
  }

  void expect(char c) { skip(c) ? void() : fail(); }

  std::string_view rest_;
  std::string file_;
};

class file {
 public:
  explicit file(std::filesystem::path const& path) : name_(path.string()) {
    std::ifstream in(path, std::ios::binary);
    if (!in) fail("cannot be opened");
    std::string const bytes{std::istreambuf_iterator<char>(in), {}};
    std::uint64_t length = 0;
    if (bytes.size() >= sizeof length) std::memcpy(&length, bytes.data(), sizeof length);
    if (bytes.size() < sizeof length || length > bytes.size() - sizeof length) fail("is shorter than its header");
    std::string_view const rest = std::string_view(bytes).substr(sizeof length);
    json_reader header(rest.substr(0, length), name_);
    header.object([&](std::string const& name) {
      if (name != "__metadata__") return read(name, header, rest.substr(length));
      header.object([&](std::string const& key) { metadata_[key] = header.string(); });
    });
  }

  std::map<std::string, array> const& arrays() const { return arrays_; }
  std::vector<std::size_t> const& shape(std::string const& name) const { return find(arrays_, name).shape; }
  std::vector<double> const& reals(std::string const& name) const {
    if (!find(arrays_, name).integers.empty()) fail(name + " holds integers");
    return find(arrays_, name).reals;
  }
  std::vector<std::int64_t> const& integers(std::string const& name) const {
    if (!find(arrays_, name).reals.empty()) fail(name + " holds no integers");
    return find(arrays_, name).integers;
  }
  std::string const& text(std::string const& key) const { return find(metadata_, key); }
  double number(std::string const& key) const {
    char* end = nullptr;
    double const value = std::strtod(text(key).c_str(), &end);
    return end != text(key).c_str() && *end == '\0' ? value : (fail(key + " is no number: " + text(key)), value);
  }

 private:
  [[noreturn]] void fail(std::string const& what) const { throw std::runtime_error(name_ + ": " + what); }

  template <class T> T const& find(std::map<std::string, T> const& in, std::string const& key) const {
    return in.contains(key) ? in.at(key) : (fail("there is no " + key), in.at(key));
  }

  void read(std::string const& name, json_reader& header, std::string_view data) {
    array& to = arrays_[name];
    std::string kind;
    std::vector<std::size_t> offsets;
    header.object([&](std::string const& key) {
      if (key == "dtype") return void(kind = header.string());
      (key == "shape" ? to.shape : offsets) = header.list();
    });
    if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data.size()) fail(name + " is cut off");
    data = data.substr(offsets[0], offsets[1] - offsets[0]);
    if (kind == "F64") copy<double>(data, to.reals);
    if (kind == "F32") copy<float>(data, to.reals);
    if (kind == "I64") copy<std::int64_t>(data, to.integers);
    std::size_t count = 1;
    for (std::size_t const extent : to.shape) count *= extent;
    if (to.reals.size() + to.integers.size() != count) fail(name + " is not of its shape, or of no known kind");
  }

  template <class T, class To> static void copy(std::string_view data, std::vector<To>& to) {
    for (T value; data.size() >= sizeof value; data.remove_prefix(sizeof value)) {
      std::memcpy(&value, data.data(), sizeof value);
      to.push_back(value);
    }
  }

  std::string name_;
  std::map<std::string, array> arrays_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace golden
