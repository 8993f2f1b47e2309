// SPDX-License-Identifier: Apache-2.0
// A row: the values of one token, as score rules, selections and weight rules see them.
//
// On the host a row is a span. Its verbs are all that a policy needs, so that the same policy can run where a row is
// spread over the lanes of a warp:
//
//   row.size()                   number of values
//   row.sum()                    over all values
//   row.max()                    over all values but removed ones; −∞ if none is left
//   row.argmax()                 the lowest index of that value; −1 if none is left
//   row.remove(i)                value i takes no further part in max, argmax and largest; nothing for −1
//   row.largest<K>(f)            f(rank, i) for the K largest, in the order of argmax, −1 included; may remove them
//   row.sum_of_largest<K>(a, b)  Σ of the K largest of the values a … b − 1, largest first; all of them if there are fewer
//   row.sum(f)                   Σ f(v)
//   row.map(f)                   v ← f(v)
//   row.map(other, f)            v ← f(v, o)
//   row.map_indexed(f)           v ← f(v, i)
//   mo::dot(a, b)                Σ a·b
//
// Sums have one order, a function of the length alone: 32 lanes, lane l adds the values l, l + 32, … in turn, then the
// lanes are folded in halves.
#pragma once

#include <moiety/batch/lanes.hpp>
#include <moiety/batch/largest.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/numbers.hpp>

#include <concepts>
#include <cstdint>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// Functions that a row is asked to take.
struct row_function {
  template <class V> MOIETY_HD V operator()(V v) const { return v; }
  template <class V, class Other> MOIETY_HD V operator()(V v, Other) const { return v; }
};

/// Σ of values in their order, −∞ standing for none; −∞ if there is none.
template <class S, std::size_t K> MOIETY_HD S sum_of_found(S const (&values)[K]) {
  S total = values[0];
  for (std::size_t i = 1; i < K; ++i) {
    if (!(values[i] > -infinity<S>)) break;  // not a choice: g++ would add a 0, which a sum of −0 has not
    total += values[i];
  }
  return total;
}

/// Whether i is one of 0 … size − 1.
MOIETY_HD constexpr bool is_index(int i, int size) { return i >= 0 && i < size; }

}  // namespace detail

template <class R>
concept score_row = requires(R row, R const& other, int i) {
  typename R::value_type;
  { other.size() } -> std::convertible_to<int>;
  { other.max() } -> std::same_as<typename R::value_type>;
  { other.sum() } -> std::same_as<typename R::value_type>;
  { other.argmax() } -> std::convertible_to<int>;
  row.remove(i);
  row.template largest<1>(detail::row_function{});
  { other.template sum_of_largest<1>(i, i) } -> std::same_as<typename R::value_type>;
  row.map(detail::row_function{});
  row.map(other, detail::row_function{});
  row.map_indexed(detail::row_function{});
  { other.sum(detail::row_function{}) } -> std::same_as<typename R::value_type>;
  { other.dot(other) } -> std::same_as<typename R::value_type>;
};

