// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/json.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

namespace mo = moiety;
using mo::detail::json_reader;

namespace {

/// What is said of a text as an object of whole numbers, "" if it is one.
std::string complaint(std::string const& text) {
  json_reader in(text, "f");
  try {
    in.object([&](std::string const&) { in.whole_number(); });
    in.end();
  } catch (mo::data_error const& error) {
    return error.what();
  }
  return "";
}

std::string string_of(std::string const& text) {
  json_reader in(text, "f");
  std::string const value = in.string();
  in.end();
  return value;
}

}  // namespace

TEST_CASE("objects, lists, whole numbers and strings are read, with blanks anywhere") {
  std::string const text = " { \"a\" :\t[ 0 , 12,\r\n9223372036854775807 ] ,\"\":[],\"b\":[7]}\n ";
  json_reader in(text, "f");
  std::map<std::string, std::vector<std::int64_t>> read;
  in.object([&](std::string const& name) { in.list([&] { read[name].push_back(in.whole_number()); }); });
  in.end();
  CHECK(read["a"] == std::vector<std::int64_t>{0, 12, std::numeric_limits<std::int64_t>::max()});
  CHECK(read["b"] == std::vector<std::int64_t>{7});
  CHECK(read.size() == 2);
}

TEST_CASE("escapes of strings, and what is quoted is read again") {
  CHECK(string_of(R"("\"\\\/\b\f\n\r\t")") == "\"\\/\b\f\n\r\t");
  CHECK(string_of(R"("\u0041\u00e9\u20AC\ud83d\uDE00")") == "Aé€😀");
  CHECK(string_of("\"é€😀\"") == "é€😀");
  CHECK(string_of(R"("a\u0000b")") == std::string("a\0b", 3));
  for (std::string const& text : {std::string("a\"b\\c/\n\t"), std::string("\0\x1f\x7f", 3), std::string("é€😀 ")})
    CHECK(string_of(mo::detail::json_quoted(text)) == text);
  CHECK(mo::detail::json_quoted("a\n\"") == R"("a\u000a\"")");
}

TEST_CASE("every code point is written and read as UTF-8, surrogates are none") {
  int valid = 0;
  for (std::uint32_t code = 0; code < 0x111000; code += 7) {
    std::string text;
    mo::detail::append_utf8(text, code);
    bool const is_point = code < 0xd800 || (code > 0xdfff && code < 0x110000);
    valid += mo::detail::utf8_length(text) == text.size();
    if (mo::detail::is_utf8(text) != is_point) FAIL_CHECK(code);
    if (text.size() > 1 && mo::detail::is_utf8(text.substr(0, text.size() - 1))) FAIL_CHECK(code);
  }
  CHECK(valid == (0x110000 - 0x800 + 6) / 7);
  for (char const* overlong : {"\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf", "\xf5\x80\x80\x80", "\x80"})
    CHECK_FALSE(mo::detail::is_utf8(overlong));
}

TEST_CASE("names in messages are short") {
  CHECK(mo::detail::shown("a\"b") == R"("a\"b")");
  CHECK(mo::detail::shown(std::string(64, 'x')) == '"' + std::string(64, 'x') + '"');
  CHECK(mo::detail::shown(std::string(63, 'x') + "éy") == '"' + std::string(63, 'x') + "é\"…");
  CHECK(mo::detail::shown("\xff") == "\"\xff\"");
}

TEST_CASE("what is not strict JSON is refused with its place") {
  CHECK(complaint(R"({"a":1})") == "");
  CHECK(complaint("") == "f: byte 0 of the header: expected an object, but found its end.");
  CHECK(complaint("[1]") == R"(f: byte 0 of the header: expected an object, but found "[1]".)");
  CHECK(complaint("{") == "f: byte 1 of the header: expected a string, but found its end.");
  CHECK(complaint("{a:1}") == R"(f: byte 1 of the header: expected a string, but found "a:1}".)");
  CHECK(complaint(R"({"a" 1})") == R"(f: byte 5 of the header: expected a colon, but found "1}".)");
  CHECK(complaint(R"({"a":1,})") == R"(f: byte 7 of the header: expected a string, but found "}".)");
  CHECK(complaint(R"({"a":1 "b":2})") ==
        R"(f: byte 7 of the header: expected a comma or the end of the object, but found "\"b\":2}".)");
  CHECK(complaint(R"({"a":1,"\u0061":2})") ==
        R"(f: byte 7 of the header: expected a name that the object does not have yet, but found "\"\\u0061\":2}".)");
  CHECK(complaint(R"({"a":1}})") == R"(f: byte 7 of the header: expected nothing more, but found "}".)");
  CHECK(complaint(R"({"a)") == "f: byte 3 of the header: expected the rest of a string, in UTF-8, but found its end.");
  CHECK(complaint("{\"a\n\":1}").starts_with("f: byte 3 of the header: expected the rest of a string, in UTF-8"));
  CHECK(complaint("{\"a\xff\":1}").starts_with("f: byte 3 of the header: expected the rest of a string, in UTF-8"));
  for (char const* number : {"-1", "01", "1.0", "1e3", "+1", "9223372036854775808", "null", "\"1\"", "{}", "[[", ""})
    CHECK(complaint(std::string(R"({"a":)") + number + '}')
              .starts_with("f: byte 5 of the header: expected a whole number from 0 to 2⁶³ − 1, but found "));
  for (char const* escape : {"\\x", "\\u12", "\\u12g4", "\\u-123", "\\"})
    CHECK(complaint(std::string("{\"") + escape).starts_with("f: byte 2 of the header: expected an escape of JSON"));
  for (char const* half : {"\\ud800", "\\ud800\\u0041", "\\ud800x", "\\udc00", "\\ud800\\ud800"})
    CHECK(complaint(std::string("{\"") + half + "\":1}")
              .starts_with("f: byte 2 of the header: expected both halves of a surrogate pair"));
}
