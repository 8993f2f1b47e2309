// SPDX-License-Identifier: Apache-2.0
// What ranks do on devices: device all | late | leaves | unmet, where each process is a rank, see processes.py; device WAY
// RANKS, where each thread is. Exit 77 without a device.
#include <moiety/nccl.hpp>

#include "device_memory.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iostream>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace mo = moiety;
using namespace std::chrono_literals;
using ranks = mo::nccl_communicator;
template <class T> using values_on_device = testing::device_values<T>;

namespace {

std::atomic<int> failures = 0;
std::chrono::seconds patience = 20s;

void check(bool holds, std::string const& what) {
  if (holds) return;
  ++failures;
  std::cerr << "failed: " << what << std::endl;
}

template <class Error, class Body> bool ends_in(Body const& body) {
  try {
    body();
  } catch (Error const&) {
    return true;
  }
  return false;
}

/// That of the comm_error that body ends in.
template <class Body> std::optional<mo::comm_fault> fault_of(Body const& body) {
  try {
    body();
  } catch (mo::comm_error const& e) {
    return e.fault;
  }
  return std::nullopt;
}

template <class T> std::span<T> span_of(values_on_device<T>& values, std::size_t count) {
  return {values.data(), count};
}

/// What rank r has in a test: whole numbers, so that sums are exact in any order.
template <class T> std::vector<T> values_of(int r, std::int64_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<T>((i * 7 + 13 * static_cast<std::size_t>(r)) % 101);
  return values;
}

std::int64_t count_of(int from, int to) { return (from + 2 * to) % 3 == 2 ? 0 : 97 * from + 31 * to + 3000; }

void uneven_blocks(ranks& all) {
  std::vector<std::int64_t> to, from;
  std::vector<float> out, wanted;
  for (int r = 0; r < all.size(); ++r) {
    to.push_back(count_of(all.rank(), r));
    from.push_back(count_of(r, all.rank()));
    auto const mine = values_of<float>(1000 * all.rank() + r, to.back());
    auto const theirs = values_of<float>(1000 * r + all.rank(), from.back());
    out.insert(out.end(), mine.begin(), mine.end());
    wanted.insert(wanted.end(), theirs.begin(), theirs.end());
  }
  values_on_device<float> sent(out), came(static_cast<std::int64_t>(wanted.size()));
  all.all_to_all_v<float>(span_of(sent, out.size()), to, span_of(came, wanted.size()), from);
  check(came.host() == wanted, "all_to_all_v");
}

void blocks_of_one_size(ranks& all) {
  std::int64_t const each = 5000, total = each * all.size();
  auto const count = static_cast<std::size_t>(total);
  std::vector<double> gathered, exchanged, out;
  for (int r = 0; r < all.size(); ++r) {
    auto const theirs = values_of<double>(r, each);
    auto const mine_for = values_of<double>(1000 * all.rank() + r, each);
    auto const for_me = values_of<double>(1000 * r + all.rank(), each);
    gathered.insert(gathered.end(), theirs.begin(), theirs.end());
    out.insert(out.end(), mine_for.begin(), mine_for.end());
    exchanged.insert(exchanged.end(), for_me.begin(), for_me.end());
  }
  values_on_device<double> mine(values_of<double>(all.rank(), each)), sent(out), came(total);
  all.all_gather<double>(span_of(mine, static_cast<std::size_t>(each)), span_of(came, count));
  check(came.host() == gathered, "all_gather");
  all.all_to_all<double>(span_of(sent, count), span_of(came, count));
  check(came.host() == exchanged, "all_to_all");
  all.broadcast<double>(span_of(mine, static_cast<std::size_t>(each)), all.size() - 1);
  check(mine.host() == values_of<double>(all.size() - 1, each), "broadcast");
  check(ends_in<mo::data_error>([&] { all.all_to_all<double>(span_of(came, count), span_of(came, count)); }),
        "all_to_all in place is refused");
}

template <class T> void sums(ranks& all) {
  auto wanted = values_of<T>(0, 40001);
  for (int r = 1; r < all.size(); ++r) {
    auto const more = values_of<T>(r, 40001);
    for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] += more[i];
  }
  values_on_device<T> values(values_of<T>(all.rank(), 40001));
  all.all_reduce_fastest<T>(span_of(values, wanted.size()));
  check(values.host() == wanted, "all_reduce_fastest");

