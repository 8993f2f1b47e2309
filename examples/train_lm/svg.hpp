// SPDX-License-Identifier: Apache-2.0
// Charts as SVG inside a page: lines, a heat map, the work of ranks over time. Text is escaped; what is not finite is left out.
#pragma once

#include "timeline.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iomanip>
#include <ostream>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lm::svg {

inline std::string escaped(std::string_view text) {
  std::string safe;
  for (char const c : text) {
    if (c == '&')
      safe += "&amp;";
    else if (c == '<')
      safe += "&lt;";
    else if (c == '>')
      safe += "&gt;";
    else if (c == '"')
      safe += "&quot;";
    else
      safe += static_cast<unsigned char>(c) >= 0x20 && static_cast<unsigned char>(c) < 0x7f ? c
              : c == '\n'                                                                   ? '\n'
                                                                                            : '.';
  }
  return safe;
}

inline std::string number(double value, int digits = 1) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(digits) << value;
  return std::move(out).str();
}

inline std::string short_number(double value) {
  std::ostringstream out;
  out << std::setprecision(4) << value;
  return std::move(out).str();
}

inline void text_at(std::ostream& out, double x, double y, std::string_view anchor, std::string_view text) {
  out << "<text x=\"" << number(x) << "\" y=\"" << number(y) << "\" text-anchor=\"" << anchor << "\">" << escaped(text)
      << "</text>\n";
}

inline void box(std::ostream& out, double x, double y, double width, double height, std::string_view colour,
                std::string_view tip = {}) {
  out << "<rect x=\"" << number(x) << "\" y=\"" << number(y) << "\" width=\"" << number(std::max(width, 0.1))
      << "\" height=\"" << number(height) << "\" fill=\"" << colour << '"';
  if (tip.empty())
    out << "/>\n";
  else
    out << "><title>" << escaped(tip) << "</title></rect>\n";
}

inline void open(std::ostream& out, double width, double height, std::string_view title) {
  out << "<svg viewBox=\"0 0 " << number(width) << ' ' << number(height) << "\" width=\"" << number(width)
      << "\" role=\"img\" aria-label=\"" << escaped(title) << "\">\n";
}

using point = std::pair<double, double>;

struct series {
  std::string name, colour;
  std::vector<point> points{};
};

/// Means of neighbours, so that at most `most` points are left.
inline std::vector<point> thinned(std::vector<point> points, std::size_t most = 400) {
  std::erase_if(points, [](point const& p) { return !std::isfinite(p.first) || !std::isfinite(p.second); });
  if (points.size() <= most) return points;
  std::vector<point> few;
  for (std::size_t i = 0; i < most; ++i) {
    std::size_t const first = i * points.size() / most, last = (i + 1) * points.size() / most;
    point sum{0, 0};
    for (std::size_t j = first; j < last; ++j) sum.first += points[j].first, sum.second += points[j].second;
    auto const n = static_cast<double>(last - first);
    few.push_back({sum.first / n, sum.second / n});
  }
  return few;
}

/// A round step for about `wanted` ticks over a range.
inline double tick_step(double range, double wanted) {
  double const rough = range / wanted, power = std::pow(10, std::floor(std::log10(rough)));
  for (double const round : {1.0, 2.0, 5.0})
    if (round * power >= rough) return round * power;
  return 10 * power;
}

class scale {
 public:
  scale(double low, double high, double from, double to) : low_(low), high_(high), from_(from), to_(to) {
    if (!(high_ > low_)) low_ -= 0.5, high_ += 0.5;
  }
  double operator()(double value) const { return from_ + (value - low_) / (high_ - low_) * (to_ - from_); }
  template <class F> void for_each_tick(double wanted, F const& f) const {
    double const step = tick_step(high_ - low_, wanted);
    for (double tick = std::ceil(low_ / step) * step; tick <= high_ + step * 1e-9; tick += step)
      f(std::abs(tick) < step * 1e-9 ? 0.0 : tick);
  }

 private:
  double low_, high_, from_, to_;
};

