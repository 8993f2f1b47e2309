// SPDX-License-Identifier: Apache-2.0
// The command line of an example: one table gives parsing, defaults and the text of --help.
#pragma once

#include <algorithm>
#include <charconv>
#include <concepts>
#include <cstddef>
#include <functional>
#include <iomanip>
#include <ostream>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace command_line {

/// A command line that cannot be obeyed.
struct usage_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void require(bool holds, char const* sentence) {
  if (!holds) throw usage_error(sentence);
}

struct option {
  std::string name, value, help;  // an empty value marks a switch
  std::function<void(std::string const&)> set;
};

inline void store(std::string const&, std::string const& text, std::string& to) { to = text; }

template <class Number>
requires std::integral<Number> || std::floating_point<Number>
void store(std::string const& name, std::string const& text, Number& to) {
  Number parsed{};
  char const* const end = text.data() + text.size();
  auto const [stop, error] = std::from_chars(text.data(), end, parsed);
  if (error != std::errc{} || stop != end) throw usage_error(name + " needs a number, not \"" + text + "\".");
  to = parsed;
}

template <class Value> option with_value(std::string name, std::string value, std::string const& help, Value& to) {
  std::ostringstream text;
  text << help;
  if (std::ostringstream current; current << to, !current.str().empty()) text << " [" << current.str() << ']';
  return {name, std::move(value), text.str(), [name, &to](std::string const& given) { store(name, given, to); }};
}

inline option flag(std::string name, std::string help, bool& to, bool value) {
  return {std::move(name), "", std::move(help), [&to, value](std::string const&) { to = value; }};
}

inline void print(std::ostream& out, std::vector<option> const& table) {
  std::size_t width = 0;
  for (option const& o : table) width = std::max(width, o.name.size() + o.value.size() + 3);
  for (option const& o : table)
    out << "  " << std::left << std::setw(static_cast<int>(width)) << o.name + ' ' + o.value << o.help << '\n';
}

/// Sets what the arguments name. Throws usage_error for an unknown option, or a missing or malformed value.
inline void parse(std::span<char const* const> arguments, std::vector<option> const& table) {
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    std::string const name = arguments[i];
    auto const found = std::find_if(table.begin(), table.end(), [&](option const& o) { return o.name == name; });
    if (found == table.end()) throw usage_error("unknown option " + name + ".");
    if (!found->value.empty() && i + 1 == arguments.size()) throw usage_error(name + " needs a value.");
    found->set(found->value.empty() ? "" : arguments[++i]);
  }
}

}  // namespace command_line
