// SPDX-License-Identifier: Apache-2.0
// Run on the CPU only, where threads stand for NCCL's ranks on one device: NCCL itself wants a device for each.
#include <moiety/backend/transport/nccl_ranks.cuh>

#include "backend/transport/thread_ranks.hpp"
#include "pipeline/staged_steps.hpp"
#include "properties/ranks.hpp"

#include <moiety/cuda.cuh>

#include <moiety/dispatcher/all_gather.hpp>
#include <moiety/dispatcher/padded.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <ratio>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using on_device = mo::device_ranks<mo::nccl_communicator>;
static_assert(mo::communicator<on_device>);

/// One rank of NCCL in each of so many threads, with an engine.
void on_nccl(int size, std::function<void(mo::cuda_engine&, on_device&)> const& body) {
  on_ranks(size, [&](mo::thread_communicator& of) {
    mo::cuda_engine engine{mo::cuda{}};
    on_device ranks(engine, mo::nccl_communicator::over(of, 0));
    body(engine, ranks);
  });
}

constexpr std::int64_t columns = 3;
std::int32_t mark(int from, int to, std::int64_t row, std::int64_t column) {
  return static_cast<std::int32_t>(100000 * from + 10000 * to + 10 * row + column);
}
std::int64_t count_of(int from, int to) { return (from + to) % 3 == 2 ? 0 : 4 + from + 2 * to; }

/// Rows for each rank, gathered from the end of what a rank has, scattered by it to every second place.
void exchange_rows(mo::cuda_engine& engine, on_device& ranks, bool gathered, bool scattered) {
  int const me = ranks.rank(), size = ranks.size();
  auto const all_of = [&](auto const& count) {
    std::int64_t all = 0;
    for (int r = 0; r < size; ++r) all += count(r);
    return all;
  };
  std::int64_t const out = all_of([&](int r) { return count_of(me, r); }),
                     in = all_of([&](int r) { return count_of(r, me); });
  std::vector<std::int32_t> values(static_cast<std::size_t>(out * columns)), backwards, second, wanted;
  wanted.resize(static_cast<std::size_t>(2 * in * columns));
  std::int64_t at = 0;
  for (int r = 0; r < size; ++r)
    for (std::int64_t row = 0; row < count_of(me, r); ++row, ++at)
      for (std::int64_t c = 0; c < columns; ++c)
        values[static_cast<std::size_t>((gathered ? out - 1 - at : at) * columns + c)] = mark(me, r, row, c);
  at = 0;
  for (int r = 0; r < size; ++r)
    for (std::int64_t row = 0; row < count_of(r, me); ++row, ++at)
      for (std::int64_t c = 0; c < columns; ++c)
        wanted[static_cast<std::size_t>((scattered ? 2 * at : at) * columns + c)] = mark(r, me, row, c);
  for (std::int64_t i = out; i-- > 0;) backwards.push_back(static_cast<std::int32_t>(i));
  for (std::int64_t i = 0; i < in; ++i) second.push_back(static_cast<std::int32_t>(2 * i));
  auto const placed = [&](auto const& list) {
    mo::buffer block(static_cast<std::int64_t>(list.size() * sizeof(list[0])), engine.memory());
    engine.memory().store(block.data(), list.data(), block.bytes());
    return block;
  };
  mo::buffer const own = placed(values), from_index = placed(backwards), to_index = placed(second),
                   room(2 * in * columns * 4, engine.memory());
  engine.memory().zero(room.data(), room.bytes());
  std::vector<mo::outgoing_rows> to;
  std::vector<mo::incoming_rows> from;
  std::int64_t sent = 0, came = 0;
  for (int r = 0; r < size; ++r) {
    auto const* const data = static_cast<std::byte const*>(own.data());
    auto* const place = static_cast<std::byte*>(room.data());
    to.push_back({gathered ? data : data + sent * columns * 4, count_of(me, r), columns * 4, columns * 4,
                  gathered ? static_cast<std::int32_t const*>(from_index.data()) + sent : nullptr});
    from.push_back({scattered ? place : place + came * columns * 4, count_of(r, me), columns * 4, columns * 4,
                    scattered ? static_cast<std::int32_t const*>(to_index.data()) + came : nullptr});
    sent += count_of(me, r), came += count_of(r, me);
  }
  auto begun = ranks.start({.name = "rows", .width = columns * 4}, to, from);
  ranks.finish(std::move(begun));
  std::vector<std::int32_t> got(wanted.size());
  engine.memory().load(got.data(), room.data(), room.bytes());
  expect(got == wanted, "rows of all ranks");
}

}  // namespace

TEST_CASE("rows of any place are packed for NCCL, and unpacked") {
  for (int const size : {1, 2, 4})
    on_nccl(size, [](mo::cuda_engine& engine, on_device& ranks) {
      for (bool const gathered : {false, true})
        for (bool const scattered : {false, true}) exchange_rows(engine, ranks, gathered, scattered);
    });
}