  auto expected = values_of<T>(all.rank(), 40001);  // parts of other sizes for each rank, of the second none
  std::vector<std::int64_t> counts;
  std::int64_t left = 40001, first = 0;
  for (int r = 0; r + 1 < all.size(); left -= counts.back(), ++r) counts.push_back(r == 1 ? 0 : 1000 * r + 77);
  counts.push_back(left);
  for (int r = 0; r < all.rank(); ++r) first += counts[static_cast<std::size_t>(r)];
  std::copy_n(wanted.begin() + first, counts[static_cast<std::size_t>(all.rank())], expected.begin() + first);
  values_on_device<T> parts(values_of<T>(all.rank(), 40001));
  all.reduce_scatter_fastest<T>(span_of(parts, wanted.size()), counts);
  check(parts.host() == expected, "reduce_scatter_fastest");
}

/// Values that come with the work of the caller's stream, which has not been waited for.
void caller_stream(ranks& all) {
  cudaStream_t stream = nullptr;
  testing::succeed(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  auto const mine = values_of<std::int64_t>(all.rank(), 5000);
  auto wanted = mine;
  for (std::int64_t& v : wanted) v = 0;
  for (int r = 0; r < all.size(); ++r) {
    auto const theirs = values_of<std::int64_t>(r, 5000);
    for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] += theirs[i];
  }
  values_on_device<std::int64_t> values(5000);
  testing::succeed(
      cudaMemcpyAsync(values.data(), mine.data(), mine.size() * sizeof(mine[0]), cudaMemcpyHostToDevice, stream));
  all.follow(stream);
  all.all_reduce_fastest<std::int64_t>(span_of(values, mine.size()));
  all.follow(nullptr);
  check(values.host() == wanted, "operations follow the caller's stream");
  static_cast<void>(cudaStreamDestroy(stream));
}

/// More than goes through the device at once.
void values_of_the_host(ranks& all) {
  std::int64_t const count = 700001;
  std::vector<int> wanted;
  for (int r = 0; r < all.size(); ++r) {
    auto const theirs = values_of<int>(r, count);
    wanted.insert(wanted.end(), theirs.begin(), theirs.end());
  }
  std::vector<int> came(wanted.size());
  all.all_gather_on_host<int>(values_of<int>(all.rank(), count), came);
  check(came == wanted, "all_gather_on_host");
}

/// A ring, two channels, which the receiver names in the other order.
void messages(ranks& all) {
  int const next = (all.rank() + 1) % all.size(), last = (all.rank() + all.size() - 1) % all.size();
  values_on_device<int> low(values_of<int>(2 * all.rank(), 100)), high(values_of<int>(2 * all.rank() + 1, 100));
  values_on_device<int> low_came(100), high_came(100);
  auto const bytes = [](values_on_device<int>& of) { return reinterpret_cast<std::byte*>(of.data()); };
  std::array<mo::outgoing_message, 2> const sends{{{next, bytes(low), 400, 0}, {next, bytes(high), 400, 1}}};
  std::array<mo::incoming_message, 2> const receives{
      {{last, bytes(high_came), 400, 1}, {last, bytes(low_came), 400, 0}}};
  all.send_recv(sends, receives);
  check(low_came.host() == values_of<int>(2 * last, 100), "send_recv, channel 0");
  check(high_came.host() == values_of<int>(2 * last + 1, 100), "send_recv, channel 1");
}

