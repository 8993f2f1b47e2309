// SPDX-License-Identifier: Apache-2.0
// Runs a function on every rank of a deployment:
//
//   auto result = mo::run<mine>([](mo::context<mine>& ctx) { … return value; });
//   mo::run<mine>(body, {.deadline = std::chrono::seconds(30)});             how long a rank waits for another
//   mo::run<of_any_layout>(body, options, mo::layout{.data = 2});           of a deployment<mo::dynamic>
//
//   mo::self      calls the function here, with a context of one rank
//   mo::threads   starts layout.world() ranks in this process, which share its processors, and on mo::cuda its device; returns
//                 what rank 0 returned
//   mo::mpi       this process is one rank of a launched job, see <moiety/mpi.hpp>; returns what the function returned here
//   mo::nccl      the same on mo::cuda, on the device of the rank, see backend/transport/nccl_ranks.cuh
//
// What a rank throws is thrown to the caller, of several the first; the other ranks are told, and get comm_error when they
// wait for one another. Throws config_error for a layout that cannot be, is not that of the deployment, or has more or fewer
// ranks than there are.
#pragma once

#include <moiety/backend/thread_pool.hpp>
#include <moiety/backend/transport/run_options.hpp>
#include <moiety/backend/transport/self.hpp>
#include <moiety/backend/transport/threads.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/mesh/context.hpp>
#include <moiety/mesh/layout.hpp>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// Says so before anything of a deployment is looked at: `run` is a name that others have too.
template <class Deployment>
concept has_layout = std::is_same_v<std::remove_cvref_t<decltype(Deployment::shape)>, layout>;

/// Where the result of a rank lies until all have ended.
template <class R> struct kept_result {
  std::optional<R> value;
  template <class F> void keep(F&& f) { value.emplace(f()); }
  R take() { return std::move(*value); }
};
template <> struct kept_result<void> {
  template <class F> void keep(F&& f) { f(); }
  void take() {}
};

/// The failures of thread ranks; the one that the world's record names is thrown.
class rank_failures {
 public:
  explicit rank_failures(int ranks) : all_(static_cast<std::size_t>(ranks)) {}

  /// Called in a rank's handler of whatever it threw.
  void keep(thread_world& world, int rank) {
    all_[static_cast<std::size_t>(rank)] = std::current_exception();
    try {
      throw;
    } catch (std::exception const& e) {
      world.fail({comm_fault::remote, "run", rank, 0, sentence("rank ", rank, " has failed: ", e.what())});
    } catch (...) {
      world.fail({comm_fault::remote, "run", rank, 0, sentence("rank ", rank, " has failed.")});
    }
  }

  void rethrow(thread_world const& world) const {
    auto const record = world.failure();
    if (!record) return;
    if (auto const& first = all_[static_cast<std::size_t>(record->rank)]; first) std::rethrow_exception(first);
    for (auto const& any : all_)
      if (any) std::rethrow_exception(any);
  }

 private:
  std::vector<std::exception_ptr> all_;
};

/// Body on rank `rank` of a group, with a context of its own.
template <class Deployment, class Body, class Result>
void run_rank(std::shared_ptr<thread_group> const& group, int rank,
              typename context<Deployment>::backend const& options, layout const& shape, Body& body, Result* result) {
  context<Deployment> ctx(options, shape, thread_communicator(group, rank));
  auto const call = [&]() -> decltype(auto) { return std::invoke(body, ctx); };
  if (result != nullptr)
    result->keep(call);
  else
    static_cast<void>(call());
}

template <class Deployment, class Body, class Backend>
auto run_threads(Body& body, run_options const& options, layout const& shape, Backend backend) {
  int const ranks = shape.world();
  if constexpr (requires { backend.threads; })
    if (backend.threads == 0) backend.threads = std::max(1, thread_count(0) / ranks);
  auto const world = std::make_shared<thread_world>(ranks, options);
  std::vector<int> all(static_cast<std::size_t>(ranks));
  std::iota(all.begin(), all.end(), 0);
  auto const group = std::make_shared<thread_group>(world, all, "world");
  kept_result<std::decay_t<std::invoke_result_t<Body&, context<Deployment>&>>> result;
  rank_failures failures(ranks);
  auto const rank = [&](int r) {
    try {
      run_rank<Deployment>(group, r, backend, shape, body, r == 0 ? &result : nullptr);
    } catch (...) {
      failures.keep(*world, r);
    }
    world->leave(r);
  };
  std::vector<std::thread> others;
  try {
    for (int r = 1; r < ranks; ++r) others.emplace_back(rank, r);
    rank(0);
  } catch (...) {
    failures.keep(*world, 0);
  }
  for (std::thread& other : others) other.join();
  failures.rethrow(*world);
  return result.take();
}

}  // namespace detail

template <class Deployment, class Body>
requires detail::has_layout<Deployment>
auto run(Body&& body, run_options const& options = {}, layout const& shape = Deployment::shape,
         typename Deployment::backend const& backend = {}) {
  using transport = typename Deployment::transport;
  if constexpr (transport::single_rank) {
    detail::check_layout_of<Deployment>(shape);
    check_world(shape, 1);
    context<Deployment> ctx(backend);
    return std::invoke(body, ctx);
  } else if constexpr (std::is_same_v<transport, threads>) {
    detail::check_layout_of<Deployment>(shape);
    return detail::run_threads<Deployment>(body, options, shape, backend);
  } else {
    auto world = transport::communicator::world(options);
    auto on = backend;
    if constexpr (requires { on.device = world.device(); }) on.device = world.device();
    context<Deployment> ctx(on, shape, std::move(world));
    return std::invoke(body, ctx);
  }
}

/// The rows of all ranks, by rank, in memory of the host; a collective.
template <class Communicator, class Matrix>
requires requires(Matrix const& m) { m.view(); }
auto all_gather(Communicator& ranks, Matrix const& mine) {
  if constexpr (requires { mine.host(); }) return all_gather(ranks, mine.host());
  auto const view = mine.view();
  using value = std::remove_const_t<std::remove_pointer_t<decltype(view.data())>>;
  return ranks.template all_gather_v<value>({view.data(), static_cast<std::size_t>(view.rows() * view.cols())});
}

}  // namespace moiety
