// SPDX-License-Identifier: Apache-2.0
// Where a rank stands in both grids of a layout, and with whom it shares a group.
//
//   coordinates_of(layout, rank)               its place on every axis: c[axis::expert]
//   rank_of(layout, grid, coordinates)         the rank that stands there in one grid
//   group_of(layout, axes, rank)               {colour, position, size} of the ranks that differ from it in `axes` only
//   member_of(layout, axes, rank, position)    the rank at a position of that group
//   members_of(layout, axes, rank)             all of them, ascending
//
// A coordinate is rank / stride mod size, stride the product of the sizes of the grid's faster axes; rank is the sum of
// coordinate · stride. The colour of a group is its lowest rank, a rank's position its place in ascending order:
// split(colour, position, name) makes the group's communicator.
//
// `axes` is any set of axes of one grid: axis::data | axis::context, or named:
//
//   axes::stage          data, context, tensor         a pipeline stage; the same ranks as the three expert axes
//   axes::sequence       tensor, context               ranks that hold parts of the same sequences
//   axes::expert_group   expert, expert_tensor         ranks that hold all experts once between them
//
// The 8 ranks of {.data = 2, .tensor = 2, .pipeline = 2, .expert = 4} have the data groups {0 2} {1 3} {4 6} {5 7}, the
// expert groups {0 1 2 3} {4 5 6 7} and the pipeline groups {0 4} {1 5} {2 6} {3 7}.
//
// Layouts must have passed check_layout(). Throws config_error, and does not compile where constant: axes of two grids,
// a rank, position or coordinate outside the layout.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/mesh/layout.hpp>

#include <array>
#include <cstddef>
#include <ostream>
#include <vector>

namespace moiety::inline MOIETY_ABI {

struct axis_set {
  unsigned bits = 0;

  constexpr axis_set() = default;
  constexpr axis_set(axis a) : bits(1U << static_cast<unsigned>(a)) {}

  constexpr bool has(axis a) const { return (bits & axis_set(a).bits) != 0; }
  constexpr bool within(axis_set other) const { return (bits & ~other.bits) == 0; }
  friend constexpr bool operator==(axis_set, axis_set) = default;
};

constexpr axis_set operator|(axis_set a, axis_set b) {
  a.bits |= b.bits;
  return a;
}
constexpr axis_set operator|(axis a, axis b) { return axis_set(a) | axis_set(b); }

inline std::ostream& operator<<(std::ostream& out, axis_set among) {
  char const* between = "";
  for (unsigned a = 0; among.bits >> a != 0; ++a) {
    if (!among.has(static_cast<axis>(a))) continue;
    out << between << axis_name(static_cast<axis>(a));
    between = ", ";
  }
  return out;
}

namespace axes {
inline constexpr axis_set stage = axis::data | axis::context | axis::tensor;
inline constexpr axis_set sequence = axis::tensor | axis::context;
inline constexpr axis_set expert_group = axis::expert | axis::expert_tensor;
}  // namespace axes

/// The grid that a set of axes belongs to; dense where pipeline alone is named, whose groups are the same in both.
constexpr grid grid_of(axis_set among) {
  if (among.within(axes::stage | axis::pipeline)) return grid::dense;
  if (!among.within(axes::expert_group | axis::expert_data | axis::pipeline))
    throw config_error(detail::sentence("the axes ", among, " belong to two grids, so they have no groups."));
  return grid::expert;
}

/// A rank's place on every axis.
struct coordinates {
  std::array<int, 7> along{};

  constexpr int operator[](axis a) const { return along[static_cast<std::size_t>(a)]; }
  constexpr int& operator[](axis a) { return along[static_cast<std::size_t>(a)]; }
  friend constexpr bool operator==(coordinates const&, coordinates const&) = default;
};

/// A rank's place in a group.
struct group_place {
  int colour;    // the lowest rank of the group
  int position;  // of this rank, ascending
  int size;

  friend constexpr bool operator==(group_place const&, group_place const&) = default;
};

namespace detail {

constexpr void check_rank(layout const& l, int rank) {
  if (rank < 0 || rank >= l.world())
    throw config_error(sentence("rank ", rank, " is outside the layout with ", l, '.'));
}

/// How one grid numbers the ranks.
class numbering {
 public:
  constexpr numbering(layout const& l, grid g) {
    int stride = 1;
    for (std::size_t i = 0; i < 4; ++i) {
      axis const a = axes_of(l, g)[i];
      steps_[i] = {a, l.size(a), stride};
      stride *= l.size(a);
    }
  }

  constexpr void locate(int rank, coordinates& c) const {
    for (step const& s : steps_) c[s.along] = s.coordinate(rank);
  }