template <std::floating_point S> class span_row {
 public:
  using value_type = S;
  static constexpr int lanes = 32;

  MOIETY_HD span_row(S* data, std::int64_t size) : data_(data), size_(static_cast<int>(size)) {}

  MOIETY_HD int size() const { return size_; }
  MOIETY_HD S* data() const { return data_; }
  MOIETY_HD S& operator[](std::int64_t i) const { return data_[i]; }

  MOIETY_HD S max() const {
    auto const larger = [](S a, S b) { return b > a ? b : a; };
    return folded(
        -detail::infinity<S>, [&](S best, int i) { return larger(best, data_[i]); }, larger);
  }

  MOIETY_HD S sum() const {
    return folded([this](S total, int i) { return total + data_[i]; });
  }

  template <class F> MOIETY_HD S sum(F const& f) const {
    return folded([&](S total, int i) { return total + static_cast<S>(detail::call(f, data_[i])); });
  }

  MOIETY_HD int argmax() const {
    S const largest = max();
    int const none = size_;
    int const lowest = folded(
        none, [&](int found, int i) { return data_[i] == largest && i < found ? i : found; },
        [](int a, int b) { return b < a ? b : a; });
    return lowest < size_ ? lowest : -1;
  }

  template <int K, class F> MOIETY_HD void largest(F const& f) const {
    if (detail::find_largest<K>(data_, size_, f)) return;
    for (int rank = 0; rank < K; ++rank) {
      int const i = argmax();
      detail::call(f, rank, i);
      remove(i);
    }
  }

  template <int K> MOIETY_HD S sum_of_largest(int first, int last) const {
    detail::array_of<S, K> best;  // descending
    for (S& b : best) b = -detail::infinity<S>;
    for (int i = first; i < last; ++i) {
      S rest = data_[i];
      for (S& b : best) {
        S const smaller = rest > b ? b : rest;
        b = rest > b ? rest : b;
        rest = smaller;
      }
    }
    return detail::sum_of_found(best);
  }

  MOIETY_HD void remove(int i) const {
    if (detail::is_index(i, size_)) data_[i] = detail::not_a_number<S>;
  }

  template <class F> MOIETY_HD void map(F const& f) const {
    assign([&](int i) { return detail::call(f, data_[i]); });
  }

  template <class F> MOIETY_HD void map(span_row const& other, F const& f) const {
    assign([&](int i) { return detail::call(f, data_[i], other.data_[i]); });
  }

  template <class F> MOIETY_HD void map_indexed(F const& f) const {
    assign([&](int i) { return detail::call(f, data_[i], i); });
  }

  MOIETY_HD S dot(span_row const& other) const {
    return folded([&](S total, int i) { return fma(data_[i], other.data_[i], total); });
  }

 private:
  /// value[i] = of(i), in blocks of one register and of half of one: constant extents are what compilers vectorise.
  template <class Of> MOIETY_HD void assign(Of const& of) const {
    constexpr int width = vector_bytes / static_cast<int>(sizeof(S)), half = width / 2;
    int i = 0;
    for (; i + width <= size_; i += width) assign_block<width>(i, of);
    for (; i + half <= size_; i += half) assign_block<half>(i, of);
    for (; i < size_; ++i) data_[i] = static_cast<S>(of(i));
  }

  /// Through a block of its own, which nothing that `of` reads can overlap.
  template <int Extent, class Of> MOIETY_HD void assign_block(int first, Of const& of) const {
    detail::array_of<S, Extent> block;
    MOIETY_LANES
    for (int l = 0; l < Extent; ++l) block[l] = static_cast<S>(of(first + l));
    MOIETY_LANES
    for (int l = 0; l < Extent; ++l) data_[first + l] = block[l];
  }

  template <class Add> MOIETY_HD S folded(Add const& add) const {
    return folded(S{0}, add, [](S a, S b) { return a + b; });
  }

  /// The value of add over all indices, in the order that the head of this file states. Lanes without a value hold
  /// `neutral`, which changes none: short rows leave most of them out.
  template <class T, class Add, class Join> MOIETY_HD T folded(T neutral, Add const& add, Join const& join) const {
    return size_ <= lanes / 4 ? folded_in<lanes / 4>(neutral, add, join) : folded_in<lanes>(neutral, add, join);
  }

  template <int Lanes, class T, class Add, class Join>
  MOIETY_HD T folded_in(T neutral, Add const& add, Join const& join) const {
    detail::array_of<T, Lanes> lane;
    MOIETY_LANES
    for (int l = 0; l < Lanes; ++l) lane[l] = neutral;
    int const whole = size_ / Lanes * Lanes;
    for (int i = 0; i < whole; i += Lanes) {
      MOIETY_LANES
      for (int l = 0; l < Lanes; ++l) lane[l] = add(lane[l], i + l);
    }
    for (int l = 0; l < size_ - whole; ++l) lane[l] = add(lane[l], whole + l);
    return detail::halved(lane, join);
  }

  S* data_;
  int size_;
};

/// Σ a·b over two rows of one length.
template <score_row Row> MOIETY_HD auto dot(Row const& a, Row const& b) { return a.dot(b); }

static_assert(score_row<span_row<float>> && score_row<span_row<double>>);

}  // namespace moiety
