// SPDX-License-Identifier: Apache-2.0
// Which experts each token goes to, and with what weights: expert(t, j) and weight(t, j) for slot j < k of token t.
//
// Ids of one token are distinct and in [0, experts), whatever the logits were. A slot may also be without a row, with
// weight 0: no_expert where the selection chose fewer experts than there are slots, dropped_from(e) where the capacity of
// expert e was used up. A token's state says whether it is routed at all: masked and unroutable tokens have weights 0 and
// take no part in dispatch. Functions that take a routing of a caller check() it: what a router made needs no check.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>

#include <concepts>
#include <cstdint>
#include <limits>
#include <memory>
#include <memory_resource>
#include <string>

namespace moiety::inline MOIETY_ABI {

enum class token_state : std::uint8_t {
  routed,
  sanitised,   // some logits were not finite: routed by the others, absent from losses and router gradients
  unroutable,  // no logit was above −∞: routed nowhere
  masked,      // padding: routed nowhere
};

/// Tokens by state.
struct token_counts {
  std::int64_t routed = 0, sanitised = 0, unroutable = 0, masked = 0;

  MOIETY_HD std::int64_t& operator[](token_state state) {
    switch (state) {
      case token_state::routed: return routed;
      case token_state::sanitised: return sanitised;
      case token_state::unroutable: return unroutable;
      default: return masked;
    }
  }
  token_counts& operator+=(token_counts const& other) {
    routed += other.routed, sanitised += other.sanitised, unroutable += other.unroutable, masked += other.masked;
    return *this;
  }
  friend bool operator==(token_counts const&, token_counts const&) = default;
};

/// The id of a slot for which nothing was chosen.
inline constexpr std::int32_t no_expert = std::numeric_limits<std::int32_t>::min();

/// The id of a slot that expert e had no room for, and the expert that a slot asked for: of e and of dropped_from(e) it is e.
MOIETY_HD constexpr std::int32_t dropped_from(std::int32_t e) { return -1 - e; }
MOIETY_HD constexpr bool is_dropped(std::int32_t id) { return id < 0 && id != no_expert; }
MOIETY_HD constexpr std::int32_t asked_for(std::int32_t id) { return is_dropped(id) ? -1 - id : id; }

/// Refers to the memory of a routing.
template <std::floating_point S> struct routing_view {
  std::int64_t tokens = 0;
  std::int64_t experts = 0;
  std::int64_t slots = 0;         // k
  std::int32_t* ids = nullptr;    // [tokens × k]
  S* weights = nullptr;           // [tokens × k]
  token_state* states = nullptr;  // [tokens]

  MOIETY_HD std::int32_t expert(std::int64_t token, std::int64_t slot) const { return ids[token * slots + slot]; }
  MOIETY_HD S weight(std::int64_t token, std::int64_t slot) const { return weights[token * slots + slot]; }
  MOIETY_HD token_state state(std::int64_t token) const { return states[token]; }
  MOIETY_HD bool dispatched(std::int64_t token) const { return states[token] <= token_state::sanitised; }
  MOIETY_HD bool has_row(std::int64_t token, std::int64_t slot) const {
    return dispatched(token) && expert(token, slot) >= 0;
  }

  token_counts count_states() const {
    token_counts counts;
    for (std::int64_t t = 0; t < tokens; ++t) ++counts[states[t]];
    return counts;
  }

  /// Throws data_error unless there is memory and the experts of every dispatched token are distinct and in range.
  void check() const {
    detail::require<data_error>(tokens >= 0 && slots >= 1 && slots <= experts, "a routing of ", tokens, " tokens to ",
                                slots, " of ", experts, " experts cannot be.");
    detail::require<data_error>(tokens == 0 || (ids != nullptr && states != nullptr), "a routing of ", tokens,
                                " tokens has null ids or states.");
    matrix<std::int64_t> last_token(1, experts);  // counted from 1
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t j = 0; j < slots && dispatched(t); ++j) {
        std::int32_t const e = asked_for(expert(t, j));
        if (e == no_expert) continue;
        if (e >= experts) refuse(t, j, detail::sentence("outside 0 … ", experts - 1));
        if (last_token(0, e) == t + 1) refuse(t, j, "which an earlier slot has");
        last_token(0, e) = t + 1;
      }
  }

 private:
  [[noreturn]] void refuse(std::int64_t token, std::int64_t slot, std::string const& why) const {
    throw data_error(detail::sentence("the routing gives token ", token, " in slot ", slot, " expert ",
                                      expert(token, slot), ", ", why, '.'));
  }
};

/// A routing with memory of its own.
template <std::floating_point S> class routing : public routing_view<S> {
 public:
  routing(std::int64_t token_count, std::int64_t expert_count, std::int64_t slot_count,
          std::pmr::memory_resource& memory)
      : routing_view<S>{token_count, expert_count, slot_count},
        ids_(token_count, slot_count, memory),
        weights_(token_count, slot_count, memory),
        states_(token_count, 1, memory) {
    this->ids = ids_.data();
    this->weights = weights_.data();
    this->states = states_.data();
  }

  routing_view<S> view() const { return *this; }

 private:
  matrix<std::int32_t> ids_;
  matrix<S> weights_;
  matrix<token_state> states_;
};

}  // namespace moiety
