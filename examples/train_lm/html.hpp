// SPDX-License-Identifier: Apache-2.0
// A page about a run: one HTML file that needs no other, well-formed as XML too.
#pragma once

#include "report.hpp"
#include "svg.hpp"
#include "timeline.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <numeric>
#include <ostream>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lm {

struct page {
  std::string title;
  std::vector<std::pair<std::string, std::string>> facts{};  // settings and results
  std::vector<step_record> steps{};
  std::string schedule{};
  int ranks = 1;  // of a pipeline
  timed measured{}, planned{};
  std::string prompt{}, sample{};
};

namespace detail {

inline void loss_charts(std::ostream& out, std::span<step_record const> steps) {
  svg::series training{"training", "#1f77b4"}, validation{"validation, a sample", "#d62728"};
  svg::series balance{"balance loss", "#2ca02c"}, load{"max/mean load", "#ff7f0e"};
  for (step_record const& r : steps) {
    auto const step = static_cast<double>(r.step);
    training.points.push_back({step, r.bits});
    if (r.validation > 0) validation.points.push_back({step, r.validation});
    balance.points.push_back({step, r.balance});
    load.points.push_back({step, r.load});
  }
  out << "<h2>Loss</h2>\n<p>Cross entropy in bits per byte, by step.</p>\n";
  svg::line_chart(out, "cross entropy by step", {training, validation});
  out << "<h2>Balance</h2>\n<p>The balance loss, which is 1 for even loads, and the busiest expert over the "
         "mean.</p>\n";
  svg::line_chart(out, "balance by step", {balance, load});
}

/// Loads of steps [first, last) over their mean: of each layer and expert.
inline std::vector<std::vector<double>> loads_over_mean(std::span<step_record const> steps) {
  std::vector<std::vector<double>> sums;
  for (step_record const& r : steps) {
    sums.resize(r.loads.size());
    for (std::size_t l = 0; l < r.loads.size(); ++l) {
      sums[l].resize(r.loads[l].size());
      for (std::size_t e = 0; e < sums[l].size(); ++e) sums[l][e] += static_cast<double>(r.loads[l][e]);
    }
  }
  for (auto& layer : sums) {
    double const mean = std::accumulate(layer.begin(), layer.end(), 0.0) / static_cast<double>(layer.size());
    if (mean > 0)
      for (double& load : layer) load /= mean;
  }
  return sums;
}

inline std::vector<std::string> numbered(std::string const& word, std::size_t count, std::size_t from = 0) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < count; ++i) names.push_back(word + std::to_string(from + i));
  return names;
}

inline void load_maps(std::ostream& out, std::span<step_record const> steps) {
  if (steps.empty() || steps.front().loads.empty()) return;
  auto const late = loads_over_mean(steps.last((steps.size() + 9) / 10));
  std::size_t const layers = late.size(), experts = late.front().size();
  out << "<h2>Expert load</h2>\n<p>Bytes of each expert over the mean of its layer, in the last tenth of the "
         "steps.</p>\n";
  svg::heat_map(out, "load by layer and expert", numbered("layer ", layers, 1), numbered("", experts), late, 44, 24);
  out << "<p>The same from the first step to the last.</p>\n";
  std::size_t const columns = std::min<std::size_t>(48, steps.size());
  std::vector<std::vector<std::vector<double>>> maps(layers, std::vector(experts, std::vector<double>(columns)));
  std::vector<std::string> names(columns);
  for (std::size_t c = 0; c < columns; ++c) {
    std::size_t const first = c * steps.size() / columns, last = (c + 1) * steps.size() / columns;
    auto const loads = loads_over_mean(steps.subspan(first, last - first));
    for (std::size_t l = 0; l < layers; ++l)
      for (std::size_t e = 0; e < experts; ++e) maps[l][e][c] = loads[l][e];
    if (c % 12 == 0) names[c] = std::to_string(steps[first].step);
  }
  out << "<div class=\"maps\">\n";
  for (std::size_t l = 0; l < layers; ++l) {
    out << "<figure><figcaption>layer " << l + 1 << "</figcaption>\n";
    svg::heat_map(out, "load by expert and step", numbered("expert ", experts), names, maps[l], 9, 11);
    out << "</figure>\n";
  }
  out << "</div>\n";
}

inline void timelines(std::ostream& out, page const& p) {
  if (p.measured.empty()) return;
  double const measured = span_of(p.measured), planned = span_of(p.planned), whole = std::max(measured, planned);
  out << "<h2>Timeline</h2>\n<p>The last step, " << svg::escaped(p.schedule) << ": measured, "
      << svg::number(measured, 2) << " ms; and as planned, " << svg::number(planned, 2)
      << " ms, where each action takes the mean of what its kind took in its stage, starts as soon as it can, and what "
         "it sends is there at once. Numbers are micro-batches. Grey is waiting for messages. <span "
         "class=\"f\">forward</span> "
         "<span class=\"b\">backward</span> <span class=\"i\">input gradient</span> "
         "<span class=\"w\">weight gradient</span></p>\n<h3>Measured</h3>\n";
  svg::gantt(out, "the step as measured", p.ranks, p.measured, whole);
  out << "<h3>Planned</h3>\n";
  svg::gantt(out, "the step as planned", p.ranks, p.planned, whole);
}

}  // namespace detail

inline void write(std::ostream& out, page const& p) {
  out << "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<title>" << svg::escaped(p.title)
      << "</title>\n<style>\n"
         "body { font: 15px/1.45 system-ui, sans-serif; max-width: 1020px; margin: 2em auto; padding: 0 1em; color: "
         "#222; }\n"
         "svg { max-width: 100%; height: auto; font: 11px system-ui, sans-serif; } .grid { stroke: #e4e4e4; }\n"
         "h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 1.8em; } h3 { font-size: 1em; margin: 0.6em 0; "
         "}\n"
         "table { border-collapse: collapse; } td { padding: 0.15em 1.2em 0.15em 0; vertical-align: top; }\n"
         "td + td { font-variant-numeric: tabular-nums; } .light { fill: #fff; } .dark { fill: #222; }\n"
         ".maps { display: flex; flex-wrap: wrap; gap: 8px; } figure { margin: 0; width: 500px; }\n"
         "pre { white-space: pre-wrap; background: #f6f6f6; padding: 0.8em; } pre span { color: #888; }\n"
         ".f, .b, .i, .w { padding: 0 0.4em; } .f { background: #9ecae8; } .b { background: #a6d8a0; }\n"
         ".i { background: #b5e0d3; } .w { background: #f6d08a; }\n</style>\n</head>\n<body>\n<h1>"
      << svg::escaped(p.title) << "</h1>\n<table>\n";
  for (auto const& [name, value] : p.facts)
    out << "<tr><td>" << svg::escaped(name) << "</td><td>" << svg::escaped(value) << "</td></tr>\n";
  out << "</table>\n";
  detail::loss_charts(out, p.steps);
  detail::load_maps(out, p.steps);
  detail::timelines(out, p);
  if (!p.sample.empty())
    out << "<h2>Sample</h2>\n<pre><span>" << svg::escaped(p.prompt) << "</span>" << svg::escaped(p.sample)
        << "</pre>\n";
  out << "</body>\n</html>\n";
}

/// Throws where the file cannot be written.
inline void write_page(std::string const& path, page const& p) {
  std::ofstream file(path);
  write(file, p);
  if (!file.flush()) throw std::runtime_error("cannot write " + path + ".");
}

}  // namespace lm