TEST_CASE("values of the host have all collectives, with sums of the fixed order") {
  on_nccl(3, [](mo::cuda_engine&, on_device& ranks) {
    float const part[] = {1.0f, 0x1p-24f, 0x1p-24f};  // (1 + u) + u is 1, and 1 + (u + u) is not
    std::vector<float> many(9000, part[ranks.rank()]), few(2, part[ranks.rank()]);
    ranks.all_reduce(std::span<float>(many)), ranks.all_reduce(std::span<float>(few));
    expect(many == std::vector<float>(9000, 1.0f) && few == std::vector<float>(2, 1.0f), "sums");
    std::vector<std::int64_t> const mine(static_cast<std::size_t>(ranks.rank()), ranks.rank());
    expect(ranks.all_gather_v<std::int64_t>(mine) == std::vector<std::int64_t>{1, 2, 2}, "all_gather_v");
    std::vector<std::int64_t> out{10 * ranks.rank(), 10 * ranks.rank() + 1, 10 * ranks.rank() + 2}, in(3);
    ranks.all_to_all<std::int64_t>(out, in);
    expect(in == std::vector<std::int64_t>{ranks.rank(), 10 + ranks.rank(), 20 + ranks.rank()}, "all_to_all");
    std::string word = ranks.rank() == 1 ? "a word" : "      ";
    ranks.broadcast<char>(word, 1);
    expect(word == "a word", "broadcast");
    ranks.barrier();
  });
}

TEST_CASE("parts of a group exchange rows and values") {
  on_nccl(4, [](mo::cuda_engine& engine, on_device& ranks) {
    on_device part = ranks.split(ranks.rank() % 2, ranks.rank(), "half");
    exchange_rows(engine, part, true, true);
    int sum = ranks.rank();
    part.all_reduce(std::span(&sum, 1));
    expect(sum == (ranks.rank() % 2 == 0 ? 2 : 4));
  });
}

TEST_CASE("calls that do not fit end the run, as a mismatch where that is seen first") {
  auto const all = thread_ranks(2).run([](mo::thread_communicator& of) {
    mo::cuda_engine engine{mo::cuda{}};
    on_device ranks(engine, mo::nccl_communicator::over(of, 0));
    std::vector<int> values(static_cast<std::size_t>(3 + of.rank()));
    ranks.broadcast<int>(values, 0);
  });
  int mismatches = 0;
  for (auto const& outcome : all)
    mismatches += thrown<mo::comm_error>(outcome).value().fault == mo::comm_fault::mismatch;
  CHECK(mismatches > 0);
}

TEST_CASE("a rank that throws ends the others' waiting") {
  auto const all = thread_ranks(3).run([](mo::thread_communicator& of) {
    mo::cuda_engine engine{mo::cuda{}};
    on_device ranks(engine, mo::nccl_communicator::over(of, 0));
    ranks.barrier();
    if (of.rank() == 1) throw mo::data_error("no more.");
    exchange_rows(engine, ranks, true, false);
  });
  CHECK(thrown<mo::data_error>(all[1]).has_value());
  for (int const r : {0, 2}) CHECK(thrown<mo::comm_error>(all[static_cast<std::size_t>(r)]).has_value());
}

#if defined(CUDA_ON_CPU)
TEST_CASE("a context on another device than NCCL's rank is refused") {
  cuda_on_cpu::knobs.devices = 2;
  auto const all = thread_ranks(1).run([](mo::thread_communicator& of) {
    mo::cuda_engine engine{mo::cuda{.device = 1}};
    on_device const ranks(engine, mo::nccl_communicator::over(of, 0));
  });
  cuda_on_cpu::reset();
  CHECK(thrown<mo::config_error>(all[0]).has_value());
}
#endif

namespace {

/// What a launcher would say, of a thread.
thread_local int rank_here = 0, size_here = 1;
ncclUniqueId meeting;

struct of_threads : mo::nccl_communicator {
  explicit of_threads(mo::nccl_communicator of) : nccl_communicator(std::move(of)) {}
  static of_threads world(mo::run_options const& options) {
    return of_threads(join(rank_here, size_here, 0, meeting, options));
  }
};
struct nccl_of_threads {
  static constexpr bool single_rank = false;
  using communicator = of_threads;
};

/// body(r) for each of so many ranks of NCCL.
void as_ranks(int size, std::function<void(int)> const& body) {
  static_cast<void>(ncclGetUniqueId(&meeting));
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r)
    threads.emplace_back([&, r] {
      rank_here = r, size_here = size;
      body(r);
    });
  for (std::thread& thread : threads) thread.join();
}

