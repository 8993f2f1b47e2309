// SPDX-License-Identifier: Apache-2.0
// A schedule as a picture of time: text for a terminal, SVG for a page.
//
//   std::cout << mo::draw(plan);
//
//   gpipe: 2 ranks, 1 chunk, 2 micro-batches; makespan 9, bubble 3, idle 33.3 %
//   rank 0 |F0  F1  ............B0      B1      |
//   rank 1 |....F0  F1  B0      B1      ........|
//
// Letters are those of actions, small for every second chunk of a rank (in a bidirectional schedule: for the second half of
// the micro-batches), followed by the micro-batch where there is room; dots are idle time; F4+b1 is a joined step. The text
// is as wide as asked for at most, unless that is too narrow to show anything.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/schedule/action.hpp>
#include <moiety/schedule/analysis.hpp>
#include <moiety/schedule/costs.hpp>
#include <moiety/schedule/schedule.hpp>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// One step on one rank's line of time.
struct box {
  int rank;
  std::int64_t start, end;
  action const* first;
  action const* second;  // of a joined step, else null
};

template <cost_model Costs> std::vector<box> boxes_of(schedule_view const& plan, Costs const& costs) {
  std::vector<std::int64_t> const starts = start_times(plan, costs);
  std::vector<box> boxes;
  for (int r = 0; r < plan.ranks(); ++r)
    for (action const* a = plan.begin(r); a != plan.end(r); ++a) {
      bool const joined = a + 1 != plan.end(r) && a[1].joined;
      std::int64_t const start = starts[static_cast<std::size_t>(plan.index(a))];
      std::int64_t const time = joined ? joined_duration(costs, *a, a[1]) : costs.of_stage(a->stage).of(a->type);
      boxes.push_back({r, start, start + time, a, joined ? a + 1 : nullptr});
      if (joined) ++a;
    }
  return boxes;
}

/// Whether an action belongs to every second chunk of its rank.
inline bool second_chunk(schedule_view const& plan, action const& a) {
  if (plan.bidirectional()) return a.microbatch >= plan.microbatches() - plan.microbatches() / 2;
  return a.stage / plan.ranks() % 2 == 1;
}

inline std::string label(schedule_view const& plan, action const& a, bool with_microbatch) {
  char const upper = letter(a.type);
  std::string text(1, second_chunk(plan, a) ? static_cast<char>(std::tolower(upper)) : upper);
  return with_microbatch ? text + std::to_string(a.microbatch) : text;
}

/// As much of a step's name as fits.
inline std::string name_in(schedule_view const& plan, box const& b, std::size_t room) {
  for (bool const whole : {true, false}) {
    std::string text = label(plan, *b.first, whole);
    if (b.second != nullptr) text += (whole ? "+" : "") + label(plan, *b.second, whole);
    if (text.size() < room || text.size() == 1) return text;
  }
  return label(plan, *b.first, false);
}

template <cost_model Costs> std::string head_line(schedule_view const& plan, Costs const& costs) {
  auto const several = [](std::int64_t n, std::string_view what) {
    return std::to_string(n) + ' ' + std::string(what) + (n == 1 ? "" : what.ends_with("ch") ? "es" : "s");
  };
  plain_text out;
  out << plan.name() << ": " << several(plan.ranks(), "rank") << ", " << several(plan.shape().chunks, "chunk") << ", "
      << several(plan.microbatches(), "micro-batch") << "; makespan " << makespan(plan, costs) << ", bubble "
      << bubble(plan, costs) << ", idle " << std::round(idle_fraction(plan, costs) * 1000) / 10 << " %";
  return std::move(out).str();
}

/// Text that may stand between tags.
inline std::string escaped(std::string_view text) {
  std::string safe;
  for (char const c : text) {
    if (c == '&')
      safe += "&amp;";
    else if (c == '<')
      safe += "&lt;";
    else if (c == '>')
      safe += "&gt;";
    else
      safe += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return safe;
}

inline std::string_view colour(computation type, bool second) {
  constexpr std::string_view colours[4][2] = {
      {"#9ecae8", "#5b9fd0"}, {"#a6d8a0", "#62b35f"}, {"#b5e0d3", "#6fbfa8"}, {"#f6d08a", "#e5a93f"}};
  return colours[static_cast<int>(type)][second ? 1 : 0];
}

}  // namespace detail

