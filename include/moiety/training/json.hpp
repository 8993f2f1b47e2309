// SPDX-License-Identifier: Apache-2.0
// The part of JSON that the header of a safetensors file consists of: objects, lists, strings, whole numbers.
//
//   json_reader in(text, "model.safetensors");
//   in.object([&](std::string const& name) { values[name] = in.whole_number(); });
//   in.end();
//
// The caller says what comes next, so nothing nests deeper than the caller asks. Strict, as RFC 8259 has it: no comma too
// many, no name twice in one object, no leading zero; strings are valid UTF-8 without bare control characters, and their
// escapes name code points that exist. Throws data_error with the file, the byte and what was expected there.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>

namespace moiety::inline MOIETY_ABI::detail {

/// The bytes of the valid UTF-8 character at the front of a text; 0 if there is none.
inline std::size_t utf8_length(std::string_view text) {
  auto const at = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  auto const continues = [&](std::size_t i, unsigned from = 0x80, unsigned to = 0xbf) {
    return at(i) >= from && at(i) <= to;
  };
  unsigned const lead = at(0);
  if (lead < 0x80) return text.empty() ? 0 : 1;
  if (lead >= 0xc2 && lead <= 0xdf) return continues(1) ? 2 : 0;
  unsigned const least = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;  // shorter forms exist below
  unsigned const most = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;   // surrogates, no code points above
  if (lead >= 0xe0 && lead <= 0xef) return continues(1, least, most) && continues(2) ? 3 : 0;
  if (lead >= 0xf0 && lead <= 0xf4) return continues(1, least, most) && continues(2) && continues(3) ? 4 : 0;
  return 0;
}

inline bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    std::size_t const length = utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

inline void append_utf8(std::string& to, std::uint32_t code) {
  auto const put = [&](std::uint32_t byte) { to += static_cast<char>(static_cast<unsigned char>(byte)); };
  auto const rest = [&](int shift) { put(0x80u | ((code >> shift) & 0x3fu)); };
  if (code < 0x80) return put(code);
  if (code < 0x800) return put(0xc0u | (code >> 6)), rest(0);
  if (code < 0x10000) return put(0xe0u | (code >> 12)), rest(6), rest(0);
  put(0xf0u | (code >> 18)), rest(12), rest(6), rest(0);
}

/// A text as a JSON string, with its quotes.
inline std::string json_quoted(std::string_view text) {
  constexpr char const* digits = "0123456789abcdef";
  std::string out = "\"";
  for (char const c : text) {
    auto const code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') out += '\\';
    if (code < 0x20)
      (out += "\\u00") += {digits[code >> 4], digits[code & 15]};
    else
      out += c;
  }
  return out += '"';
}

/// A name of any length and content for a message: quoted, and at most 64 bytes of it.
inline std::string shown(std::string_view name) {
  std::size_t length = 0;
  while (length < name.size() && length < 64) length += std::max<std::size_t>(utf8_length(name.substr(length)), 1);
  return json_quoted(name.substr(0, length)) + (length < name.size() ? "…" : "");
}

class json_reader {
 public:
  json_reader(std::string_view text, std::string_view file) : text_(text), file_(file) {}

  /// member(name) reads the value of each.
  template <class F> void object(F const& member) {
    std::set<std::string, std::less<>> names;
    items('{', '}', "a comma or the end of the object", [&] {
      std::size_t const begin = at_;
      std::string const name = string();
      if (!names.insert(name).second) fail(begin, "a name that the object does not have yet");
      expect(':', "a colon");
      member(name);
    });
  }

  /// element() reads each.
  template <class F> void list(F const& element) { items('[', ']', "a comma or the end of the list", element); }

  std::int64_t whole_number() {
    blanks();
    std::string_view const rest = text_.substr(at_);
    std::size_t digits = 0;
    while (digits < rest.size() && rest[digits] >= '0' && rest[digits] <= '9') ++digits;
    std::int64_t number = 0;
    auto const error = std::from_chars(rest.data(), rest.data() + digits, number).ec;
    bool const plain = digits > 0 && (digits == 1 || rest[0] != '0');
    bool const whole = digits == rest.size() || std::string_view(".eE").find(rest[digits]) == rest.npos;
    if (!plain || !whole || error != std::errc()) fail(at_, "a whole number from 0 to 2⁶³ − 1");
    at_ += digits;
    return number;
  }

  std::string string() {
    expect('"', "a string");
    std::string out;
    for (;;) {
      std::string_view const rest = text_.substr(at_);
      std::size_t const length = utf8_length(rest);
      if (length == 0 || static_cast<unsigned char>(rest[0]) < 0x20) fail(at_, "the rest of a string, in UTF-8");
      at_ += length;
      if (rest[0] == '"') return out;
      if (rest[0] == '\\')
        escape(out);
      else
        out += rest.substr(0, length);
    }
  }

  /// Nothing but blanks may follow.
  void end() {
    blanks();
    if (at_ != text_.size()) fail(at_, "nothing more");
  }

 private:
  template <class F> void items(char open, char close, char const* more, F const& item) {
    expect(open, open == '{' ? "an object" : "a list");
    if (skip(close)) return;
    for (item(); !skip(close); item()) expect(',', more);
  }

  void escape(std::string& out) {
    constexpr std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
    char const letter = at_ < text_.size() ? text_[at_] : '\0';
    if (auto const which = letters.find(letter); which != letters.npos) {
      ++at_;
      out += meanings[which];
      return;
    }
    std::size_t const begin = at_ - 1;
    std::uint32_t code = unit(begin);
    if (code >= 0xd800 && code < 0xdc00) {  // the first half of a pair
      bool const pair = text_.substr(at_).starts_with('\\');
      at_ += pair;
      std::uint32_t const low = pair ? unit(begin) : 0;
      if (low < 0xdc00 || low > 0xdfff) fail(begin, "both halves of a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xdc00 && code <= 0xdfff) {
      fail(begin, "both halves of a surrogate pair");
    }
    append_utf8(out, code);
  }

  /// The number of uXXXX.
  std::uint32_t unit(std::size_t begin) {
    std::string_view const digits = text_.substr(at_).substr(0, 5);
    std::uint32_t code = 0;
    char const* const last = digits.data() + digits.size();
    bool const is_unit = digits.size() == 5 && digits[0] == 'u';
    if (!is_unit || std::from_chars(digits.data() + 1, last, code, 16).ptr != last) fail(begin, "an escape of JSON");
    at_ += 5;
    return code;
  }

  void blanks() {
    while (at_ < text_.size() && std::string_view(" \t\n\r").find(text_[at_]) != std::string_view::npos) ++at_;
  }

  bool skip(char c) {
    blanks();
    bool const found = at_ < text_.size() && text_[at_] == c;
    at_ += found;
    return found;
  }

  void expect(char c, char const* what) {
    if (!skip(c)) fail(at_, what);
  }

  [[noreturn]] void fail(std::size_t at, char const* expected) const {
    std::string_view const rest = text_.substr(at);
    throw data_error(sentence(file_, ": byte ", at, " of the header: expected ", expected, ", but found ",
                              rest.empty() ? "its end" : shown(rest.substr(0, 24)), '.'));
  }

  std::string_view text_, file_;
  std::size_t at_ = 0;
};

}  // namespace moiety::inline MOIETY_ABI::detail
