// SPDX-License-Identifier: Apache-2.0
// Schedules as text, in the compute format of torch.distributed.pipelining.
//
//   0F0,0F1,0B0,(0F2;0B1)OVERLAP_F_B,0B2      one row a rank, actions between commas
//
// Written: rows joined by a newline, none at the end. Read: also blanks around cells, empty cells (bubbles), CR LF and a
// newline at the end. A row without any action is refused, and so are the files of the same format that list sends and
// receives: lower() makes these.
//
// Read, every stage must be on one rank, or all stages on two as in a bidirectional schedule: the first half of the
// micro-batches on one, the second half on its mirror image. Whether the schedule is sound is for verify() to say; but
// it must have as many actions as it has pairs of a stage and a micro-batch, so that no number in a cell asks for more
// memory than the text has earned.
//
// Throws schedule_error with row, cell and text.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/schedule/action.hpp>
#include <moiety/schedule/schedule.hpp>
#include <moiety/schedule/shape.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <istream>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

inline std::string to_csv(schedule_view const& plan) {
  detail::plain_text out;
  print(out, plan, ",");
  return std::move(out).str();
}

namespace detail {

inline std::string_view trimmed(std::string_view text) {
  constexpr std::string_view blanks = " \t\r";
  auto const first = text.find_first_not_of(blanks);
  return first == text.npos ? std::string_view{} : text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

/// Takes the text up to a separator, and the separator, off the front.
inline std::string_view take(std::string_view& text, char separator) {
  auto const at = std::min(text.find(separator), text.size());
  std::string_view const front = text.substr(0, at);
  text.remove_prefix(std::min(at + 1, text.size()));
  return front;
}

/// One cell of a table, for messages.
struct csv_cell {
  std::string_view text;
  std::size_t row, column;

  template <class... Parts> void require(bool condition, Parts const&... parts) const {
    if (condition) return;
    std::string_view const shown = text.substr(0, 40);
    detail::require<schedule_error>(false, "row ", row, ", cell ", column, ": '", shown,
                                    shown.size() < text.size() ? "…" : "", "' ", parts..., '.');
  }
};

/// The number at the front of a text, which is taken off.
inline int take_number(std::string_view& text, csv_cell const& cell) {
  int number = 0;
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  cell.require(error != std::errc::result_out_of_range, "has a number that is too large");
  cell.require(error == std::errc() && number >= 0, "is no action: expected <stage><F, B, I or W><micro-batch>");
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return number;
}

inline action parse_action(std::string_view text, csv_cell const& cell) {
  action result;
  result.stage = take_number(text, cell);
  constexpr std::string_view letters = "FBIW";
  for (std::string_view const other : {"SEND_", "RECV_", "UNSHARD", "RESHARD", "REDUCE_GRAD"})
    cell.require(!text.starts_with(other), "is communication: only tables of computations can be read");
  auto const type = text.empty() ? letters.npos : letters.find(text.front());
  cell.require(type != letters.npos, "is no action: expected <stage><F, B, I or W><micro-batch>");
  result.type = static_cast<computation>(type);
  text.remove_prefix(1);
  result.microbatch = take_number(text, cell);
  cell.require(text.empty(), "is no action: expected <stage><F, B, I or W><micro-batch>");
  return result;
}

/// Appends the actions of one cell.
inline void parse_cell(csv_cell const& cell, std::vector<action>& actions) {
  if (!cell.text.starts_with('(')) return actions.push_back(parse_action(cell.text, cell));
  constexpr std::string_view end = ")OVERLAP_F_B";
  cell.require(cell.text.ends_with(end), "is no joined step: expected (<action>;<action>)OVERLAP_F_B");
  std::string_view inside = cell.text.substr(1, cell.text.size() - 1 - end.size());
  cell.require(std::count(inside.begin(), inside.end(), ';') == 1, "must join two actions");
  actions.push_back(parse_action(trimmed(take(inside, ';')), cell));
  actions.push_back(parse_action(trimmed(inside), cell));
  actions.back().joined = true;
}

inline std::vector<std::vector<action>> parse_rows(std::string_view text) {
  std::vector<std::vector<action>> ranks;
  if (text.ends_with('\n')) text.remove_suffix(1);
  detail::require<schedule_error>(!trimmed(text).empty(), "the table of a schedule is empty.");
  for (bool more = true; more;) {
    more = text.find('\n') != text.npos;
    std::string_view row = take(text, '\n');
    ranks.emplace_back();
    for (std::size_t column = 1; !row.empty(); ++column) {
      csv_cell const cell{trimmed(take(row, ',')), ranks.size(), column};
      if (!cell.text.empty()) parse_cell(cell, ranks.back());
    }
    detail::require<schedule_error>(!ranks.back().empty(), "row ", ranks.size(), " has no action.");
  }
  return ranks;
}

/// The rank of each stage, for the first half of the micro-batches; −1 where none is known.
inline std::vector<int> find_homes(std::vector<std::vector<action>> const& ranks, int stages, int first_half) {
  std::vector<int> home(static_cast<std::size_t>(stages), -1);
  for (std::size_t r = 0; r < ranks.size(); ++r)
    for (action const& a : ranks[r])
      if (int& h = home[static_cast<std::size_t>(a.stage)]; a.microbatch < first_half && h < 0) h = static_cast<int>(r);
  return home;
}

/// The first action that is not where `home` has its stage, or null.
inline action const* find_stray(std::vector<std::vector<action>> const& ranks, std::vector<int> const& home,
                                int first_half) {
  int const last = static_cast<int>(ranks.size()) - 1;
  for (std::size_t r = 0; r < ranks.size(); ++r)
    for (action const& a : ranks[r]) {
      int const h = home[static_cast<std::size_t>(a.stage)];
      if (static_cast<int>(r) != (a.microbatch < first_half ? h : last - h)) return &a;
    }
  return nullptr;
}

}  // namespace detail

/// The schedule of a table. `name` is what verdicts and drawings call it.
inline schedule parse_csv(std::string_view text, std::string name = "csv") {
  auto const ranks = detail::parse_rows(text);
  pipeline_shape shape{.ranks = static_cast<int>(ranks.size()), .microbatches = 0};
  std::int64_t stages = 0, actions = 0, microbatches = 0;
  for (auto const& list : ranks)
    for (action const& a : list) {
      stages = std::max<std::int64_t>(stages, std::int64_t{a.stage} + 1);
      microbatches = std::max<std::int64_t>(microbatches, std::int64_t{a.microbatch} + 1);
      ++actions;
    }
  detail::require<schedule_error>(stages <= actions && microbatches <= actions / stages, "the table names ", stages,
                                  " stages and ", microbatches, " micro-batches, but has only ", actions, " actions.");
  shape.microbatches = static_cast<int>(microbatches);
  int const all = shape.microbatches, half = all - all / 2;
  auto home = detail::find_homes(ranks, static_cast<int>(stages), all);
  for (std::size_t s = 0; s < home.size(); ++s)
    detail::require<schedule_error>(home[s] >= 0, "no rank has an action of stage ", s, '.');
  bool bidirectional = false;
  if (action const* stray = detail::find_stray(ranks, home, all); stray != nullptr) {
    auto mirrored = detail::find_homes(ranks, static_cast<int>(stages), half);
    bidirectional = std::find(mirrored.begin(), mirrored.end(), -1) == mirrored.end() &&
                    detail::find_stray(ranks, mirrored, half) == nullptr;
    detail::require<schedule_error>(bidirectional, "stage ", stray->stage, " is on rank ",
                                    home[static_cast<std::size_t>(stray->stage)], " and, for micro-batch ",
                                    stray->microbatch, ", on another one.");
    home = std::move(mirrored);
  }
  for (int r = 0; r < shape.ranks; ++r)
    shape.chunks = std::max(shape.chunks, static_cast<int>(std::count(home.begin(), home.end(), r)));
  if (bidirectional) shape.chunks *= 2;
  return {std::move(name), shape, std::move(home), bidirectional, ranks};
}

inline schedule read_csv(std::istream& in, std::string name = "csv") {
  std::string const text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  return parse_csv(text, std::move(name));
}

}  // namespace moiety