/// Every other rank, backwards.
void parts(ranks& all) {
  ranks part = all.split(all.rank() % 2 - 7, -all.rank(), "half");
  std::vector<int> wanted, came(static_cast<std::size_t>(part.size()));
  for (int r = all.size() - 1; r >= 0; --r)
    if (r % 2 == all.rank() % 2) wanted.push_back(r);
  int const me = all.rank();
  check(part.size() == static_cast<int>(wanted.size()), "the size of a part");
  part.all_gather_on_host<int>({&me, 1}, came);
  check(came == wanted, "the ranks of a part");
  sums<double>(part);
}

void misuse(ranks& all) {
  auto const size = static_cast<std::size_t>(all.size());
  values_on_device<float> room(64);
  auto* const bytes = reinterpret_cast<std::byte*>(room.data());
  std::vector<mo::outgoing_rows> to(size);
  std::vector<mo::incoming_rows> from(size);
  std::vector<float> on_host(4);
  check(ends_in<mo::data_error>([&] { all.all_reduce_fastest<float>(std::span(on_host)); }), "host memory is refused");
  auto const me = static_cast<std::size_t>(all.rank());
  to[me] = {bytes, 2, 4, 8, nullptr};
  from[me] = {bytes + 128, 2, 4, 4, nullptr};
  check(ends_in<mo::data_error>([&] { all.start({.name = "exchange", .width = 4}, to, from); }),
        "strided rows are refused");
  to[me].stride = 4;
  auto first = all.start({.name = "first", .width = 4}, to, from);
  auto second = all.start({.name = "second", .width = 4}, to, from);
  check(ends_in<mo::state_error>([&] { all.finish(std::move(second)); }), "operations finish in order");
  all.finish(std::move(first));
  all.finish(std::move(second));
  check(ends_in<mo::state_error>([&] { all.finish(std::move(first)); }), "an operation finishes once");
}

/// The last rank calls another operation than the others; then those go on without it.
void disagreement(ranks& all) {
  values_on_device<float> values(16);
  bool const other = all.rank() == all.size() - 1;
  all.check_calls(true);
  try {
    all.all_reduce_fastest<float>(span_of(values, other ? 8 : 16));
    check(all.size() == 1, "calls that differ end in an error");
  } catch (mo::comm_error const& e) {
    check(e.fault == mo::comm_fault::mismatch && e.rank == all.size() - 1, std::string("a mismatch: ") + e.what());
  }
  if (all.size() == 1) return;
  check(fault_of([&] { all.barrier(); }) == mo::comm_fault::mismatch, "after a failure every call throws that failure");
  if (other) return;
  ranks rest = all.shrink(std::array{all.size() - 1});
  check(rest.rank() == all.rank() && rest.size() == all.size() - 1, "who is left");
  rest.check_calls(false);
  values_of_the_host(rest);
  sums<std::int64_t>(rest);
}

void everything(ranks& all) {
  all.at_step(3);
  for (bool const checked : {false, true}) {
    all.check_calls(checked);
    uneven_blocks(all);
    blocks_of_one_size(all);
    sums<float>(all);
    sums<double>(all);
    sums<std::int64_t>(all);
    values_of_the_host(all);
    caller_stream(all);
    messages(all);
    parts(all);
    misuse(all);
    all.barrier();
  }
  disagreement(all);
}

/// The last rank does not come.
void late(ranks& all) {
  ranks part = all.split(0, all.rank(), "part");
  part.barrier();
  all.at_step(5);
  part.at_step(5);
  if (all.size() == 1) return;
  bool const is_late = all.rank() == all.size() - 1;
  if (is_late) std::this_thread::sleep_for(2 * patience);
  auto const begin = std::chrono::steady_clock::now();
  try {
    part.barrier();
    check(is_late, "a rank that does not come ends the waiting of others");  // whose part may have come before
  } catch (mo::comm_error const& e) {
    check(e.step == 5, "the step of the error");
    if (all.rank() == 0) check(e.fault != mo::comm_fault::aborted, std::string("too late: ") + e.what());
  }
  check(std::chrono::steady_clock::now() - begin < patience + 10s, "the deadline is kept");
  check(ends_in<mo::comm_error>([&] { all.barrier(); }), "all groups of a run fail together");
}

