// SPDX-License-Identifier: Apache-2.0
// The dispatcher of ranks that stand in nodes of `RanksPerNode` neighbours each: rows cross between nodes first, to the rank
// of the same place in the node of their experts, and go on inside it. A token crosses to a node once, however many of its
// experts stand there; and a rank has messages for nodes and for neighbours in place of all ranks. What experts give comes
// back the same way, row by row, so that a token's sum keeps its order.
//
//   using dispatcher = mo::two_level<8>;
//
// Throws config_error where the nodes do not divide the ranks that hold the experts, or copies of experts are asked for.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/backend/kernel_list.hpp>
#include <moiety/backend/transport/communicator.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/dispatcher/arrived_rows.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory_resource>
#include <string_view>
#include <vector>

namespace moiety::inline MOIETY_ABI {

/// The exchange of two_level. The rank that rows pass on their way is between: at the place of their sender in the node of
/// their experts. Rank r of the group stands in node r / L at place r mod L.
template <int RanksPerNode> class node_exchange : public arrived_rows {
  static constexpr int L = RanksPerNode;
  using ints = std::pmr::vector<std::int32_t>;

 public:
  template <communicator C> struct links {
    explicit links(C& of)
        : group(&of),
          nodes(of.split(of.rank() % L, of.rank(), "nodes of the " + of.name())),
          node(of.split(of.rank() / L, of.rank(), "node of the " + of.name())) {
      detail::require<config_error>(of.size() % L == 0, "mo::two_level<", L, "> needs nodes of ", L, " to divide the ",
                                    of.size(), " ranks that hold the experts.");
    }
    void at_step(std::int64_t step) { nodes.at_step(step), node.at_step(step); }
    C* group;
    C nodes, node;  // of this rank's place; of this rank's node
  };

  template <communicator C>
  node_exchange(links<C>& through, permutation_view const& order, std::int64_t experts, int copies, arena& memory)
      : arrived_rows(*through.group, order, experts, copies, memory),
        memory_(&memory),
        tokens_(memory),
        fan_(memory),
        plain_(memory),
        places_(memory) {
    detail::require<config_error>(copies == 1, "mo::two_level does not go with an expert_tensor axis.");
    int const nodes = through.nodes.size();
    ints sources(static_cast<std::size_t>(own_rows()), &memory.for_lists());
    memory.load(sources.data(), order.source_tokens, own_rows() * static_cast<std::int64_t>(sizeof(std::int32_t)));
    ints fan_out(&memory.for_lists());  // of each row, which of the tokens that cross to its node it is
    std::vector<crossing> out(static_cast<std::size_t>(nodes)), in(out.size());
    for (int n = 0; n < nodes; ++n) out[static_cast<std::size_t>(n)] = list_tokens(n, order.tokens, sources, fan_out);
    through.nodes.template all_to_all<crossing>(out, in);
    std::vector<std::int64_t> sends, arrives;
    for (crossing const& c : out) sends.push_back(c.rows());
    for (crossing const& c : in) arrives.push_back(c.rows());
    crossings_ = {out, in};
    std::int64_t between = 0;
    for (std::int64_t const n : arrives) between += n;
    ints fans(static_cast<std::size_t>(between), &memory.for_lists());
    through.nodes.template all_to_all_v<std::int32_t>(fan_out, sends, fans, arrives);
    list_onward(fans);
    for (int place = 0; place < L; ++place)
      for (int n = 0; n < nodes; ++n) list_places(n * L + place, places_.values);
    for (kernel_list<std::int32_t>* list : {&tokens_, &fan_, &plain_, &places_}) list->publish();
  }

  template <communicator C, class V>
  kernels::rows_of<V> bring(links<C>& through, kernels::rows_of<V> const& from, std::int64_t width, buffer& room,
                            std::pmr::memory_resource& memory) const {
    return in_room<V>(width, room, memory, [&](V* to) { bring_to(through, from, width, to); });
  }

  template <communicator C, class V>
  void bring_to(links<C>& through, kernels::rows_of<V> const& from, std::int64_t width, V* to) const {
    bool const tokens = from.index != nullptr;
    auto const crossed = [&](crossing const& c) { return tokens ? c.tokens : c.rows(); };
    std::int64_t all = 0;
    for (crossing const& c : crossings_.in) all += crossed(c);
    buffer const between(all * detail::row_bytes<V>(width), *memory_);
    auto* const middle = static_cast<V*>(between.data());
    std::vector<outgoing_rows> out;
    std::vector<incoming_rows> in;
    std::int64_t sent = 0, arrived = 0;
    for (std::size_t n = 0; n < crossings_.out.size(); ++n) {
      std::int64_t const leaving = crossed(crossings_.out[n]), coming = crossed(crossings_.in[n]);
      out.push_back(
          detail::rows_from(from.data, from.stride, tokens ? tokens_.for_kernels() : nullptr, {sent, leaving}, width));
      in.push_back(detail::rows_to(middle, nullptr, {arrived, coming}, width));
      sent += leaving, arrived += coming;
    }
    operate(through.nodes, "dispatch between nodes", detail::row_bytes<V>(width), out, in);
    out.clear(), in.clear();
    for (int place = 0; place < L; ++place) {
      out.push_back(detail::rows_from<V>(middle, width, (tokens ? fan_ : plain_).for_kernels(), onward(place), width));
      in.push_back(detail::rows_to(to, places_.for_kernels(), home(place), width));
    }
    operate(through.node, "dispatch in a node", detail::row_bytes<V>(width), out, in);
  }

  template <communicator C, class V>
  void give_back(links<C>& through, V const* from, std::int64_t width, V* to, std::pmr::memory_resource& memory) const {
    buffer const between(std::ssize(plain_.values) * detail::row_bytes<V>(width), memory);
    auto* const middle = static_cast<V*>(between.data());
    std::vector<outgoing_rows> out;
    std::vector<incoming_rows> in;
    for (int place = 0; place < L; ++place) {
      out.push_back(detail::rows_from(from, width, places_.for_kernels(), home(place), width));
      in.push_back(detail::rows_to(middle, plain_.for_kernels(), onward(place), width));
    }
    operate(through.node, "combine in a node", detail::row_bytes<V>(width), out, in);
    out.clear(), in.clear();
    std::int64_t left = 0, home = 0;
    for (std::size_t n = 0; n < crossings_.out.size(); ++n) {
      std::int64_t const leaving = crossings_.in[n].rows(), coming = crossings_.out[n].rows();
      out.push_back(detail::rows_from<V>(middle, width, nullptr, {left, leaving}, width));
      in.push_back(detail::rows_to(to, nullptr, {home, coming}, width));
      left += leaving, home += coming;
    }
    operate(through.nodes, "combine between nodes", detail::row_bytes<V>(width), out, in);
  }

 private:
  /// What one rank sends one node: tokens, and the rows that they are for each rank there.
  struct crossing {
    std::int64_t tokens = 0;
    std::int64_t of_place[static_cast<std::size_t>(L)] = {};

    std::int64_t rows() const {
      std::int64_t all = 0;
      for (std::int64_t const n : of_place) all += n;
      return all;
    }
  };
  struct crossings {
    std::vector<crossing> out, in;  // to and from each node
  };

  template <class C>
  static void operate(C& ranks, char const* name, std::int64_t width, std::vector<outgoing_rows> const& out,
                      std::vector<incoming_rows> const& in) {
    ranks.finish(ranks.start({.name = name, .width = width}, out, in));
  }

  /// The tokens with a row in node n, in the order of their first; and which of them each row is.
  crossing list_tokens(int n, std::int64_t count, ints const& sources, ints& fan_out) {
    ints known(static_cast<std::size_t>(count), -1, &memory_->for_lists());
    crossing all;
    for (int place = 0; place < L; ++place) {
      range_of const& part = this->sent(n * L + place);
      all.of_place[place] = part.count;
      for (std::int64_t row = part.first; row < part.first + part.count; ++row) {
        std::int32_t const token = sources[static_cast<std::size_t>(row)];
        std::int32_t& number = known[static_cast<std::size_t>(token)];
        if (number < 0) number = static_cast<std::int32_t>(all.tokens++), tokens_.values.push_back(token);
        fan_out.push_back(number);
      }
    }
    return all;
  }

  /// For each place in this node, then each node that rows for it came from: where they lie in between, among the tokens that
  /// crossed, and among the rows if these cross one by one.
  void list_onward(ints const& fans) {
    for (int place = 0; place < L; ++place) {
      std::int64_t token = 0, row = 0;
      for (crossing const& c : crossings_.in) {
        std::int64_t first = row;
        for (int p = 0; p < place; ++p) first += c.of_place[p];
        for (std::int64_t i = first; i < first + c.of_place[place]; ++i) {
          fan_.values.push_back(static_cast<std::int32_t>(token + fans[static_cast<std::size_t>(i)]));
          plain_.values.push_back(static_cast<std::int32_t>(i));
        }
        token += c.tokens, row += c.rows();
      }
    }
  }

  /// The rows in between that go on to a place.
  range_of onward(int place) const {
    range_of part;
    for (crossing const& c : crossings_.in) {
      for (int p = 0; p < place; ++p) part.first += c.of_place[p];
      part.count += c.of_place[place];
    }
    return part;
  }
  /// The rows here that come through a place.
  range_of home(int place) const {
    range_of part;
    for (int r = 0; r < static_cast<int>(crossings_.in.size()) * L; ++r)
      if (r % L < place)
        part.first += this->from(r);
      else if (r % L == place)
        part.count += this->from(r);
    return part;
  }

  arena* memory_;
  crossings crossings_;
  kernel_list<std::int32_t> tokens_;       // that cross, by node
  kernel_list<std::int32_t> fan_, plain_;  // see list_onward
  kernel_list<std::int32_t> places_;       // of the rows that come, by place, then node
};

template <int RanksPerNode> struct two_level {
  static_assert(RanksPerNode >= 1, "mo::two_level needs at least 1 rank in a node.");
  static constexpr std::string_view name = "two_level";
  static constexpr bool travels = true, keeps_rows = false, on_devices = true;
  static constexpr int chunks = 1;
  using exchange = node_exchange<RanksPerNode>;
};

}  // namespace moiety
