// SPDX-License-Identifier: Apache-2.0
// Any bytes as a table of a schedule: a clear refusal, or a schedule that can be verified, written, and read again.
#include <moiety/pipeline.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>
#include <string_view>

namespace mo = moiety;

namespace {

void demand(bool holds) {
  if (!holds) std::abort();
}

void exercise(std::string_view text) {
  mo::schedule const plan = mo::parse_csv(text);
  mo::verdict const v = mo::verify(plan);
  std::ostringstream out;
  out << v;
  std::string const written = mo::to_csv(plan);
  if (!v) return demand(out.str().size() > 10);
  mo::schedule const again = mo::parse_csv(written);
  demand(mo::same_actions(plan, again) && mo::verify(again));
  demand(mo::lower(plan).ranks() == mo::schedule_view(plan).ranks());
  demand(!mo::draw(plan).empty());
  mo::draw_svg(out, plan);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  try {
    exercise({reinterpret_cast<char const*>(data), size});
  } catch (mo::schedule_error const& e) {
    demand(std::string_view(e.what()).size() > 10);
  }
  return 0;
}