/// The last rank expects 32 bytes of rank 0.
ranks::request from_first(ranks& all, std::byte* bytes) {
  std::vector<mo::outgoing_rows> to(static_cast<std::size_t>(all.size()));
  std::vector<mo::incoming_rows> from(to.size());
  if (all.rank() == 0) to.back() = {bytes, 1, 32, 32, nullptr};
  if (all.rank() == all.size() - 1) from[0] = {bytes, 1, 32, 32, nullptr};
  return all.start({.name = "exchange", .width = 32}, to, from);
}

/// The last rank lets go of an operation, by an exception; with it go all its communicators.
void leaves(ranks& all) {
  if (all.size() == 1) return;
  values_on_device<float> values(8);
  auto* const bytes = reinterpret_cast<std::byte*>(values.data());
  all.finish(from_first(all, bytes));  // or start would wait until both are connected
  all.barrier();                       // now all have come
  if (all.rank() != all.size() - 1) {
    check(ends_in<mo::comm_error>([&] { all.barrier(); }), "the others hear of it, or the deadline comes");
    return;
  }
  auto const begin = std::chrono::steady_clock::now();
  try {
    auto const lost = from_first(all, bytes);
    throw 5;
  } catch (int) {
  }
  check(fault_of([&] { all.barrier(); }) == mo::comm_fault::aborted, "a rank that let go can no longer communicate");
  check(std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(patience) / 2,
        "a rank that let go waits for nobody");
}

/// The last rank begins an operation for which NCCL has to connect it with rank 0, which does not come.
void unmet(ranks& all) {
  if (all.size() == 1) return;
  values_on_device<float> values(8);
  all.barrier();
  auto const begin = std::chrono::steady_clock::now();
  if (all.rank() == all.size() - 1) {
    check(ends_in<mo::comm_error>([&] { from_first(all, reinterpret_cast<std::byte*>(values.data())); }),
          "start waits for no rank longer than the deadline");
    check(ends_in<mo::comm_error>([&] { all.shrink(std::array{0}); }), "what has ended has no parts");
  }
  check(ends_in<mo::comm_error>([&] { all.barrier(); }), "after that nobody communicates");
  check(std::chrono::steady_clock::now() - begin < patience + 10s, "the deadline is kept");
}

template <class Make> void rank(std::string_view way, Make const& make) {
  try {
    ranks all = make();
    way == "late" ? late(all) : way == "leaves" ? leaves(all) : way == "unmet" ? unmet(all) : everything(all);
  } catch (std::exception const& e) {
    check(false, e.what());
  }
}

}  // namespace

int main(int count, char** arguments) {
  int devices = 0;
  if (cudaError_t const result = cudaGetDeviceCount(&devices); result != cudaSuccess || devices == 0) {
    std::cout << "skipped: no CUDA device: " << cudaGetErrorString(result) << std::endl;
    return 77;
  }
  std::string_view const way = count > 1 ? arguments[1] : "all";
  if (way != "all") patience = count < 3 ? 6s : 3s;  // processes have to start within it
  if (count < 3) {
    rank(way, [] { return ranks::world({.deadline = patience}); });
    return failures == 0 ? 0 : 1;
  }
  int const size = std::stoi(arguments[2]);
  ncclUniqueId const id = mo::detail::new_nccl_id();
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r)
    threads.emplace_back(
        [=] { rank(way, [&] { return ranks::join(r, size, r % devices, id, {.deadline = patience}); }); });
  for (std::thread& thread : threads) thread.join();
  return failures == 0 ? 0 : 1;
}
