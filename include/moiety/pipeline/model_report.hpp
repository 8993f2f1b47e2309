// SPDX-License-Identifier: Apache-2.0
// What a step's losses and loads were in a model whose layers have several specs: the same value on every rank.
//
//   mo::model_report<mine, other> report = engine.step(…);
//   report.of<mine>()                 loss_report<mine> of the layers with that spec (layer/report.hpp)
//   report.layers_of<mine>()          the numbers of these in the model
//   report.value<Loss>(layer)         unweighted, of a layer by its number
//   report.value<Loss>()              the mean over all layers that list the loss
//   report.total()                    coefficient · value of all losses, summed over layers
//
// std::cout << report prints a table for each spec. Without an engine, a ledger of such a model is told which layers have
// which spec, and which layer a record is of:
//
//   mo::model_ledger<mine, other> ledger{ctx, {1, 3}, {2}};           numbers of layers, ascending, for each spec
//   ledger.record(2, tape);
//   mo::model_report<mine, other> report = ledger.reduce();           a collective
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/layer/record.hpp>
#include <moiety/layer/report.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/pipeline/block.hpp>
#include <moiety/pipeline/ledger.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <tuple>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

template <class... Specs> class model_report {
  template <class Spec, class Loss> static constexpr bool lists = spec_of<Spec>::losses_type::template contains<Loss>;

 public:
  explicit model_report(loss_report<Specs>... reports) : reports_(std::move(reports)...) {}

  template <class Spec> loss_report<Spec> const& of() const {
    static_assert((std::same_as<Spec, Specs> || ...), "no layer of this model has that spec.");
    return std::get<loss_report<Spec>>(reports_);
  }
  template <class Spec> std::vector<int> layers_of() const {
    std::vector<int> numbers;
    for (std::size_t l = 0; l < of<Spec>().layers(); ++l) numbers.push_back(of<Spec>().number(l));
    return numbers;
  }

  template <class Loss> double value(int layer) const {
    double found = 0;
    bool listed = false;
    for_each_value<Loss>([&](int number, double value) {
      if (number == layer) found = value, listed = true;
    });
    detail::require<data_error>(listed, "layer ", layer, " has no loss ", Loss::name, '.');
    return found;
  }

  template <class Loss> double value() const {
    double sum = 0, count = 0;
    for_each_value<Loss>([&](int, double value) { sum += value, ++count; });
    return count > 0 ? sum / count : 0;
  }

  double total() const { return (0.0 + ... + of<Specs>().total()); }

  friend std::ostream& operator<<(std::ostream& out, model_report const& report) {
    (report.print<Specs>(out), ...);
    return out;
  }

 private:
  /// f(number of a layer, its value) for each that lists the loss, spec by spec.
  template <class Loss, class F> void for_each_value(F const& f) const {
    static_assert((lists<Specs, Loss> || ...), "this report is of specs that do not list the loss.");
    auto const one = [&]<class Spec>(loss_report<Spec> const& report) {
      if constexpr (lists<Spec, Loss>)
        for (std::size_t l = 0; l < report.layers(); ++l) f(report.number(l), report.layer(l).template value<Loss>());
    };
    (one(of<Specs>()), ...);
  }

  template <class Spec> void print(std::ostream& out) const {
    if (of<Spec>().layers() == 0) return;
    out << (of<Spec>().layers() == 1 ? "layer" : "layers");
    for (int const number : layers_of<Spec>()) out << ' ' << number;
    out << '\n' << of<Spec>();
  }

  std::tuple<loss_report<Specs>...> reports_;
};

namespace detail {
template <class> using numbers_of_layers = std::vector<int>;
}  // namespace detail

template <class... Specs> class model_ledger {
 public:
  template <class Context>
  explicit model_ledger(Context& ctx, detail::numbers_of_layers<Specs>... numbers)
      : ledgers_(loss_ledger<Specs>(ctx, std::move(numbers))...) {}

  template <class Spec> void record(std::int64_t layer, layer_record<Spec> const& entry) {
    std::get<loss_ledger<Spec>>(ledgers_).record(layer, entry);
  }
  template <class Spec, scalar T> void record(std::int64_t layer, layer_tape<Spec, T> const& tape) {
    record(layer, layer_record<Spec>(tape));
  }

  model_report<Specs...> reduce() const {
    return model_report<Specs...>{std::get<loss_ledger<Specs>>(ledgers_).reduce()...};
  }

 private:
  std::tuple<loss_ledger<Specs>...> ledgers_;
};

namespace detail {

/// The ledger of a stack whose layers have these specs.
template <class Context, class Stack, class... Specs>
auto ledger_of_layers(Context& ctx, Stack const& stack, spec_list<Specs...>) {
  if constexpr (sizeof...(Specs) == 1)
    return loss_ledger<Specs...>(ctx, stack.template layers_of<Specs...>());
  else
    return model_ledger<Specs...>(ctx, stack.template layers_of<Specs>()...);
}

}  // namespace detail

}  // namespace moiety
