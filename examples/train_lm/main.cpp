// SPDX-License-Identifier: Apache-2.0
// train_lm: see README.md, or train_lm --help.
#include "options.hpp"
#include "text.hpp"
#include "train.hpp"

#include <cctype>
#include <cstddef>
#include <exception>
#include <iomanip>
#include <iostream>
#include <span>
#include <string>

namespace {

/// Bytes that a terminal would take for commands are shown as dots.
std::string printable(std::string text) {
  for (char& c : text)
    if (c != '\n' && std::iscntrl(static_cast<unsigned char>(c)) != 0) c = '.';
  return text;
}

void print(lm::summary const& s, lm::options const& o) {
  std::cout << std::fixed << std::setprecision(3) << "\nvalidation  " << s.validation << " bits per byte\n"
            << "bigram      " << s.bigram << '\n'
            << "unigram     " << s.unigram << '\n'
            << "max/mean    " << s.load << " expert load, balance loss " << s.balance
            << (o.balance ? "" : " (measured, not trained)") << ", at the end of training\n"
            << std::setprecision(0) << "training    " << s.steps << " steps of " << o.batch * o.context << " bytes in "
            << s.seconds << " s, " << s.tokens_per_second << " bytes/s, " << s.parameters << " parameters\n";
  if (!o.csv.empty()) std::cout << "csv         " << o.csv << '\n';
  if (o.sample > 0)
    std::cout << "\nsample, after the prompt in brackets:\n[" << printable(s.prompt) << ']' << printable(s.sample)
              << '\n';
}

}  // namespace

int main(int argc, char** argv) try {
  lm::options defaults;
  defaults.text = TRAIN_LM_TEXT;
  std::span<char const* const> const arguments(argv + 1, static_cast<std::size_t>(argc - 1));
  lm::options const o = lm::parse(arguments, defaults);
  if (o.help) {
    lm::print_help(std::cout, defaults);
    return 0;
  }
  print(lm::train(lm::split(lm::read_file(o.text), o.context), o), o);
  return 0;
} catch (command_line::usage_error const& error) {
  std::cerr << "train_lm: " << error.what() << " See --help.\n";
  return 2;
} catch (std::exception const& error) {
  std::cerr << "train_lm: " << error.what() << '\n';
  return 1;
}
