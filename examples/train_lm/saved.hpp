// SPDX-License-Identifier: Apache-2.0
// Checkpoints: weights, the optimiser's moments and the step, in one safetensors file that any layout reads.
#pragma once

#include "options.hpp"

#include <moiety/moiety.hpp>
#include <moiety/training/layer_checkpoint.hpp>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace lm {

namespace detail {

template <class Trainer> std::vector<mo::tensor_slice> slices_of(Trainer& t) {
  auto slices = mo::slices_of(t.ctx(), t.weights());
  auto const states = mo::state_slices_of(t.ctx(), t.weights(), t.optimiser());
  slices.insert(slices.end(), states.begin(), states.end());
  return slices;
}

}  // namespace detail

/// A collective of the run.
template <class Trainer> void save(Trainer& t, std::string const& path, std::int64_t step) {
  t.optimiser().prepare(t.parameters());
  mo::save_checkpoint(t.ctx().world(), path, detail::slices_of(t), {{"step", std::to_string(step)}});
}

/// The step that the file was written after. A collective of the run.
template <class Trainer> std::int64_t load(Trainer& t, std::string const& path) {
  t.optimiser().prepare(t.parameters());
  auto const metadata = mo::load_checkpoint(t.ctx().world(), path, detail::slices_of(t));
  t.weights().store();
  auto const step = metadata.find("step");
  if (step == metadata.end()) throw mo::data_error(path + " does not say its step: it is no checkpoint of train_lm.");
  t.optimiser().resume(std::stoll(step->second));
  return t.optimiser().steps();
}

}  // namespace lm
