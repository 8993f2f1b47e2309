// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/safetensors.hpp>

#include "training/rank_files.hpp"

#include <moiety/core/random.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace mo = moiety;
using mo::tensor_type;

namespace {

std::string complaint_of_bytes(std::string const& bytes) {
  scratch_folder const folder;
  write_file(folder.file("f"), bytes);
  try {
    mo::read_safetensors(folder.file("f"));
  } catch (mo::data_error const& error) {
    return std::string(error.what()).substr(folder.file("f").size());
  }
  return "";
}

std::string little_endian(std::uint64_t n) {
  std::string bytes(8, '\0');
  for (char& c : bytes) c = static_cast<char>(n & 0xff), n >>= 8;
  return bytes;
}

/// What is said of a header before so many bytes of data.
std::string complaint(std::string_view header, std::int64_t data) {
  try {
    mo::parse_safetensors(header, data, "f");
  } catch (mo::data_error const& error) {
    return error.what();
  }
  return "";
}

std::string one(std::string const& type, std::string const& shape, std::string const& offsets) {
  return R"({"a":{"dtype":")" + type + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

}  // namespace

TEST_CASE("a header is written as the format has it, widest types first, the data aligned") {
  mo::safetensors_header header;
  header.tensors["b"] = {.type = tensor_type::u8, .shape = {3}};
  header.tensors["c"] = {.type = tensor_type::f64, .shape = {}};
  header.tensors["a\""] = {.type = tensor_type::bf16, .shape = {2, 0}};
  header.tensors["d"] = {.type = tensor_type::bf16, .shape = {2, 1}};
  header.metadata = {{"k", "v\n"}, {"step", "7"}};
  std::string const text = mo::write_safetensors(header);
  std::string const expected = R"({"__metadata__":{"k":"v\u000a","step":"7"},)"
                               R"("c":{"dtype":"F64","shape":[],"data_offsets":[0, 8]},)"
                               R"("a\"":{"dtype":"BF16","shape":[2, 0],"data_offsets":[8, 8]},)"
                               R"("d":{"dtype":"BF16","shape":[2, 1],"data_offsets":[8, 12]},)"
                               R"("b":{"dtype":"U8","shape":[3],"data_offsets":[12, 15]}})";
  std::string const padded = expected + std::string((8 - expected.size() % 8) % 8, ' ');
  CHECK(text == little_endian(padded.size()) + padded);
  CHECK(header.data == static_cast<std::int64_t>(text.size()));
  CHECK(header.data % 8 == 0);
  CHECK(header.data_bytes() == 15);
  auto const again = mo::parse_safetensors(std::string_view(text).substr(8), 15, "f");
  CHECK(again.tensors == header.tensors);
  CHECK(again.metadata == header.metadata);
  CHECK(again.data == header.data);
}

TEST_CASE("a file of others is read: any order of fields and tensors, blanks, no metadata") {
  std::string const text =
      "{\"z\" : {\"data_offsets\":[12,16] ,\"shape\":[ 2 ],\"dtype\":\"F16\"},\n"
      "\"y\":{\"dtype\":\"I32\",\"shape\":[1,3],\"data_offsets\":[0,12]}}   ";
  scratch_folder const folder;
  write_file(folder.file("f"), little_endian(text.size()) + text + std::string(16, 'x'));
  auto const header = mo::read_safetensors(folder.file("f"));
  CHECK(header.tensors.size() == 2);
  CHECK(header.tensors.at("z") == mo::stored_tensor{tensor_type::f16, {2}, 12, 4});
  CHECK(header.tensors.at("y") == mo::stored_tensor{tensor_type::i32, {1, 3}, 0, 12});
  CHECK(header.metadata.empty());
  CHECK(header.data == static_cast<std::int64_t>(8 + text.size()));
}

TEST_CASE("a file that is none is refused") {
  CHECK(complaint_of_bytes("") == " has 0 bytes: too few for a safetensors file.");
  CHECK(complaint_of_bytes("1234567") == " has 7 bytes: too few for a safetensors file.");
  CHECK(complaint_of_bytes("\x7f"
                           "ELF 12345") ==
        " has a header of 3689065059457975679 bytes, or is no safetensors file: at most 100000000 are allowed.");
  CHECK(complaint_of_bytes(std::string(16, '\xff')).starts_with(" has a header of 18446744073709551615 bytes"));
  CHECK(complaint_of_bytes(little_endian(100'000'001) + "{}").starts_with(" has a header of 100000001 bytes"));
  CHECK(complaint_of_bytes(little_endian(100'000'000) + "{}") ==
        " is cut off: its header takes 100000000 bytes, but 2 are there.");
  CHECK(complaint_of_bytes(little_endian(0)) == ": the header does not begin with '{'.");
  CHECK(complaint_of_bytes(little_endian(2) + "{}x") == ": the tensors take 0 bytes, but 1 follow the header.");
  CHECK(complaint_of_bytes(little_endian(2) + "{}") == "");
}

