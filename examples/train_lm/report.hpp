// SPDX-License-Identifier: Apache-2.0
// What a run shows: one line that rewrites itself on a terminal, else a plain line now and then; a CSV of all steps.
#pragma once

#include "options.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace lm {

struct step_record {
  std::int64_t step = 0;
  double bits = 0, balance = 0, z = 0, load = 0, rate = 0, norm = 0, seconds = 0, tokens_per_second = 0, left = 0;
  double validation = 0;                           // bits of a sample of held-out windows; 0 where none were scored
  std::vector<std::vector<std::int64_t>> loads{};  // bytes that chose each expert, layer by layer
  std::string report{};                            // of all layers, where it was asked for
};

class reporter {
 public:
  explicit reporter(options const& o)
      : live_(!o.quiet && ::isatty(STDOUT_FILENO) == 1),
        quiet_(o.quiet),
        every_(std::max<std::int64_t>(1, o.steps / 20)) {
    if (o.csv.empty()) return;
    csv_.open(o.csv);
    if (!csv_) throw std::runtime_error("cannot write " + o.csv + ".");
    csv_ << "step,bits_per_byte,load_balance,router_z,max_over_mean_load,learning_rate,gradient_norm,seconds,"
            "tokens_per_second\n";
  }

  void step(step_record const& r, bool last) {
    if (csv_.is_open())
      csv_ << r.step << ',' << r.bits << ',' << r.balance << ',' << r.z << ',' << r.load << ',' << r.rate << ','
           << r.norm << ',' << r.seconds << ',' << r.tokens_per_second << '\n';
    bool const shown = last || !r.report.empty() || (live_ ? r.seconds - shown_ > 0.2 : r.step % every_ == 0);
    if (quiet_ || !shown) return;
    bool const ends = !live_ || last || !r.report.empty();
    std::cout << (live_ ? "\r" : "") << line(r) << (live_ ? "\033[K" : "") << (ends ? "\n" : "") << r.report
              << std::flush;
    shown_ = r.seconds;
  }

 private:
  static std::string line(step_record const& r) {
    std::ostringstream out;
    out << std::fixed << "step " << std::setw(5) << r.step << "  " << std::setprecision(3) << r.bits
        << " bits/byte  balance " << r.balance << "  z " << std::setprecision(2) << r.z << "  max/mean load " << r.load
        << "  " << std::setprecision(0) << r.tokens_per_second << " tokens/s  " << r.left << " s left";
    return std::move(out).str();
  }

  bool live_, quiet_;
  std::int64_t every_;
  double shown_ = -1;
  std::ofstream csv_;
};

}  // namespace lm
