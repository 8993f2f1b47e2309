// SPDX-License-Identifier: Apache-2.0
// train_lm: see README.md, or train_lm --help.
#include "options.hpp"
#include "ranks.hpp"
#include "text.hpp"

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
            << "unigram     " << s.unigram << '\n';
  if (s.steps > 0)
    std::cout << "max/mean    " << s.load << " expert load, balance loss " << s.balance
              << (o.balance ? "" : " (measured, not trained)") << ", at the end of training\n";
  std::cout << std::setprecision(0) << "training    " << s.steps << " steps of " << o.batch * o.context << " bytes in "
            << s.seconds << " s, " << s.tokens_per_second << " bytes/s, " << s.parameters << " parameters\n";
  if (!o.csv.empty()) std::cout << "csv         " << o.csv << '\n';
  if (!o.html.empty()) std::cout << "page        " << o.html << '\n';
  if (!o.checkpoint.empty()) std::cout << "checkpoint  " << o.checkpoint << '\n';
  if (o.sample > 0)
    std::cout << "\nsample, after the prompt in brackets:\n[" << printable(s.prompt) << ']' << printable(s.sample)
              << '\n';
}

/// Whether one rank and the layout agree.
bool compare_layouts(lm::text const& corpus, lm::options const& o) {
  lm::comparison const found = lm::compare(corpus, o);
  if (found.speaks)
    std::cout << o.compared << " steps on one rank, and on " << lm::layout_words(o) << ", " << lm::schedule_name(o)
              << ":\n\n"
              << found << '\n'
              << (found.agrees() ? "All agree.\n" : "They do NOT agree.\n");
  return found.agrees();
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
#if !defined(TRAIN_LM_MPI)
  command_line::require(!o.mpi, "--mpi: this program was built without MPI.");
#endif
#if !defined(TRAIN_LM_CUDA)
  command_line::require(o.backend != "cuda", "--backend cuda: this program was built without CUDA.");
#endif
  lm::text const corpus = lm::split(lm::read_file(o.text), o.context);
  if (o.compare) return compare_layouts(corpus, o) ? 0 : 1;
  lm::summary const found = lm::train(corpus, o);
  if (found.speaks) print(found, o);
  return 0;
} catch (command_line::usage_error const& error) {
  std::cerr << "train_lm: " << error.what() << " See --help.\n";
  return 2;
} catch (std::exception const& error) {
  std::cerr << "train_lm: " << error.what() << '\n';
  return 1;
}
