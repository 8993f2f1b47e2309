// SPDX-License-Identifier: Apache-2.0
#include <moiety/dispatcher/all_to_all.hpp>

#include "dispatcher/exchanges.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

struct small : mo::layer_spec<mo::dims{.hidden = 12, .ffn = 7, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};
struct keeping : mo::deployment<mo::dynamic> {
  using dispatcher = mo::keep_rows<mo::all_to_all>;
};
struct bringing : mo::deployment<mo::dynamic> {
  using dispatcher = mo::all_to_all;
};

struct result {
  std::vector<float> y, dx;
  std::map<std::string, std::vector<float>> gradients;
  friend bool operator==(result const&, result const&) = default;
};

/// A step in which x is overwritten after the input half, where `spoil` says so.
template <class Deployment> result step(bool spoil) {
  return mo::run<Deployment>(
      [&](mo::context<Deployment>& ctx) {
        auto& stage = ctx.stage();
        mo::moe_layer<small, Deployment> layer{ctx};
        auto weights = layer.make_weights(mo::seed{3});
        auto x = ctx.matrix(9, 12), y = ctx.matrix(9, 12), dy = ctx.matrix(9, 12), dx = ctx.matrix(9, 12);
        mo::fill_normal(ctx, x, mo::seed{1}, mo::first_row{9 * stage.rank()});
        mo::fill_normal(ctx, dy, mo::seed{2}, mo::first_row{9 * stage.rank()});
        auto tape = layer.forward(weights, x, y, {.first_row = 9 * stage.rank()});
        layer.backward_input(weights, tape, dy, dx);
        auto gradients = layer.make_gradients();
        if (spoil) std::fill_n(x.data(), x.size(), 0.0f);
        layer.backward_weights(tape, gradients);
        result all{mo::all_gather(stage, y), mo::all_gather(stage, dx), {}};
        gradients.for_each([&](mo::parameter const& p, std::span<float> values) {
          if (p.of_experts) all.gradients[p.name] = stage.template all_gather_v<float>(values);
        });
        return all;
      },
      {}, mo::layout{.data = 2, .expert = 2}, {.threads = 1});
}

}  // namespace

TEST_CASE("a layout that spreads experts has all_to_all by default, another has local") {
  using of = mo::layout;
  CHECK(std::is_same_v<mo::deployment<of{.data = 2, .expert = 2}>::dispatcher, mo::all_to_all>);
  CHECK(std::is_same_v<mo::deployment<of{.data = 2, .expert_tensor = 2}>::dispatcher, mo::all_to_all>);
  CHECK(std::is_same_v<mo::deployment<of{.data = 2}>::dispatcher, mo::local>);
  CHECK(std::is_same_v<mo::deployment<mo::dynamic>::dispatcher, mo::all_to_all>);
  CHECK(mo::all_to_all::travels);
  CHECK_FALSE(mo::all_to_all::keeps_rows);
  CHECK(mo::keep_rows<mo::all_to_all>::keeps_rows);
  CHECK(mo::keep_rows<mo::all_to_all>::travels);
  CHECK(mo::all_to_all::chunks == 1);
  CHECK(mo::chunked<3>::chunks == 3);
  CHECK(mo::keep_rows<mo::chunked<3>>::chunks == 3);
}

TEST_CASE("rows that come and leave in parts of the experts, two parts in flight, lie where all at once would") {
  using exchanges::width;
  for (int const parts : {2, 3, 9})  // 9 are more than some ranks have experts: parts are empty
    exchanges::for_all<mo::row_exchange>(exchanges::all_shapes, [&](auto& rank) {
      std::vector<std::int64_t> const values = rank.marked(width, false);
      mo::kernels::rows_of<std::int64_t> const own{values.data(), width};
      auto const wanted = rank.bring(own, width);
      std::vector<std::int64_t> there(wanted.size(), -1), back(values.size(), -1);
      mo::buffer const copies = rank.rows.template room_of_copies<std::int64_t>(width, exchanges::heap());
      auto const part = [&](int i) { return mo::slice_of(rank.rows.experts(), i, parts); };
      std::deque<mo::thread_communicator::request> in_flight;  // end in the order in which they began
      auto const come = [&](int i) {
        in_flight.push_back(rank.rows.start_bring(rank.through, own, width, there.data(), part(i)));
      };
      auto const finish = [&] {
        rank.ranks.finish(std::move(in_flight.front()));
        in_flight.pop_front();
      };
      come(0);
      for (int i = 0; i < parts; ++i) {
        if (i + 1 < parts) come(i + 1);
        finish();
        auto const offsets = rank.rows.offsets(part(i));
        for (std::int64_t row = offsets.front() * width; row < offsets.back() * width; ++row)
          expect(there[static_cast<std::size_t>(row)] == wanted[static_cast<std::size_t>(row)], "a part has come");
        in_flight.push_back(rank.rows.start_give_back(rank.through, there.data(), width, back.data(), copies, part(i)));
        if (i > 0) finish();
      }
      while (!in_flight.empty()) finish();
      rank.rows.add_copies(rank.through, copies, width, back.data());
      expect(there == wanted);
      expect(back == rank.give_back(wanted, width));
    });
}

TEST_CASE("rows that are kept give the bits of rows that are brought again, and the weight half reads x no more") {
  result const again = step<bringing>(false), kept = step<keeping>(false), kept_and_spoilt = step<keeping>(true);
  CHECK(again == kept);
  CHECK(kept.gradients == kept_and_spoilt.gradients);
  CHECK(step<bringing>(true).gradients != again.gradients);
  for (auto const& [name, values] : again.gradients)
    CHECK(std::any_of(values.begin(), values.end(), [](float v) { return v != 0; }));
}

TEST_CASE("mo::local with experts that are spread is refused on every rank") {
  struct wrong : mo::deployment<mo::dynamic> {
    using dispatcher = mo::local;
  };
  for (mo::layout const& shape : {mo::layout{.data = 2, .expert = 2}, mo::layout{.data = 2, .expert_tensor = 2}}) {
    int const refused = mo::run<wrong>(
        [](mo::context<wrong>& ctx) {
          int told = 0;
          try {
            mo::moe_layer<small, wrong> const layer{ctx};
          } catch (mo::config_error const& e) {
            told = std::strstr(e.what(), "mo::local needs every expert on every rank") != nullptr;
          }
          ctx.world().all_reduce(std::span(&told, 1));
          return told;
        },
        {}, shape, {.threads = 1});
    CHECK(refused == 2);
  }
}
