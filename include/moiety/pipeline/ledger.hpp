// SPDX-License-Identifier: Apache-2.0
// Collects what the tapes of a step say of their losses, over layers and micro-batches, without an engine:
//
//   mo::loss_ledger<block> ledger{ctx, layers};
//   ledger.record(layer, tape);                       once for every forward; before or after its backward
//   mo::loss_report<block> report = ledger.reduce();  a collective
//
// Entries add up exactly, so the order of calls does not matter. On a pipeline, `layers` are those of the whole model, and each
// rank records its own; every rank reduces, one without a layer too, and gets the same report.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/layer/record.hpp>
#include <moiety/layer/report.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

template <class Spec> class loss_ledger {
  using records = std::vector<layer_record<Spec>>;

 public:
  template <class Context>
  loss_ledger(Context& ctx, std::int64_t layers)
      : sum_([&ctx](records& all) {
          sum_records<Spec>(ctx, all);
          gather_records<Spec>(ctx.pipeline(), all);
        }) {
    detail::require<config_error>(layers >= 1, "a ledger needs at least 1 layer, but was given ", layers, '.');
    layers_.resize(static_cast<std::size_t>(layers));
  }

  template <scalar T> void record(std::int64_t layer, layer_tape<Spec, T> const& tape) {
    record(layer, layer_record<Spec>(tape));
  }

  void record(std::int64_t layer, layer_record<Spec> const& entry) {
    detail::require<data_error>(layer >= 0 && layer < static_cast<std::int64_t>(layers_.size()), "layer ", layer,
                                " is none of the ledger's ", layers_.size(), " layers.");
    layers_[static_cast<std::size_t>(layer)] += entry;
  }

  loss_report<Spec> reduce() const {
    records all = layers_;
    sum_(all);
    return loss_report<Spec>(std::move(all));
  }

 private:
  std::function<void(records&)> sum_;  // over ranks
  records layers_;
};

}  // namespace moiety
