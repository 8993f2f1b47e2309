// SPDX-License-Identifier: Apache-2.0
// Reads the files of tests/golden/transformers: safetensors of float64, float32 and int64, with metadata.
#pragma once

#include <moiety/training/posix_file.hpp>
#include <moiety/training/safetensors.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace golden {

struct array {
  std::vector<std::size_t> shape;
  std::vector<double> reals;  // of both widths, as a double holds either; empty for integers
  std::vector<std::int64_t> integers;
};

class file {
 public:
  explicit file(std::filesystem::path const& path) : name_(path.string()) {
    auto const source = moiety::detail::posix_file::open_to_read(name_);
    header_ = moiety::read_safetensors(source);
    for (auto const& [name, tensor] : header_.tensors) read(source, name, tensor);
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
  std::string const& text(std::string const& key) const { return find(header_.metadata, key); }
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

  void read(moiety::detail::posix_file const& source, std::string const& name, moiety::stored_tensor const& tensor) {
    array& to = arrays_[name];
    to.shape.assign(tensor.shape.begin(), tensor.shape.end());
    std::int64_t const place = header_.data + tensor.first;
    switch (tensor.type) {
      case moiety::tensor_type::f64: return copy<double>(source, place, tensor.bytes, to.reals);
      case moiety::tensor_type::f32: return copy<float>(source, place, tensor.bytes, to.reals);
      case moiety::tensor_type::i64: return copy<std::int64_t>(source, place, tensor.bytes, to.integers);
      default: fail(name + " is of no kind that the files have");
    }
  }

  template <class T, class To>
  static void copy(moiety::detail::posix_file const& source, std::int64_t place, std::int64_t bytes,
                   std::vector<To>& to) {
    std::vector<T> values(static_cast<std::size_t>(bytes) / sizeof(T));
    source.read(values.data(), bytes, place);
    to.assign(values.begin(), values.end());
  }

  std::string name_;
  std::map<std::string, array> arrays_;
  moiety::safetensors_header header_;
};

}  // namespace golden