TEST_CASE("a header that is not whole, strict or true is refused") {
  struct row {
    std::string header;
    std::int64_t data;
    std::string expected;
  };
  std::string const a = R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]})";
  auto const with_b = [&](char const* offsets, char const* shape = "[4]") {
    return '{' + a + R"(,"b":{"dtype":"U8","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  std::vector<row> const rows{
      {"", 0, "f: the header does not begin with '{'."},
      {" {}", 0, "f: the header does not begin with '{'."},
      {"[]", 0, "f: the header does not begin with '{'."},
      {"{", 0, "byte 1 of the header: expected a string, but found its end."},
      {"{} x", 0, "byte 3 of the header: expected nothing more"},
      {"{}{}", 0, "byte 2 of the header: expected nothing more"},
      {std::string("{}\0", 3), 0, "byte 2 of the header: expected nothing more, but found \"\\u0000\"."},
      {'{' + a + ",}", 4, "expected a string, but found \"}\"."},
      {'{' + a + ',' + a + '}', 4, "expected a name that the object does not have yet"},
      {R"({"a":1})", 4, "byte 5 of the header: expected an object, but found \"1}\"."},
      {R"({"a":null})", 4, "byte 5 of the header: expected an object"},
      {R"({"a":[]})", 4, "byte 5 of the header: expected an object"},
      {R"({"a":{}})", 4, "f: tensor \"a\" must have dtype, shape and data_offsets, each once."},
      {R"({"a":{"dtype":"U8","shape":[4]}})", 4, "f: tensor \"a\" must have dtype, shape and data_offsets, each once."},
      {R"({"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 4, "does not have yet"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1}})", 4,
       "f: tensor \"a\" has a field \"x\", not only dtype, shape and data_offsets."},
      {R"({"a":{"dtype":8,"shape":[4],"data_offsets":[0,4]}})", 4, "byte 14 of the header: expected a string"},
      {R"({"a":{"dtype":"U8","shape":4,"data_offsets":[0,4]}})", 4, "expected a list, but found \"4,"},
      {R"({"a":{"dtype":"U8","shape":[[4]],"data_offsets":[0,4]}})", 4, "expected a whole number"},
      {one("F8_E4M3", "[4]", "[0,4]"), 4,
       "f: tensor \"a\" is of type \"F8_E4M3\", not F64, F32, F16, BF16, I64, U64, I32 or U8."},
      {one("u8", "[4]", "[0,4]"), 4, "f: tensor \"a\" is of type \"u8\", not F64"},
      {one("", "[4]", "[0,4]"), 4, "f: tensor \"a\" is of type \"\", not F64"},
      {one("U8", "[-4]", "[0,4]"), 4, "expected a whole number from 0 to 2⁶³ − 1, but found \"-4]"},
      {one("U8", "[4.0]", "[0,4]"), 4, "expected a whole number from 0 to 2⁶³ − 1, but found \"4.0]"},
      {one("U8", "[4e0]", "[0,4]"), 4, "expected a whole number from 0 to 2⁶³ − 1, but found \"4e0]"},
      {one("U8", "[18446744073709551620]", "[0,4]"), 4, "expected a whole number from 0 to 2⁶³ − 1"},
      {one("F32", "[4611686018427387904,4]", "[0,4]"), 4, "f: tensor \"a\" has a shape of too many values."},
      {one("U8", "[4294967296,4294967296,4]", "[0,0]"), 0, "f: tensor \"a\" has a shape of too many values."},
      {one("U8", "[9223372036854775807,2,0]", "[0,0]"), 0, "f: tensor \"a\" has a shape of too many values."},
      {one("U8", "[4]", "[0,3]"), 3, "f: tensor \"a\" takes 3 bytes of the file, but its shape and type 4."},
      {one("F32", "[4]", "[0,4]"), 4, "f: tensor \"a\" takes 4 bytes of the file, but its shape and type 16."},
      {one("F32", "[]", "[0,0]"), 0, "f: tensor \"a\" takes 0 bytes of the file, but its shape and type 4."},
      {one("U8", "[4]", "[4,0]"), 4, "f: tensor \"a\" has data_offsets [4, 0], not a begin and an end."},
      {one("U8", "[4]", "[0]"), 4, "f: tensor \"a\" has data_offsets [0], not a begin and an end."},
      {one("U8", "[4]", "[0,4,8]"), 4, "f: tensor \"a\" has data_offsets [0, 4, 8], not a begin and an end."},
      {one("U8", "[4]", "[]"), 4, "f: tensor \"a\" has data_offsets [], not a begin and an end."},
      {one("U8", "[4]", "[0,4]"), 3, "f: the tensors take 4 bytes, but 3 follow the header."},
      {one("U8", "[4]", "[0,4]"), 5, "f: the tensors take 4 bytes, but 5 follow the header."},
      {one("U8", "[4]", "[1,5]"), 5,
       "f: tensor \"a\" begins at byte 1 of the data, but the tensors before it end at byte 0."},
      {one("U8", "[1]", "[9223372036854775806,9223372036854775807]"), 1,
       "f: tensor \"a\" begins at byte 9223372036854775806"},
      {with_b("[5,9]"), 9, "f: tensor \"b\" begins at byte 5 of the data, but the tensors before it end at byte 4."},
      {with_b("[3,7]"), 7, "f: tensor \"b\" begins at byte 3 of the data, but the tensors before it end at byte 4."},
      {with_b("[0,4]"), 4, "begins at byte 0 of the data, but the tensors before it end at byte 4."},
      {with_b("[2,2]", "[0]"), 4,
       "f: tensor \"b\" begins at byte 2 of the data, but the tensors before it end at byte 4."},
      {R"({"__metadata__":[]})", 0, "byte 16 of the header: expected an object"},
      {R"({"__metadata__":null})", 0, "byte 16 of the header: expected an object"},
      {R"({"__metadata__":{"a":1}})", 0, "byte 21 of the header: expected a string"},
      {R"({"__metadata__":{"a":"1","a":"2"}})", 0, "byte 25 of the header: expected a name"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "byte 19 of the header: expected a name"},
      {"{\"\xff\":{}}", 0, "byte 2 of the header: expected the rest of a string, in UTF-8"},
      {std::string(200'000, '{'), 0, "byte 1 of the header: expected a string"},
      {R"({"a":)" + std::string(200'000, '['), 0, "byte 5 of the header: expected an object"},
  };
  for (row const& of : rows) {
    std::string const said = complaint(of.header, of.data);
    CAPTURE(of.header.substr(0, 100));
    CAPTURE(said);
    CHECK(said.starts_with("f: "));
    CHECK(said.ends_with("."));
    CHECK(said.size() < 300);
    CHECK(said.find(of.expected) != said.npos);
  }
  CHECK(complaint(with_b("[4,8]"), 8) == "");
  CHECK(complaint(with_b("[4,4]", "[0]"), 4) == "");
  CHECK(complaint(with_b("[0,0]", "[0]"), 4) == "");
}

TEST_CASE("a file is not written that cannot be read") {
  mo::safetensors_header header;
  header.tensors["a"] = {.type = tensor_type::u8, .shape = {std::numeric_limits<std::int64_t>::max() / 3}};
  header.tensors["b"] = header.tensors["a"];
  CHECK_THROWS_WITH_AS(mo::write_safetensors(header), "tensor \"b\" makes a file of too many bytes.", mo::config_error);
  header.tensors["b"] = {.type = tensor_type::f32, .shape = {std::int64_t{1} << 62}};
  CHECK_THROWS_WITH_AS(mo::write_safetensors(header), "tensor \"b\" makes a file of too many bytes.", mo::config_error);
  header.tensors.clear();
  header.metadata["long"] = std::string(100'000'000, 'x');
  CHECK_THROWS_WITH_AS(mo::write_safetensors(header), doctest::Contains("above 100000000."), mo::config_error);
}

TEST_CASE("any damage to a header gives an error, or a header that tiles the data") {
  mo::safetensors_header header;
  header.metadata = {{"step", "12"}, {"é", "\n"}};
  header.tensors["layers.0.router.weight"] = {.type = tensor_type::f32, .shape = {4, 16}};
  header.tensors["layers.0.up"] = {.type = tensor_type::bf16, .shape = {4, 8, 16}};
  header.tensors["bias"] = {.type = tensor_type::f64, .shape = {}};
  std::string const text = mo::write_safetensors(header).substr(8);
  std::int64_t const data = header.data_bytes();
  std::string const likely = std::string("{}[]\",:0123456789\\u -eE.\x80\xc3\xff") + '\0';
  int read = 0;
  std::uint64_t drawn = 0;
  auto const draw = [&](std::uint64_t below) { return mo::random_word(mo::seed{3}, 0, drawn++) % below; };
  for (int i = 0; i < 20'000; ++i) {
    std::string hurt = text;
    for (std::uint64_t changes = 1 + draw(3); changes > 0; --changes) {
      std::size_t const at = draw(hurt.size());
      switch (draw(5)) {
        case 0: hurt[at] = static_cast<char>(hurt[at] ^ (1 << draw(8))); break;
        case 1: hurt[at] = likely[draw(likely.size())]; break;
        case 2: hurt.erase(at, 1 + draw(8)); break;
        case 3: hurt.insert(at, 1, likely[draw(likely.size())]); break;
        default: hurt.insert(at, hurt.substr(draw(hurt.size()), draw(40)));
      }
      if (hurt.empty()) hurt = " ";
    }
    try {
      auto const parsed = mo::parse_safetensors(hurt, data, "f");
      ++read;
      if (parsed.data_bytes() != data) FAIL_CHECK(hurt);
    } catch (mo::data_error const& error) {
      if (std::string_view(error.what()).size() < 10) FAIL_CHECK(hurt);
    }
  }
  for (std::size_t length = 0; length + 8 < text.size(); ++length)
    if (complaint(text.substr(0, length), data).empty()) FAIL_CHECK(length);
  CHECK(read > 100);
  CHECK(read < 10'000);
}
