// SPDX-License-Identifier: Apache-2.0
#include <moiety/dispatcher/padded.hpp>

#include "dispatcher/exchanges.hpp"

#include <moiety/cuda.cuh>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <stdexcept>
#include <vector>

namespace {

using exchanges::width;
using device_ranks = mo::device_ranks<mo::thread_communicator>;

/// Memory of an engine that the host cannot read, nor write.
struct closed_arena : mo::arena {
  explicit closed_arena(mo::cuda_engine& engine) : arena(static_cast<std::pmr::memory_resource&>(engine.memory())) {}
  ~closed_arena() override { give_back_all(); }
  void zero(void*, std::int64_t) override { throw std::logic_error("the host zeroed device memory"); }
  void store(void*, void const*, std::int64_t) override { throw std::logic_error("the host wrote to the device"); }
  void load(void*, void const*, std::int64_t) override { throw std::logic_error("the host read from the device"); }
  bool of_host() const override { return false; }

 protected:
  void taken_from_hook(void*, std::size_t) override {}
};

template <class V> mo::buffer placed(mo::cuda_engine& engine, std::vector<V> const& values) {
  mo::buffer block(static_cast<std::int64_t>(values.size() * sizeof(V)), engine.memory());
  engine.memory().store(block.data(), values.data(), block.bytes());
  return block;
}
template <class V> std::vector<V> taken(mo::cuda_engine& engine, V const* from, std::int64_t count) {
  std::vector<V> values(static_cast<std::size_t>(count));
  engine.memory().load(values.data(), from, count * static_cast<std::int64_t>(sizeof(V)));
  return values;
}

/// Tokens of one rank go to experts and back, as the host knows them to.
void check_rank(mo::thread_communicator& of, exchanges::shape const& s, exchanges::choices const& all) {
  mo::cuda_engine engine{mo::cuda{}};
  device_ranks ranks(engine, of);
  closed_arena memory(engine);
  exchanges::own_rows mine(all, ranks.rank());
  mo::buffer const starts = placed(engine, mine.starts), index = placed(engine, mine.tokens);
  mo::permutation_view order = mine.view();
  order.starts = static_cast<std::int64_t*>(starts.data());
  order.source_tokens = nullptr;
  std::vector<std::int64_t> values;
  for (std::int64_t t = 0; t < mine.token_count; ++t)
    for (std::int64_t c = 0; c < width; ++c) values.push_back(exchanges::mark(ranks.rank(), t, c));
  mo::buffer const tokens = placed(engine, values);
  std::int64_t const share = s.experts * s.copies / s.ranks;
  auto const wanted = exchanges::expected(all, ranks.rank() / s.copies * share, share);

  mo::padded_exchange::links<device_ranks> through(ranks);
  mo::padded_exchange rows(through, order, s.experts, s.copies, memory, {24, 24 * s.ranks});
  mo::buffer room;
  auto const came =
      rows.bring(through,
                 mo::kernels::rows_of<std::int64_t>{static_cast<std::int64_t const*>(tokens.data()), width,
                                                    static_cast<std::int32_t const*>(index.data())},
                 width, room, memory);
  expect(rows.rows() == rows.most_rows(), "as many rows as may come");
  auto const count = static_cast<std::int64_t>(wanted.size());
  expect(taken(engine, rows.offsets() + share, 1)[0] * width == count, "the device knows how many came");
  expect(taken(engine, came.data, count) == wanted, "rows at their experts");

  mo::buffer const back = placed(engine, std::vector<std::int64_t>(static_cast<std::size_t>(mine.count() * width), -1));
  rows.give_back(through, came.data, width, static_cast<std::int64_t*>(back.data()), memory);
  std::vector<std::int64_t> sums;
  for (std::int32_t const t : std::vector(mine.tokens))
    for (std::int64_t c = 0; c < width; ++c) sums.push_back(s.copies * exchanges::mark(ranks.rank(), t, c));
  expect(taken(engine, static_cast<std::int64_t const*>(back.data()), mine.count() * width) == sums, "rows at home");
}

}  // namespace

TEST_CASE("rows of device memory go to their experts and back, and the host reads nothing") {
  unsigned seed = 1;
  for (exchanges::shape const& s : exchanges::all_shapes)
    for (auto const how : {exchanges::kind::random, exchanges::kind::one_expert, exchanges::kind::last_rank_empty,
                           exchanges::kind::none}) {
      INFO(s.ranks, " ranks, ", s.copies, " copies, ", s.experts, " experts, kind ", static_cast<int>(how));
      exchanges::choices const all = exchanges::draw(s.ranks, s.experts, how, seed++);
      on_ranks(s.ranks, [&](mo::thread_communicator& ranks) { check_rank(ranks, s, all); });
    }
}
