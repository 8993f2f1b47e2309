// SPDX-License-Identifier: Apache-2.0
// A locale of the program in which a million is 1,000,000 and a half is 0;5, for as long as it lives.
#pragma once

#include <locale>
#include <string>

class digit_groups {
 public:
  digit_groups() : before_(std::locale::global(std::locale(std::locale::classic(), new rule))) {}
  digit_groups(digit_groups const&) = delete;
  digit_groups& operator=(digit_groups const&) = delete;
  ~digit_groups() { std::locale::global(before_); }

 private:
  struct rule : std::numpunct<char> {
    char do_thousands_sep() const override { return ','; }
    std::string do_grouping() const override { return "\3"; }
    char do_decimal_point() const override { return ';'; }
  };
  std::locale before_;
};
