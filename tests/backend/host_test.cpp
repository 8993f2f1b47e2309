// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/host.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <cstdint>
#include <vector>

namespace mo = moiety;

TEST_CASE("each worker has scratch memory of its own, aligned") {
  mo::host_engine engine(mo::host{.threads = 3});
  CHECK(engine.threads() == 3);
  for (int w = 0; w < 3; ++w) {
    CHECK(engine.scratch(w).size() == static_cast<std::size_t>(mo::host_engine::scratch_bytes));
    CHECK(reinterpret_cast<std::uintptr_t>(engine.scratch(w).data()) % 64 == 0);
    if (w > 0) CHECK(engine.scratch(w - 1).data() + mo::host_engine::scratch_bytes <= engine.scratch(w).data());
  }
  engine.synchronize();
}

TEST_CASE("blocks partition the count") {
  mo::host_engine engine(mo::host{.threads = 2});
  for (std::int64_t const count : {0, 1, 63, 64, 65, 1000}) {
    std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
    engine.for_blocks(count, 64, [&](std::int64_t first, std::int64_t last, int) {
      CHECK(last - first <= 64);
      CHECK(last - first >= 1);
      for (std::int64_t i = first; i < last; ++i) ++seen[static_cast<std::size_t>(i)];
    });
    for (auto const& s : seen) CHECK(s == 1);
  }
}

TEST_CASE("the host rejects what is not finite, unless told otherwise") {
  CHECK(mo::host::default_non_finite == mo::non_finite::reject);
}
