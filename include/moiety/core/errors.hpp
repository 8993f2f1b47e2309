// SPDX-License-Identifier: Apache-2.0
// The errors that a run-time fault ends in. Each is thrown before anything is written.
//
//   config_error    an option, size or layout that can never work       (std::invalid_argument)
//   data_error      an argument of one call: shapes, memory, aliasing, values (std::domain_error)
//   state_error     a call that the object's state does not allow       (std::logic_error)
//   resource_error  memory or a file that could not be had              (std::bad_alloc)
//   cuda_error      what a CUDA call said, and what it was for          (std::runtime_error)
//   comm_error      an operation among ranks that cannot complete        (std::runtime_error)
#pragma once

#include <moiety/core/config.hpp>

#include <cstdint>
#include <locale>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace moiety::inline MOIETY_ABI {

struct config_error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

struct data_error : std::domain_error {
  using std::domain_error::domain_error;
};

struct state_error : std::logic_error {
  using std::logic_error::logic_error;
};

struct resource_error : std::bad_alloc {
  explicit resource_error(std::string what) : what_(std::move(what)) {}
  char const* what() const noexcept override { return what_.c_str(); }

 private:
  std::string what_;
};

struct cuda_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Why an operation among ranks cannot complete: a rank did not come within the deadline; an earlier failure of this rank;
/// ranks called different operations, or with different sizes; another rank failed.
enum class comm_fault { timeout, aborted, mismatch, remote };

/// Names the operation, the rank at fault and the training step. The ranks of the run can no longer communicate.
struct comm_error : std::runtime_error {
  comm_error(comm_fault why, std::string of, int at_fault, std::int64_t in_step, std::string const& what)
      : std::runtime_error(what), fault(why), operation(std::move(of)), rank(at_fault), step(in_step) {}

  comm_fault fault;
  std::string operation;
  int rank;           // of the run
  std::int64_t step;  // of the last batch
};

namespace detail {

/// Text with plain numbers, whatever the locale of the program.
struct plain_text : std::ostringstream {
  plain_text() { imbue(std::locale::classic()); }
};

template <class... Parts> std::string sentence(Parts const&... parts) {
  plain_text out;
  (out << ... << parts);
  return std::move(out).str();
}

/// Throws Error with the joined parts unless the condition holds.
template <class Error, class... Parts> void require(bool condition, Parts const&... parts) {
  if (!condition) throw Error(sentence(parts...));
}

/// "[rows x cols]", as shapes appear in messages.
inline std::string shape(std::int64_t rows, std::int64_t cols) { return sentence('[', rows, " x ", cols, ']'); }

}  // namespace detail

}  // namespace moiety
