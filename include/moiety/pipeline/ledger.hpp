// SPDX-License-Identifier: Apache-2.0
// Collects what the tapes of a step say of their losses, over layers and micro-batches, without an engine:
//
//   mo::loss_ledger<block> ledger{ctx, layers};
//   ledger.record(layer, tape);                       once for every forward; before or after its backward
//   mo::loss_report<block> report = ledger.reduce();  a collective
//
// Entries add up exactly, so the order of calls does not matter. On a pipeline, `layers` are those of the whole model, and each
// rank records its own; every rank reduces, one without a layer too, and gets the same report. Where other layers lie between
// those with losses, the ledger is given the numbers of these, ascending: loss_ledger<block>{ctx, {1, 3}}.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/layer/record.hpp>
#include <moiety/layer/report.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

template <class Spec> class loss_ledger {
  using records = std::vector<layer_record<Spec>>;

 public:
  template <class Context> loss_ledger(Context& ctx, std::int64_t layers) : loss_ledger(ctx, first_numbers(layers)) {}

  template <class Context>
  loss_ledger(Context& ctx, std::vector<int> numbers)
      : numbers_(std::move(numbers)), layers_(numbers_.size()), sum_([&ctx](records& all) {
          sum_records<Spec>(ctx, all);
          gather_records<Spec>(ctx.pipeline(), all);
        }) {
    bool const ascending =
        std::adjacent_find(numbers_.begin(), numbers_.end(), std::greater_equal<>()) == numbers_.end();
    detail::require<config_error>(ascending, "the layers of a ledger are given in ascending order, each once.");
  }

  template <scalar T> void record(std::int64_t layer, layer_tape<Spec, T> const& tape) {
    record(layer, layer_record<Spec>(tape));
  }

  void record(std::int64_t layer, layer_record<Spec> const& entry) {
    auto const at = std::lower_bound(numbers_.begin(), numbers_.end(), layer);
    detail::require<data_error>(at != numbers_.end() && *at == layer, "layer ", layer, " is none of the ledger's ",
                                layers_.size(), " layers.");
    layers_[static_cast<std::size_t>(at - numbers_.begin())] += entry;
  }

  loss_report<Spec> reduce() const {
    records all = layers_;
    if (!all.empty()) sum_(all);
    return loss_report<Spec>(std::move(all), numbers_);
  }

 private:
  static std::vector<int> first_numbers(std::int64_t layers) {
    detail::require<config_error>(layers >= 1, "a ledger needs at least 1 layer, but was given ", layers, '.');
    std::vector<int> numbers(static_cast<std::size_t>(layers));
    std::iota(numbers.begin(), numbers.end(), 0);
    return numbers;
  }

  std::vector<int> numbers_;
  records layers_;
  std::function<void(records&)> sum_;  // over ranks
};

}  // namespace moiety
