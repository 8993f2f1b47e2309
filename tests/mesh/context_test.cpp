// SPDX-License-Identifier: Apache-2.0
#include <moiety/mesh/context.hpp>

#include "backend/transport/thread_ranks.hpp"

#include <moiety/backend/host.hpp>
#include <moiety/core/random.hpp>
#include <moiety/kernels/fill_normal.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/mesh/run.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace {

template <class T> struct in {
  using backend = mo::host;
  using element = T;
  using transport = mo::self;
  static constexpr mo::layout shape{};
};

}  // namespace

TEST_CASE("a context has an engine, memory and a communicator, and makes zeroed matrices") {
  mo::context<in<mo::bf16>> ctx{mo::host{.threads = 2}};
  CHECK(ctx.engine().threads() == 2);
  CHECK(ctx.data().size() == 1);
  CHECK(std::is_same_v<decltype(ctx)::sum, float>);
  auto const m = ctx.matrix(3, 4);
  CHECK(std::is_same_v<std::remove_const_t<decltype(m)>, mo::matrix<mo::bf16>>);
  for (auto const v : m) CHECK(v.bits == 0);
  ctx.synchronize();
}

TEST_CASE_TEMPLATE("a value of fill_normal depends on seed, logical row and column alone", T, float, double, mo::bf16) {
  mo::context<in<T>> one{mo::host{.threads = 1}}, four{mo::host{.threads = 4}};
  auto whole = one.matrix(300, 7), same = four.matrix(300, 7), part = four.matrix(20, 7), other = one.matrix(300, 7);
  mo::fill_normal(one, whole, mo::seed{3});
  mo::fill_normal(four, same, mo::seed{3});
  mo::fill_normal(four, part, mo::seed{3}, mo::first_row{131});
  mo::fill_normal(one, other, mo::seed{4});
  CHECK(std::memcmp(whole.data(), same.data(), whole.size() * sizeof(T)) == 0);
  CHECK(std::memcmp(whole.row(131), part.data(), part.size() * sizeof(T)) == 0);
  CHECK(std::memcmp(whole.data(), other.data(), whole.size() * sizeof(T)) != 0);
  CHECK(static_cast<double>(whole(2, 3)) ==
        static_cast<double>(static_cast<T>(static_cast<mo::sum_t<T>>(mo::normal(mo::seed{3}, 0, 17)))));
}

TEST_CASE("fill_normal writes a strided view and nothing beside it, and refuses null") {
  mo::context<in<float>> ctx;
  mo::matrix<float> m(5, 6);
  mo::fill_normal(ctx, mo::matrix_view<float>(m.data(), 5, 4, 6), mo::seed{1});
  for (int i = 0; i < 5; ++i) {
    CHECK(m(i, 3) != 0);
    CHECK(m(i, 4) == 0);
  }
  CHECK_THROWS_AS(mo::fill_normal(ctx, mo::matrix_view<float>(nullptr, 5, 4), mo::seed{1}), mo::data_error);
}

TEST_CASE("every communicator of a context has the ranks of its axes, in their order") {
  using any = mo::deployment<mo::dynamic>;
  struct named {
    mo::axis_set along;
    mo::thread_communicator& (mo::context<any>::*of)();
  };
  named const all[] = {{mo::axes::stage, &mo::context<any>::stage},
                       {mo::axis::data, &mo::context<any>::data},
                       {mo::axis::tensor, &mo::context<any>::tensor},
                       {mo::axes::sequence, &mo::context<any>::sequence_parts},
                       {mo::axis::pipeline, &mo::context<any>::pipeline},
                       {mo::axes::expert_group, &mo::context<any>::expert_group},
                       {mo::axis::expert, &mo::context<any>::expert},
                       {mo::axis::expert_tensor, &mo::context<any>::expert_tensor},
                       {mo::axis::expert_data, &mo::context<any>::expert_data}};
  mo::layout const shapes[] = {
      {.data = 2, .tensor = 2, .context = 2, .expert = 2, .expert_tensor = 2},
      {.data = 2, .tensor = 2, .pipeline = 2, .expert = 4},
      {.data = 3, .context = 2, .expert = 3, .order = {mo::axis::data, mo::axis::context, mo::axis::tensor}}};
  for (mo::layout const& shape : shapes) {
    int const faults = mo::run<any>(
        [&](mo::context<any>& ctx) {
          int wrong = ctx.shape() == shape ? 0 : 1;
          int const me = ctx.world().rank();
          for (named const& c : all) {
            auto& group = (ctx.*c.of)();
            std::vector<int> const ranks = group.template all_gather_v<int>({&me, 1});
            std::vector<int> const wanted = mo::members_of(shape, c.along, me);
            wrong += ranks == wanted ? 0 : 1;
            wrong += group.rank() == mo::group_of(shape, c.along, me).position ? 0 : 1;
          }
          ctx.world().all_reduce(std::span(&wrong, 1));
          return wrong;
        },
        {}, shape, {.threads = 1});
    CHECK(faults == 0);
  }
}

TEST_CASE("ranks that are given different layouts get no context, and all of them hear what differs") {
  struct any : mo::deployment<mo::dynamic> {};
  struct fixed : mo::deployment<mo::layout{.data = 4}> {};
  auto const check = [](auto deployment, mo::layout const& first, mo::layout const& last, std::string const& words) {
    auto const heard = thread_ranks(4).run([&](mo::thread_communicator& world) {
      using context = mo::context<decltype(deployment)>;
      auto const refused = expect_throws<mo::config_error>(
          [&] { context(mo::host{.threads = 1}, world.rank() == 3 ? last : first, world); });
      expect(std::string(refused.what()).find(words) != std::string::npos, refused.what());
      world.barrier();  // they can still speak
    });
    for (auto const& outcome : heard)
      if (outcome != nullptr) std::rethrow_exception(outcome);
  };
  std::string const differs = "the ranks of a run disagree on the layout: that of rank 3 is not that of rank 0";
  check(any{}, {.data = 4}, {.data = 2, .tensor = 2}, differs);
  check(any{}, {.data = 4}, {.data = 4, .expert = 2}, differs);
  check(any{}, {.data = 2, .tensor = 2},
        {.data = 2, .tensor = 2, .order = {mo::axis::data, mo::axis::tensor, mo::axis::context}}, differs);
  check(any{}, {.data = 4}, {.data = 5}, "needs 5 ranks, and there are 4");
  check(any{}, {.data = 4}, {.data = 4, .expert = 3}, "the expert axes of a layout need");
  check(fixed{}, {.data = 4}, {.tensor = 4}, "its deployment names that with");
}
