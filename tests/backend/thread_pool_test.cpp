// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/thread_pool.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <vector>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace mo = moiety;

namespace {

/// What a pool of 64 threads throws in a process that may start a few threads and no more: 'r' resource_error, '-' nothing, '?'
/// something else, 0 where it dies. ' ' where the process cannot be kept from threads.
char thrown_where_threads_end() {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  pid_t const child = ::fork();
  if (child == 0) {
    constexpr uid_t nobody = 65534;
    rlimit const few{6, 6};
    char what = ' ';
    if (::setrlimit(RLIMIT_NPROC, &few) == 0 && (::geteuid() != 0 || ::setuid(nobody) == 0)) {
      try {
        mo::thread_pool pool(64);
        what = pool.threads() == 64 ? '-' : '?';
      } catch (mo::resource_error const&) {
        what = 'r';
      } catch (...) {
        what = '?';
      }
    }
    ::_exit(::write(ends[1], &what, 1) == 1 ? 0 : 1);
  }
  ::close(ends[1]);
  char what = 0;
  if (::read(ends[0], &what, 1) != 1) what = 0;
  ::close(ends[0]);
  ::waitpid(child, nullptr, 0);
  return what;
}

}  // namespace

TEST_CASE("every task runs once, on a worker of the pool") {
  for (int const threads : {1, 2, 4}) {
    mo::thread_pool pool(threads);
    CHECK(pool.threads() == threads);
    for (std::int64_t const tasks : {0, 1, 2, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
      std::atomic<bool> in_range{true};
      pool.parallel(tasks, [&](std::int64_t task, int worker) {
        ++runs[static_cast<std::size_t>(task)];
        if (worker < 0 || worker >= threads) in_range = false;
      });
      for (auto const& r : runs) CHECK(r == 1);
      CHECK(in_range);
    }
  }
}

TEST_CASE("the first exception comes out, and the pool works on") {
  for (int const threads : {1, 4}) {
    mo::thread_pool pool(threads);
    std::int64_t const many = std::int64_t{1} << 40;
    std::atomic<std::int64_t> ran{0};
    CHECK_THROWS_WITH_AS(pool.parallel(many,
                                       [&](std::int64_t task, int) {
                                         ++ran;
                                         if (task == 10) throw std::runtime_error("task 10");
                                       }),
                         "task 10", std::runtime_error);
    CHECK(ran < many);
    ran = 0;
    pool.parallel(50, [&](std::int64_t, int) { ++ran; });
    CHECK(ran == 50);
  }
}

TEST_CASE("a call from inside a task is a state_error, not a hang") {
  mo::thread_pool pool(2), other(2);
  CHECK_THROWS_AS(pool.parallel(4, [&](std::int64_t, int) { pool.parallel(1, [](std::int64_t, int) {}); }),
                  mo::state_error);
  std::atomic<int> ran{0};
  pool.parallel(4, [&](std::int64_t, int) { other.parallel(2, [&](std::int64_t, int) { ++ran; }); });
  CHECK(ran == 8);
}

TEST_CASE("calls from several threads take turns") {
  mo::thread_pool pool(2);
  std::atomic<int> inside{0}, most{0}, ran{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([&] {
      for (int call = 0; call < 50; ++call)
        pool.parallel(8, [&](std::int64_t, int worker) {
          int const now = ++inside;
          if (now > most) most = now;
          if (worker > 1) most = 99;
          ++ran;
          --inside;
        });
    });
  for (std::thread& c : callers) c.join();
  CHECK(ran == 4 * 50 * 8);
  CHECK(most <= 2);
}

TEST_CASE("the number of threads: asked for, from the environment, or one a processor") {
  CHECK(mo::thread_count(3) == 3);
  CHECK_THROWS_WITH_AS(mo::thread_count(-1), doctest::Contains("must not be negative"), mo::config_error);
  ::unsetenv("MOIETY_NUM_THREADS");
  ::unsetenv("OMP_NUM_THREADS");
  int const processors = mo::available_processors();
  CHECK(processors >= 1);
  CHECK(mo::thread_count(0) == processors);
  ::setenv("OMP_NUM_THREADS", "1", 1);
  CHECK(mo::thread_count(0) == 1);
  ::setenv("MOIETY_NUM_THREADS", "1000000", 1);
  CHECK(mo::thread_count(0) == processors);
  ::setenv("MOIETY_NUM_THREADS", "rubbish", 1);
  CHECK(mo::thread_count(0) == 1);
  ::unsetenv("MOIETY_NUM_THREADS");
  ::unsetenv("OMP_NUM_THREADS");
}

TEST_CASE("threads that cannot be had are a resource_error, and those that could end") {
  char const thrown = thrown_where_threads_end();
  if (thrown == ' ' || thrown == '-') return;  // the system lets this process have them
  CHECK(thrown == 'r');
}