/// Lines over the steps; a series of one point is a dot.
inline void line_chart(std::ostream& out, std::string_view title, std::vector<series> all) {
  constexpr double width = 720, height = 260, left = 56, right = 700, top = 12, bottom = 226;
  double x_low = INFINITY, x_high = -INFINITY, y_low = INFINITY, y_high = -INFINITY;
  for (series& s : all) {
    s.points = thinned(std::move(s.points));
    for (auto const& [x, y] : s.points) {
      x_low = std::min(x_low, x), x_high = std::max(x_high, x);
      y_low = std::min(y_low, y), y_high = std::max(y_high, y);
    }
  }
  open(out, width, height, title);
  if (!std::isfinite(x_low))
    return text_at(out, width / 2, height / 2, "middle", "nothing to show"), void(out << "</svg>\n");
  scale const x(x_low, x_high, left, right), y(y_low, y_high, bottom, top);
  y.for_each_tick(5, [&](double tick) {
    out << "<path class=\"grid\" d=\"M" << number(left) << ' ' << number(y(tick)) << 'H' << number(right) << "\"/>\n";
    text_at(out, left - 6, y(tick) + 4, "end", short_number(tick));
  });
  x.for_each_tick(8, [&](double tick) { text_at(out, x(tick), bottom + 16, "middle", short_number(tick)); });
  double legend = left;
  for (series const& s : all) {
    if (s.points.empty()) continue;
    if (s.points.size() == 1)
      out << "<circle r=\"3\" cx=\"" << number(x(s.points[0].first)) << "\" cy=\"" << number(y(s.points[0].second))
          << "\" fill=\"" << s.colour << "\"/>\n";
    out << "<polyline fill=\"none\" stroke-width=\"1.5\" stroke=\"" << s.colour << "\" points=\"";
    for (auto const& p : s.points) out << number(x(p.first)) << ',' << number(y(p.second)) << ' ';
    out << "\"/>\n";
    box(out, legend, height - 14, 10, 10, s.colour);
    text_at(out, legend + 14, height - 5, "start", s.name);
    legend += 30 + 7 * static_cast<double>(s.name.size());
  }
  out << "</svg>\n";
}

/// White for nothing, blue for the mean, dark from three times the mean on.
inline std::string heat(double over_mean) {
  double const t = std::clamp(over_mean / 3, 0.0, 1.0);
  auto const mix = [t](int from, int to) { return std::to_string(std::lround(from + t * (to - from))); };
  return "rgb(" + mix(250, 8) + ',' + mix(252, 48) + ',' + mix(255, 107) + ')';
}

/// Loads [rows][columns] over their mean; with numbers where a cell has room for them.
inline void heat_map(std::ostream& out, std::string_view title, std::vector<std::string> const& rows,
                     std::vector<std::string> const& columns, std::vector<std::vector<double>> const& values,
                     double cell_width, double cell_height) {
  constexpr double left = 72, top = 18;
  open(out, left + cell_width * static_cast<double>(columns.size()) + 12,
       top + cell_height * static_cast<double>(rows.size()) + 4, title);
  for (std::size_t c = 0; c < columns.size(); ++c)
    if (!columns[c].empty())
      text_at(out, left + cell_width * (static_cast<double>(c) + 0.5), top - 5, "middle", columns[c]);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    double const y = top + cell_height * static_cast<double>(r);
    text_at(out, left - 6, y + cell_height / 2 + 4, "end", rows[r]);
    for (std::size_t c = 0; c < columns.size(); ++c) {
      double const v = values[r][c], x = left + cell_width * static_cast<double>(c);
      bool const numbers = cell_width >= 32;
      box(out, x, y, cell_width - 1, cell_height - 1, heat(v), numbers ? rows[r] + ", expert " + columns[c] : "");
      if (numbers)
        out << "<text class=\"" << (v > 1.6 ? "light" : "dark") << "\" x=\"" << number(x + cell_width / 2) << "\" y=\""
            << number(y + cell_height / 2 + 4) << "\" text-anchor=\"middle\">" << number(v, 2) << "</text>\n";
    }
  }
  out << "</svg>\n";
}

/// What each rank does over time, where `whole` milliseconds are as wide as the chart.
inline void gantt(std::ostream& out, std::string_view title, int ranks, timed const& all, double whole) {
  constexpr double left = 60, right = 980, row = 26, top = 6;
  constexpr std::string_view colours[] = {"#9ecae8", "#a6d8a0", "#b5e0d3", "#f6d08a"};
  double const bottom = top + row * ranks;
  open(out, right + 20, bottom + 22, title);
  scale const x(0, whole, left, right);
  for (int r = 0; r < ranks; ++r) {
    text_at(out, left - 6, top + row * r + 16, "end", "rank " + std::to_string(r));
    box(out, left, top + row * r, right - left, row - 4, "#f2f2f2");
  }
  for (mo::timed_operation const& o : all) {
    double const begin = static_cast<double>(o.begin) * 1e-6, end = static_cast<double>(o.end) * 1e-6;
    double const width = x(end) - x(begin), y = top + row * o.rank;
    bool const works = o.what.kind == mo::message::none;
    std::ostringstream name;
    name << o.what << ": " << number(begin, 3) << " to " << number(end, 3) << " ms";
    std::string_view const colour = works ? colours[static_cast<std::size_t>(o.what.what.type)] : "#d4d4d4";
    box(out, x(begin), y, width - 0.5, row - 4, colour, name.str());
    std::string const label = std::to_string(o.what.what.microbatch);
    if (works && width > 8 * static_cast<double>(label.size()))
      text_at(out, x(begin) + width / 2, y + 15, "middle", label);
  }
  x.for_each_tick(8, [&](double tick) { text_at(out, x(tick), bottom + 14, "middle", short_number(tick) + " ms"); });
  out << "</svg>\n";
}

}  // namespace lm::svg
