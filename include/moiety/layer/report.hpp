// SPDX-License-Identifier: Apache-2.0
// What a step's losses and loads were, layer by layer, unweighted and weighted: the same value on every rank.
//
//   report.value<Loss>()        unweighted, mean over layers         report.per_layer<Loss>()
//   report.weighted<Loss>()     coefficient · value, sum over layers  report.total()    all losses
//   report.tokens()             unmasked tokens, counted once         report.states()   tokens by state, one layer
//   report.counts(layer)        slots that asked for each expert      report.max_over_mean()   mean over layers, or of one
//   report.dropped(layer)       those that its capacity dropped       report.entropy()   of loads; mean over layers, or of one
//   report.dead(layer)          experts that no slot asked for        report.number(layer)   of the layer in its model
//
// std::cout << report prints a small table.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/layer/record.hpp>
#include <moiety/layer/spec.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iomanip>
#include <ostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

template <class Spec> class loss_report {
  using losses_type = typename spec_of<Spec>::losses_type;

  /// Columns of the table's names.
  static int name_width() {
    std::size_t longest = 14;
    losses_type{}.for_each([&]<class Loss>(Loss const&) { longest = std::max(longest, Loss::name.size()); });
    return static_cast<int>(longest) + 2;
  }

 public:
  /// The numbers of the layers in the model, where these are not all of its layers.
  explicit loss_report(std::vector<layer_record<Spec>> layers, std::vector<int> numbers = {})
      : layers_(std::move(layers)), numbers_(std::move(numbers)) {}

  std::size_t layers() const { return layers_.size(); }
  layer_record<Spec> const& layer(std::size_t index) const { return layers_.at(index); }
  int number(std::size_t index) const { return numbers_.empty() ? static_cast<int>(index) : numbers_.at(index); }

  template <class Loss> std::vector<double> per_layer() const {
    static_assert(losses_type::template contains<Loss>, "this report is of a spec that does not list the loss.");
    std::vector<double> values;
    for (auto const& l : layers_) values.push_back(l.template value<Loss>());
    return values;
  }

  template <class Loss> double value() const {
    double sum = 0;
    for (double const v : per_layer<Loss>()) sum += v;
    return layers_.empty() ? 0 : sum / static_cast<double>(layers_.size());
  }

  template <class Loss> double weighted() const {
    static_assert(losses_type::template contains<Loss>, "this report is of a spec that does not list the loss.");
    double sum = 0;
    for (auto const& l : layers_) sum += l.template weighted<Loss>();
    return sum;
  }

  double total() const {
    double sum = 0;
    losses_type{}.for_each([&]<class Loss>(Loss const&) { sum += weighted<Loss>(); });
    return sum;
  }

  token_counts states() const { return layers_.empty() ? token_counts{} : layers_.front().tokens; }
  std::int64_t tokens() const {
    token_counts const all = states();
    return all.routed + all.sanitised + all.unroutable;
  }

  std::vector<std::int64_t> counts(std::size_t layer = 0) const { return layers_.at(layer).statistics.counts(); }

  std::vector<std::int64_t> dropped(std::size_t layer = 0) const { return layers_.at(layer).statistics.dropped(); }

  /// The largest load of an expert over the mean load, as the mean over layers.
  double max_over_mean() const {
    return mean([this](std::size_t layer) { return max_over_mean(layer); });
  }

  /// The same in one layer; 0 if nothing was routed.
  double max_over_mean(std::size_t layer) const {
    std::int64_t largest = 0, all = 0;
    std::vector<std::int64_t> const loads = counts(layer);
    for (std::int64_t const load : loads) largest = std::max(largest, load), all += load;
    return all == 0 ? 0 : static_cast<double>(largest) * static_cast<double>(loads.size()) / static_cast<double>(all);
  }

  /// −Σ p log p / log E of the shares p of the E experts in a layer's slots: 1 where loads are equal, 0 where one expert has all
  /// or there are none.
  double entropy(std::size_t layer) const {
    std::int64_t all = 0;
    std::vector<std::int64_t> const loads = counts(layer);
    for (std::int64_t const load : loads) all += load;
    if (all == 0 || loads.size() == 1) return all > 0;
    double sum = 0;
    for (std::int64_t const load : loads)
      if (double const p = static_cast<double>(load) / static_cast<double>(all); load > 0) sum -= p * moiety::log(p);
    return std::min(1.0, sum / moiety::log(static_cast<double>(loads.size())));
  }
  double entropy() const {
    return mean([this](std::size_t layer) { return entropy(layer); });
  }

  std::int64_t dead(std::size_t layer = 0) const {
    std::vector<std::int64_t> const loads = counts(layer);
    return std::count(loads.begin(), loads.end(), 0);
  }

  friend std::ostream& operator<<(std::ostream& out, loss_report const& report) {
    int const width = report.name_width();
    std::ostringstream text;
    text << std::left << std::setw(width) << "loss" << std::setw(14) << "over" << std::right << std::setw(12) << "value"
         << std::setw(14) << "weighted" << '\n';
    losses_type{}.for_each([&]<class Loss>(Loss const&) {
      text << std::left << std::setw(width) << Loss::name << std::setw(14) << Loss::unit::name << std::right
           << std::setw(12) << report.template value<Loss>() << std::setw(14) << report.template weighted<Loss>()
           << '\n';
    });
    token_counts const states = report.states();
    text << report.tokens() << " tokens";
    if (states.masked > 0) text << ", " << states.masked << " masked";
    if (states.sanitised + states.unroutable > 0)
      text << ", " << states.sanitised + states.unroutable << " with non-finite logits";
    text << '\n';
    for (std::size_t l = 0; l < report.layers(); ++l) {
      if (report.layers() > 1 || report.number(l) > 0) text << "layer " << report.number(l) << ": ";
      text << "max/mean load " << report.max_over_mean(l) << ", entropy " << report.entropy(l) << ", dead experts "
           << report.dead(l) << ", slots per expert";
      for (std::int64_t const count : report.counts(l)) text << ' ' << count;
      if constexpr (spec_of<Spec>::capacity_type::drops) {
        text << ", dropped";
        for (std::int64_t const count : report.dropped(l)) text << ' ' << count;
      }
      text << '\n';
    }
    return out << text.str();
  }

 private:
  template <class F> double mean(F const& of_layer) const {
    double sum = 0;
    for (std::size_t l = 0; l < layers_.size(); ++l) sum += of_layer(l);
    return layers_.empty() ? 0 : sum / static_cast<double>(layers_.size());
  }

  std::vector<layer_record<Spec>> layers_;
  std::vector<int> numbers_;
};

}  // namespace moiety