  constexpr int rank(coordinates const& c) const {
    int rank = 0;
    for (step const& s : steps_) rank += c[s.along] * s.stride;
    return rank;
  }

  constexpr group_place place(axis_set among, int rank) const {
    group_place place{rank, 0, 1};
    for (step const& s : steps_)
      if (among.has(s.along)) {
        place.colour -= s.coordinate(rank) * s.stride;
        place.position += s.coordinate(rank) * place.size;
        place.size *= s.size;
      }
    return place;
  }

  constexpr int member(axis_set among, int colour, int position) const {
    for (step const& s : steps_)
      if (among.has(s.along)) {
        colour += position % s.size * s.stride;
        position /= s.size;
      }
    return colour;
  }

 private:
  struct step {
    axis along = {};
    int size = 1, stride = 1;

    constexpr int coordinate(int rank) const { return rank / stride % size; }
  };
  std::array<step, 4> steps_{};
};

}  // namespace detail

constexpr coordinates coordinates_of(layout const& l, int rank) {
  detail::check_rank(l, rank);
  coordinates c;
  for (grid const g : {grid::dense, grid::expert}) detail::numbering(l, g).locate(rank, c);
  return c;
}

/// Reads the four coordinates of the grid.
constexpr int rank_of(layout const& l, grid g, coordinates const& c) {
  for (axis const a : axes_of(l, g))
    if (c[a] < 0 || c[a] >= l.size(a))
      throw config_error(detail::sentence(axis_name(a), " coordinate ", c[a], " is outside the layout with ", l, '.'));
  return detail::numbering(l, g).rank(c);
}

constexpr group_place group_of(layout const& l, axis_set among, int rank) {
  detail::check_rank(l, rank);
  return detail::numbering(l, grid_of(among)).place(among, rank);
}

constexpr int member_of(layout const& l, axis_set among, int rank, int position) {
  group_place const place = group_of(l, among, rank);
  if (position < 0 || position >= place.size)
    throw config_error(detail::sentence("position ", position, " is outside a group of ", place.size, " ranks."));
  return detail::numbering(l, grid_of(among)).member(among, place.colour, position);
}

inline std::vector<int> members_of(layout const& l, axis_set among, int rank) {
  group_place const place = group_of(l, among, rank);
  std::vector<int> members;
  for (int i = 0; i < place.size; ++i) members.push_back(member_of(l, among, rank, i));
  return members;
}

namespace detail {

/// Whether the groups along a set of axes part the world evenly, their ranks differ in these axes alone and stand in
/// ascending order, and, without pipeline among the axes, each group is inside one stage.
constexpr bool groups_hold(layout const& l, numbering const& ranks, axis_set among) {
  int groups = 0;
  for (int rank = 0; rank < l.world(); ++rank) {
    group_place const place = ranks.place(among, rank);
    coordinates c, lowest;
    ranks.locate(rank, c);
    ranks.locate(place.colour, lowest);
    for (unsigned a = 0; a < c.along.size(); ++a)
      if (lowest.along[a] != (among.has(static_cast<axis>(a)) ? 0 : c.along[a])) return false;
    if (place.position >= place.size || ranks.member(among, place.colour, place.position) != rank) return false;
    if (!among.has(axis::pipeline) && place.colour / l.stage() != rank / l.stage()) return false;
    if (place.position == 0) {
      ++groups;
      continue;
    }
    int const before = ranks.member(among, place.colour, place.position - 1);
    if (before >= rank || ranks.place(among, before).colour != place.colour) return false;
  }
  return groups * ranks.place(among, 0).size == l.world();
}

}  // namespace detail

/// The proof for one layout: in both grids coordinates are in range, rank and coordinates are inverse, and pipeline is
/// rank / stage; and the groups along every set of axes are as detail::groups_hold() says. O(ranks).
constexpr bool layout_holds(layout const& l) {
  for (grid const g : {grid::dense, grid::expert}) {
    detail::numbering const ranks(l, g);
    for (int rank = 0; rank < l.world(); ++rank) {
      coordinates c;
      ranks.locate(rank, c);
      for (axis const a : axes_of(l, g))
        if (c[a] < 0 || c[a] >= l.size(a)) return false;
      if (ranks.rank(c) != rank || c[axis::pipeline] != rank / l.stage()) return false;
    }
    for (unsigned chosen = 0; chosen < 16; ++chosen) {
      axis_set among;
      for (unsigned i = 0; i < 4; ++i)
        if ((chosen >> i & 1U) != 0) among = among | axes_of(l, g)[i];
      if (!detail::groups_hold(l, ranks, among)) return false;
    }
  }
  return true;
}

}  // namespace moiety