/// Throws schedule_error for an unsound schedule, as start_times() does.
template <cost_model Costs = step_costs>
std::string draw(schedule_view const& plan, Costs const& costs = {}, int columns = 120) {
  std::int64_t const span = std::max<std::int64_t>(makespan(plan, costs), 1);
  std::string const last = std::to_string(plan.ranks() - 1);
  std::int64_t const width = std::max<std::int64_t>(columns - static_cast<std::int64_t>(last.size()) - 8, 10);
  std::int64_t const per_unit = std::clamp<std::int64_t>(width / span, 0, 4);
  auto const column = [&](std::int64_t time) {
    return static_cast<std::size_t>(
        per_unit > 0 ? time * per_unit
                     : static_cast<std::int64_t>(static_cast<double>(time) * static_cast<double>(width) /
                                                 static_cast<double>(span)));
  };
  std::vector<std::string> lines(static_cast<std::size_t>(plan.ranks()), std::string(column(span), '.'));
  for (detail::box const& b : detail::boxes_of(plan, costs)) {
    std::size_t const from = column(b.start), room = column(b.end) - from;
    if (room == 0) continue;
    std::string text = detail::name_in(plan, b, room).substr(0, room);
    text.resize(room, ' ');
    lines[static_cast<std::size_t>(b.rank)].replace(from, room, text);
  }
  detail::plain_text out;
  out << detail::head_line(plan, costs) << '\n';
  for (std::size_t r = 0; r < lines.size(); ++r) {
    std::string const rank = std::to_string(r);
    out << "rank " << std::string(last.size() - rank.size(), ' ') << rank << " |" << lines[r] << "|\n";
  }
  return std::move(out).str();
}

/// A self-contained SVG image; each box has a tooltip with its action and times.
template <cost_model Costs = step_costs>
void draw_svg(std::ostream& to, schedule_view const& plan, Costs const& costs = {}) {
  constexpr int left = 64, top = 48, row = 30, gap = 4;
  std::int64_t const span = std::max<std::int64_t>(makespan(plan, costs), 1);
  double const unit = std::clamp(1200.0 / static_cast<double>(span), 0.01, 22.0);
  double const width = unit * static_cast<double>(span);
  int const height = top + plan.ranks() * row + 40;
  detail::plain_text out;
  out << R"(<svg xmlns="http://www.w3.org/2000/svg" width=")" << width + left + 24 << R"(" height=")" << height
      << R"(" font-family="sans-serif" font-size="11">)" << '\n'
      << R"(<rect width="100%" height="100%" fill="#ffffff"/>)" << '\n'
      << R"(<text x="8" y="20" font-size="14">)" << detail::escaped(detail::head_line(plan, costs)) << "</text>\n";
  for (int r = 0; r < plan.ranks(); ++r)
    out << R"(<text x="8" y=")" << top + r * row + 18 << R"(">rank )" << r << R"(</text><rect x=")" << left
        << R"(" y=")" << top + r * row << R"(" width=")" << width << R"(" height=")" << row - gap
        << R"(" fill="#f2f2f2"/>)" << '\n';
  auto const part = [&](detail::box const& b, action const& a, double y, double high) {
    double const x = left + unit * static_cast<double>(b.start), wide = unit * static_cast<double>(b.end - b.start);
    out << R"(<g><title>)" << a << " on rank " << b.rank << ", " << b.start << " to " << b.end << R"(</title><rect x=")"
        << x << R"(" y=")" << y << R"(" width=")" << wide << R"(" height=")" << high
        << R"(" stroke="#ffffff" stroke-width="0.6" fill=")" << detail::colour(a.type, detail::second_chunk(plan, a))
        << R"("/>)";
    std::string const text = std::to_string(a.microbatch);
    if (wide > 7.0 * static_cast<double>(text.size()) + 2)
      out << R"(<text x=")" << x + wide / 2 << R"(" y=")" << y + high / 2 + 4 << R"(" text-anchor="middle">)" << text
          << "</text>";
    out << "</g>\n";
  };
  for (detail::box const& b : detail::boxes_of(plan, costs)) {
    double const y = top + b.rank * row, high = row - gap;
    part(b, *b.first, y, b.second == nullptr ? high : high / 2);
    if (b.second != nullptr) part(b, *b.second, y + high / 2, high / 2);
  }
  double const foot = top + plan.ranks() * row + 14;
  out << R"(<text x=")" << left << R"(" y=")" << foot << R"(">0</text><text x=")" << left + width << R"(" y=")" << foot
      << R"(" text-anchor="end">)" << span << "</text>\n";
  constexpr std::pair<computation, std::string_view> legend[] = {{computation::forward, "forward"},
                                                                 {computation::backward, "backward"},
                                                                 {computation::input_gradient, "input gradient"},
                                                                 {computation::weight_gradient, "weight gradient"}};
  double x = left;
  for (auto const& [type, name] : legend) {
    out << R"(<rect x=")" << x << R"(" y=")" << foot + 8 << R"(" width="12" height="12" fill=")"
        << detail::colour(type, false) << R"("/><text x=")" << x + 16 << R"(" y=")" << foot + 18 << R"(">)" << name
        << "</text>\n";
    x += 32 + 7.0 * static_cast<double>(name.size());
  }
  if (plan.shape().chunks > 1)
    out << R"(<text x=")" << x << R"(" y=")" << foot + 18 << R"(">darker: every second chunk</text>)" << '\n';
  out << "</svg>\n";
  to << std::move(out).str();
}

}  // namespace moiety
