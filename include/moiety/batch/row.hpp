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
//   row.remove(i)                value i takes no further part in max and argmax
//   row.sum(f)                   Σ f(v)
//   row.map(f)                   v ← f(v)
//   row.map(other, f)            v ← f(v, o)
//   row.map_indexed(f)           v ← f(v, i)
//   mo::dot(a, b)                Σ a·b
//
// Sums have one order, a function of the length alone: 32 lanes, lane l adds the values l, l + 32, … in turn, then the
// lanes are folded in halves.
#pragma once

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

}  // namespace detail

template <class R>
concept score_row = requires(R row, R const& other, int i) {
  typename R::value_type;
  { other.size() } -> std::convertible_to<int>;
  { other.max() } -> std::same_as<typename R::value_type>;
  { other.sum() } -> std::same_as<typename R::value_type>;
  { other.argmax() } -> std::convertible_to<int>;
  row.remove(i);
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
    if (size_ < lanes / 2) return short_max();
    S lane[lanes];
    for (int l = 0; l < lanes; ++l) lane[l] = -detail::infinity<S>;
    int const whole = size_ / lanes * lanes;
    for (int i = 0; i < whole; i += lanes)
      for (int l = 0; l < lanes; ++l) lane[l] = data_[i + l] > lane[l] ? data_[i + l] : lane[l];
    for (int l = 0; l < size_ - whole; ++l) lane[l] = data_[whole + l] > lane[l] ? data_[whole + l] : lane[l];
    return halved(lane, [](S a, S b) { return b > a ? b : a; });
  }

  MOIETY_HD S sum() const {
    return folded([this](S total, int i) { return total + data_[i]; });
  }

  template <class F> MOIETY_HD S sum(F const& f) const {
    return folded([&](S total, int i) { return total + static_cast<S>(f(data_[i])); });
  }

  MOIETY_HD int argmax() const {
    S const largest = max();
    if (size_ < lanes / 2) return short_find(largest);
    int lane[lanes];
    for (int l = 0; l < lanes; ++l) lane[l] = size_;
    int const whole = size_ / lanes * lanes;
    for (int l = 0; l < size_ - whole; ++l) lane[l] = data_[whole + l] == largest ? whole + l : lane[l];
    for (int i = whole - lanes; i >= 0; i -= lanes)  // downwards, so that the lowest index stays
      for (int l = 0; l < lanes; ++l) lane[l] = data_[i + l] == largest ? i + l : lane[l];
    int const lowest = halved(lane, [](int a, int b) { return b < a ? b : a; });
    return lowest < size_ ? lowest : -1;
  }

  MOIETY_HD void remove(int i) const { data_[i] = detail::not_a_number<S>; }

  template <class F> MOIETY_HD void map(F const& f) const {
    for (int i = 0; i < size_; ++i) data_[i] = static_cast<S>(f(data_[i]));
  }

  template <class F> MOIETY_HD void map(span_row const& other, F const& f) const {
    for (int i = 0; i < size_; ++i) data_[i] = static_cast<S>(f(data_[i], other.data_[i]));
  }

  template <class F> MOIETY_HD void map_indexed(F const& f) const {
    for (int i = 0; i < size_; ++i) data_[i] = static_cast<S>(f(data_[i], i));
  }

  MOIETY_HD S dot(span_row const& other) const {
    return folded([&](S total, int i) { return fma(data_[i], other.data_[i], total); });
  }

 private:
  /// The value of add over all indices, in the order that the head of this file states.
  template <class Add> MOIETY_HD S folded(Add const& add) const {
    S lane[lanes] = {};
    int const whole = size_ / lanes * lanes;
    for (int i = 0; i < whole; i += lanes)
      for (int l = 0; l < lanes; ++l) lane[l] = add(lane[l], i + l);
    for (int l = 0; l < size_ - whole; ++l) lane[l] = add(lane[l], whole + l);
    return halved(lane, [](S a, S b) { return a + b; });
  }

  MOIETY_HD S short_max() const {
    S largest = -detail::infinity<S>;
    for (int i = 0; i < size_; ++i) largest = data_[i] > largest ? data_[i] : largest;
    return largest;
  }

  MOIETY_HD int short_find(S value) const {
    for (int i = 0; i < size_; ++i)
      if (data_[i] == value) return i;
    return -1;
  }

  /// The lanes folded in halves.
  template <class T, class Join> MOIETY_HD static T halved(T (&lane)[lanes], Join const& join) {
    MOIETY_UNROLL(8)
    for (int half = lanes / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) lane[l] = join(lane[l], lane[l + half]);
    return lane[0];
  }

  S* data_;
  int size_;
};

/// Σ a·b over two rows of one length.
template <score_row Row> MOIETY_HD auto dot(Row const& a, Row const& b) { return a.dot(b); }

static_assert(score_row<span_row<float>> && score_row<span_row<double>>);

}  // namespace moiety
