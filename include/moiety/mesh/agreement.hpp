// SPDX-License-Identifier: Apache-2.0
// What ranks tell each other before they work together, so that all of them go on or none. Collectives.
//
//   agree(ranks, f)            calls f() on each rank; if it threw on one, every rank throws: that one what f threw, the others
//                              its words as config_error, state_error or resource_error, if it is one, or data_error. f must
//                              not communicate
//   agree(ranks, f, {"forward", 3})   the same, and data_error on every rank where not all are in this call of this step
//   require_together<E>(ranks, holds, words...)      throws E unless it holds, on every rank or on none: it is the same on all
//   configuration c;           a list of named values;
//   c.add("hidden", 64);       c.check(ranks, "a layer") throws config_error on every rank, in the same words: the first value
//   c.check(ranks, "a layer")  that is not the same on all, and the ranks that differ from rank 0
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/hash.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// What kind of error a rank tells others of.
enum class refusal : std::int64_t { none, config, state, resource, data };

inline refusal refusal_of(std::exception const& error) {
  if (dynamic_cast<config_error const*>(&error) != nullptr) return refusal::config;
  if (dynamic_cast<state_error const*>(&error) != nullptr) return refusal::state;
  if (dynamic_cast<std::bad_alloc const*>(&error) != nullptr) return refusal::resource;
  return refusal::data;
}

[[noreturn]] inline void throw_refusal(refusal kind, std::string const& words) {
  switch (kind) {
    case refusal::config: throw config_error(words);
    case refusal::state: throw state_error(words);
    case refusal::resource: throw resource_error(words);
    default: throw data_error(words);
  }
}

/// Before every rank throws: all have heard by now. A rank that goes ends the waiting of those that come after it, which is no
/// error here.
template <class Communicator> void leave_together(Communicator& ranks) {
  try {
    ranks.barrier();
  } catch (comm_error const&) {
  }
}

template <class Error, class Communicator, class... Parts>
void require_together(Communicator& ranks, bool holds, Parts const&... parts) {
  if (holds) return;
  leave_together(ranks);
  throw Error(sentence(parts...));
}

/// A type in the compiler's words.
template <class T> constexpr std::string_view words_of_type() { return __PRETTY_FUNCTION__; }

}  // namespace detail

/// What a rank is about to do together with others. Names are told by their first 15 characters.
struct common_call {
  std::string_view name = "";
  std::int64_t step = 0;
};

template <class Communicator, class F> void agree(Communicator& ranks, F const& f, common_call const& call = {}) {
  struct answer {
    std::int64_t step = 0, length = 0;
    detail::refusal kind = detail::refusal::none;
    char name[16] = {};
  };
  answer mine{.step = call.step};
  call.name.copy(mine.name, sizeof mine.name - 1);
  std::string words;
  std::exception_ptr thrown;
  try {
    f();
  } catch (comm_error const&) {
    throw;
  } catch (std::exception const& error) {
    thrown = std::current_exception();
    words = error.what();
    mine.length = static_cast<std::int64_t>(words.size());
    mine.kind = detail::refusal_of(error);
  }
  std::vector<answer> all(static_cast<std::size_t>(ranks.size()));
  ranks.template all_gather<answer>({&mine, 1}, all);
  for (std::size_t r = 0; r < all.size(); ++r) {
    if (all[r].kind == detail::refusal::none) continue;
    words.resize(static_cast<std::size_t>(all[r].length));
    ranks.template broadcast<char>(words, static_cast<int>(r));
    detail::leave_together(ranks);
    if (thrown) std::rethrow_exception(thrown);
    detail::throw_refusal(all[r].kind,
                          detail::sentence("rank ", r, " of the ", all.size(), " that call together refused: ", words));
  }
  for (std::size_t r = 0; r < all.size(); ++r)
    detail::require_together<data_error>(
        ranks, all[r].step == all[0].step && std::string_view(all[r].name) == all[0].name,
        "ranks must call together, but rank 0 calls ", all[0].name, " in step ", all[0].step, " and rank ", r,
        " calls ", all[r].name, " in step ", all[r].step, '.');
}

class configuration {
 public:
  template <class T> void add(char const* name, T const& value) {
    words_.push_back(detail::sentence(name, '=', value));
    values_.push_back(fnv_1a(words_.back()).value());
  }
  /// Floating-point values by their bits.
  void add(char const* name, float value) {
    add(name, detail::sentence(value, " (", __builtin_bit_cast(std::uint32_t, value), ')'));
  }

  template <class Communicator> void check(Communicator& ranks, char const* of) const {
    if (ranks.size() == 1) return;
    std::uint64_t const own = values_.size();
    std::vector<std::uint64_t> lengths(static_cast<std::size_t>(ranks.size()));
    ranks.template all_gather<std::uint64_t>({&own, 1}, lengths);
    std::size_t const longest = *std::max_element(lengths.begin(), lengths.end());
    std::vector<std::uint64_t> mine = values_, all(longest * lengths.size());
    mine.resize(longest);
    ranks.template all_gather<std::uint64_t>(mine, all);
    for (std::size_t i = 0; i < longest; ++i) {
      std::size_t other = 0;
      std::string others;
      for (std::size_t r = 1; r < lengths.size(); ++r) {
        if (all[r * longest + i] == all[i]) continue;
        if (other == 0) other = r;
        others += detail::sentence(others.empty() ? "" : ", ", r);
      }
      if (other == 0) continue;
      std::string const first = value_on(ranks, 0, i), second = value_on(ranks, other, i);
      detail::require_together<config_error>(
          ranks, false, "the ranks of ", of, " disagree on ", first.substr(0, first.find('=')), ": that of rank ",
          others, " is not that of rank 0 (rank 0: ", first, "; rank ", other, ": ", second, ").");
    }
  }

 private:
  /// Value i of a rank in words, or how many it has. A collective.
  template <class Communicator> std::string value_on(Communicator& ranks, std::size_t rank, std::size_t i) const {
    std::string words = i < words_.size() ? words_[i] : detail::sentence("the number of values=", words_.size());
    std::uint64_t length = words.size();
    ranks.template broadcast<std::uint64_t>({&length, 1}, static_cast<int>(rank));
    words.resize(length);
    ranks.template broadcast<char>(words, static_cast<int>(rank));
    return words;
  }

  std::vector<std::uint64_t> values_;
  std::vector<std::string> words_;  // name=value
};

}  // namespace moiety
