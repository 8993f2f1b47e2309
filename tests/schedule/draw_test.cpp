// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/draw.hpp>

#include "digit_groups.hpp"

#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <iomanip>
#include <ios>
#include <sstream>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

std::string svg(mo::schedule_view const& plan, mo::step_costs const& costs = {}) {
  std::ostringstream out;
  mo::draw_svg(out, plan, costs);
  return out.str();
}

std::size_t count(std::string const& text, std::string const& of) {
  std::size_t found = 0;
  for (auto at = text.find(of); at != std::string::npos; at = text.find(of, at + 1)) ++found;
  return found;
}

/// Every tag is closed, in order.
bool well_formed(std::string const& text) {
  std::vector<std::string> open;
  for (auto at = text.find('<'); at != std::string::npos; at = text.find('<', at + 1)) {
    auto const end = text.find('>', at);
    if (end == std::string::npos) return false;
    std::string const tag = text.substr(at + 1, end - at - 1);
    if (tag.find('<') != std::string::npos) return false;
    if (tag.ends_with('/')) continue;
    if (!tag.starts_with('/')) {
      open.push_back(tag.substr(0, tag.find(' ')));
      continue;
    }
    if (open.empty() || open.back() != tag.substr(1)) return false;
    open.pop_back();
  }
  return open.empty();
}

}  // namespace

TEST_CASE("the worked example of the header") {
  auto const plan = mo::make_schedule(mo::gpipe{}, {.ranks = 2, .microbatches = 2});
  CHECK(mo::draw(plan) ==
        "gpipe: 2 ranks, 1 chunk, 2 micro-batches; makespan 9, bubble 3, idle 33.3 %\n"
        "rank 0 |F0  F1  ............B0      B1      |\n"
        "rank 1 |....F0  F1  B0      B1      ........|\n");
}

TEST_CASE("second chunks are small, joined steps have a plus") {
  auto const v = mo::make_schedule(mo::zb_v{}, {.ranks = 2, .chunks = 2, .microbatches = 3});
  CHECK(mo::draw(v).find("rank 0 |F0  F1  F2  f0  i0  w0  f1  i1  w1  I0  W0  f2  i2  w2  ") != std::string::npos);
  auto const joined = mo::make_schedule(mo::interleaved_1f1b_overlapped{}, {.ranks = 1, .microbatches = 2});
  CHECK(mo::draw(joined) ==
        "interleaved_1f1b_overlapped: 1 rank, 1 chunk, 2 micro-batches; makespan 6, bubble 0, idle 0 %\n"
        "rank 0 |F0  F1+B0       B1      |\n");
  auto const both = mo::make_schedule(mo::dual_pipe{}, {.ranks = 2, .chunks = 2, .microbatches = 4});
  CHECK(mo::draw(both).find("rank 1 |f2  F0  f3  B0") != std::string::npos);
}

TEST_CASE("a picture is no wider than asked for, in every row") {
  auto const plan = mo::make_schedule(mo::one_f_one_b{}, {.ranks = 12, .microbatches = 200});
  for (int const columns : {40, 80, 200, 2000}) {
    std::istringstream lines(mo::draw(plan, mo::unit_costs, columns));
    std::string head, line;
    std::getline(lines, head);
    std::size_t rows = 0, width = 0;
    for (; std::getline(lines, line); ++rows) {
      CHECK(line.size() <= static_cast<std::size_t>(columns));
      if (rows > 0) CHECK(line.size() == width);
      width = line.size();
    }
    CHECK(rows == 12);
  }
}

TEST_CASE("an SVG has a box for every action, tooltips and a legend, and every tag is closed") {
  auto const plan = mo::make_schedule(mo::dual_pipe_v{}, {.ranks = 4, .chunks = 2, .microbatches = 8});
  std::string const image = svg(plan, {.hidden = 1});
  CHECK(count(image, "<g><title>") == static_cast<std::size_t>(mo::schedule_view(plan).size()));
  CHECK(count(image, "<title>0F0 on rank 0, 0 to 1</title>") == 1);
  CHECK(image.find("weight gradient") != std::string::npos);
  CHECK(image.find("darker") != std::string::npos);
  CHECK(image.find("http://www.w3.org/2000/svg") != std::string::npos);
  CHECK(count(image, "http") == 1);  // nothing from elsewhere
  CHECK(well_formed(image));
}

TEST_CASE("names cannot break out of an SVG") {
  mo::schedule const named("<b>&", {.microbatches = 1}, {0}, false,
                           {{{0, 0, mo::computation::forward}, {0, 0, mo::computation::backward}}});
  CHECK(svg(named).find("&lt;b&gt;&amp;: 1 rank") != std::string::npos);
  CHECK(well_formed(svg(named)));
}

TEST_CASE("long and unequal times fit, unsound schedules have no picture") {
  auto const plan = mo::make_schedule(mo::gpipe{}, {.ranks = 2, .microbatches = 2});
  std::array<mo::step_costs, 2> const each{mo::step_costs{.forward = 1'000'000'000'000, .backward = 2'000'000'000'000},
                                           mo::step_costs{.forward = 1, .backward = 0}};
  CHECK(mo::draw(plan, mo::stage_costs{each}).size() < 400);
  CHECK(mo::draw(plan, mo::step_costs{.forward = 0, .backward = 0}).find("makespan 0") != std::string::npos);
  mo::schedule const open("own", {.microbatches = 1}, {0}, false, {{{0, 0, mo::computation::forward}}});
  CHECK_THROWS_AS(mo::draw(open), mo::schedule_error);
  CHECK_THROWS_AS(svg(open), mo::schedule_error);
}

TEST_CASE("a drawing has plain numbers, whatever the locale and the stream print") {
  auto const made = mo::make_schedule(mo::gpipe{}, {.ranks = 3, .microbatches = 1001});
  std::string const image = svg(made), text = mo::draw(made);
  digit_groups const locale;
  CHECK((svg(made) == image));
  CHECK((mo::draw(made) == text));
  std::ostringstream of_user;
  of_user << std::hex << std::fixed << std::setprecision(1) << std::showpos;
  mo::draw_svg(of_user, made);
  CHECK((of_user.str() == image));
}
