// SPDX-License-Identifier: Apache-2.0
// Times that were measured, for the planner: a line a block (the embedding, every layer, the head), with nanoseconds of
// forward, input half and weight half of a micro-batch on one rank, without expert exchange, which the planner adds.
// Lines that begin with # are comments.
#pragma once

#include <moiety/pipeline.hpp>

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <istream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace plan {

namespace mo = moiety;

/// Nanoseconds of half a block, at most: a hundred seconds. Sums over a step then fit 63 bits.
inline constexpr std::int64_t longest = 100'000'000'000;

inline mo::step_costs parse_times(std::string const& line, std::string const& where) {
  std::istringstream in(line);
  mo::step_costs times;
  in >> times.forward >> times.input_gradient >> times.weight_gradient;
  if (!in || !(in >> std::ws).eof())
    throw std::runtime_error(where + " needs three whole numbers: forward, input half, weight half; not \"" + line +
                             "\".");
  for (std::int64_t const time : {times.forward, times.input_gradient, times.weight_gradient})
    if (time < 0 || time > longest)
      throw std::runtime_error(where + " has a time that is not within 0 and 10^11 nanoseconds.");
  return times;
}

/// Throws std::runtime_error, with the line, for what is no table of that many blocks.
inline std::vector<mo::step_costs> parse_measured(std::istream& in, std::string const& name, std::size_t blocks) {
  std::vector<mo::step_costs> all;
  std::size_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (!line.starts_with('#')) all.push_back(parse_times(line, name + ", line " + std::to_string(number) + ","));
  }
  if (all.size() != blocks)
    throw std::runtime_error(name + " has times of " + std::to_string(all.size()) + " blocks, but the model has " +
                             std::to_string(blocks) + ": the embedding, every layer, the head.");
  return all;
}

inline std::vector<mo::step_costs> read_measured(std::string const& name, std::size_t blocks) {
  std::ifstream in(name);
  if (!in) throw std::runtime_error("cannot read " + name + ".");
  return parse_measured(in, name, blocks);
}

}  // namespace plan