/// A step of a layer whose ranks speak through NCCL; what rank 0 has.
template <class Spec, class Dispatcher>
ranks::outcome<float> step_on_nccl(mo::layout const& shape, std::vector<ranks::cut> const& tokens) {
  std::vector<ranks::outcome<float>> all(static_cast<std::size_t>(shape.world()));
  as_ranks(shape.world(), [&](int r) {
    all[static_cast<std::size_t>(r)] =
        ranks::step_on<Spec, float, Dispatcher, nccl_of_threads, mo::cuda>(shape, tokens, ranks::trained<Spec>());
  });
  return all[0];
}

using plain = ranks::small<ranks::softmax_2>;
struct limited : plain {
  using capacity = mo::capacity<std::ratio<3, 4>>;
};

template <class Dispatcher, class Spec = plain> void check_layer(mo::layout const& shape, ranks::share how) {
  auto const one =
      ranks::step_on<Spec, float, mo::all_to_all, mo::threads, mo::cuda>({}, {{64}}, ranks::trained<Spec>());
  auto const many = step_on_nccl<Spec, Dispatcher>(shape, {ranks::tokens_of(shape.stage(), how)});
  ranks::check_same(many, one, shape);
}

}  // namespace

TEST_CASE("a layer whose ranks speak through NCCL has the bits of one rank") {
  check_layer<mo::all_to_all>({.data = 2, .expert = 2}, ranks::share::even);
  check_layer<mo::all_to_all>({.data = 4, .expert = 2, .expert_tensor = 2}, ranks::share::uneven);
  check_layer<mo::keep_rows<mo::chunked<2>>>({.data = 4, .expert = 4}, ranks::share::one_rank);
  check_layer<mo::all_to_all, limited>({.data = 4, .expert = 2}, ranks::share::uneven);
  check_layer<mo::padded_all_to_all<64>, limited>({.data = 4, .expert = 2, .expert_tensor = 2}, ranks::share::uneven);
  check_layer<mo::all_gather_tokens>({.data = 4, .expert = 4}, ranks::share::uneven);
}

TEST_CASE("messages of either memory, in both directions at once") {
  on_nccl(2, [](mo::cuda_engine& engine, on_device& ranks) {
    int const other = 1 - ranks.rank();
    std::vector<std::int64_t> const host(5, ranks.rank() + 1), wide(7, ranks.rank() + 11);
    std::vector<std::int64_t> host_room(5), wide_room(7);
    mo::buffer const out(56, engine.memory()), in(56, engine.memory());
    engine.memory().store(out.data(), wide.data(), 56);
    auto const bytes = [](auto* data) { return reinterpret_cast<std::byte const*>(data); };
    std::vector<mo::outgoing_message> const sends{
        {other, bytes(host.data()), 40}, {other, bytes(out.data()), 56}, {other, nullptr, 0}};
    std::vector<mo::incoming_message> const receives{{other, reinterpret_cast<std::byte*>(host_room.data()), 40},
                                                     {other, static_cast<std::byte*>(in.data()), 56},
                                                     {other, nullptr, 0}};
    ranks.send_recv(sends, receives);
    engine.memory().load(wide_room.data(), in.data(), 56);
    expect(host_room == std::vector<std::int64_t>(5, other + 1), "what lay in the host's memory");
    expect(wide_room == std::vector<std::int64_t>(7, other + 11), "what lay in the device's");
  });
}

TEST_CASE("a pipeline whose ranks speak through NCCL has what thread ranks have, both copies of a stage too") {
  auto const check = [](auto const& order, mo::pipeline_shape const& shape, int data) {
    mo::schedule const plan = mo::make_schedule(order, shape);
    mo::layout const ranks = staged::layout_of(plan, data);
    using nccl = staged::on<mo::cuda, nccl_of_threads>;
    using threads = staged::on<mo::cuda>;
    staged::outcome found(static_cast<std::size_t>(ranks.world())), expected(found.size());
    as_ranks(ranks.world(), [&](int r) {
      mo::run<nccl>(
          [&](mo::context<nccl>& ctx) { found[static_cast<std::size_t>(r)] = staged::two_steps(ctx, order, plan); }, {},
          ranks);
    });
    mo::run<threads>(
        [&](mo::context<threads>& ctx) {
          expected[static_cast<std::size_t>(ctx.world().rank())] = staged::two_steps(ctx, order, plan);
        },
        {}, ranks);
    CHECK(!found[0].losses.empty());
    for (std::size_t r = 0; r < found.size(); ++r) CHECK(found[r] == expected[r]);
  };
  check(mo::one_f_one_b{}, {.ranks = 2, .microbatches = 4}, 2);
  check(mo::zb_v{}, {.ranks = 2, .chunks = 2, .microbatches = 4}, 1);
  check(mo::dual_pipe{}, {.ranks = 2, .chunks = 2, .microbatches = 4}, 1);
}
