// SPDX-License-Identifier: Apache-2.0
// How rows reach the experts of a layer and how results come back, by the deployment's dispatcher.
//
//   arrive          counts the rows of this rank's experts, where the tokens of several ranks meet
//   visit_experts   brings rows, calls work(experts, rows), gives results back; in parts where the dispatcher has chunks
//   combine         what came back, to tokens
//
// Where experts are spread over ranks, what is by row of the permutation (own rows) lies apart from what is by row of the
// experts here; else they are the same.
#pragma once

#include <moiety/backend/kernel_list.hpp>
#include <moiety/backend/transport/communicator.hpp>
#include <moiety/batch/batch.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/dispatcher/arrived_rows.hpp>
#include <moiety/experts/rows.hpp>
#include <moiety/kernels/combine.hpp>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/row_weights.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/memory_plan.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/layer/tape.hpp>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <memory_resource>
#include <type_traits>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

template <class Spec, class Deployment> class expert_travel {
  using read = spec_of<Spec>;
  using T = detail::element_t<Deployment>;
  using S = sum_t<T>;
  using dispatcher = typename Deployment::dispatcher;
  static constexpr bool by_row = read::router_type::place == weight_place::input;  // gradients of rows are asked for
  static constexpr bool sums_tokens =
      detail::sums_fastest<Deployment> && !by_row && !detail::ranks_on_device<Deployment>;
  using exchange_type = typename detail::exchange_for<dispatcher, sums_tokens>::type;
  using tape_type = layer_tape<Spec, T>;
  using capacity = typename read::capacity_type;
  static constexpr bool travels = dispatcher::travels;
  static constexpr bool pads = detail::pads_rows<Deployment> && capacity::drops;
  static constexpr bool adds = !std::is_same_v<exchange_type, typename dispatcher::exchange>;

 public:
  using context_type = context<Deployment>;
  /// What rows travel through, made once for a layer.
  using links = typename dispatcher::exchange::template links<typename context_type::communicator>;

  /// Throws data_error where a call has more tokens than the dispatcher has room for.
  static void check_room([[maybe_unused]] std::int64_t tokens, [[maybe_unused]] batch const& about) {
    if constexpr (pads) dispatcher::template check<capacity>(tokens, about);
  }

  /// Counts the rows of this rank's experts, where the tokens of several ranks meet: a collective of those that hold experts,
  /// but where messages are padded.
  static void arrive(context_type& ctx, links& through, tape_type& tape, bool keep) {
    if constexpr (travels) {
      if constexpr (requires { through.at_step(0); }) through.at_step(tape.place().step);
      auto const make = [&](auto const&... limits) {
        tape.dispatch(std::make_unique<exchange_type>(through, tape.permutation(), read::mlp_experts,
                                                      ctx.shape().expert_tensor, ctx.memory(), limits...));
      };
      if constexpr (pads)
        make(detail::padded_limits<Spec, Deployment>(ctx.shape()));
      else
        make();
      tape.arrive(exchange_of(tape).most_rows(), keep);
    } else {
      std::int64_t rows = 0;
      ctx.memory().load(&rows, tape.permutation().starts + tape.permutation().experts, sizeof(rows));
      tape.arrive(rows, keep);
    }
  }

 protected:
  /// Values by row of the permutation, in memory of their own where experts are spread.
  struct own_values {
    S* values;
    buffer memory;
  };

  static exchange_type& exchange_of(tape_type const& tape) { return static_cast<exchange_type&>(tape.dispatched()); }

  static expert_rows rows_of(tape_type const& tape) {
    permutation_view const& order = tape.permutation();
    if constexpr (travels) {
      arrivals const& arrived = tape.dispatched();
      return {arrived.experts(), arrived.offsets(), read::expert_hidden, tape.size().ffn, arrived.rows()};
    }
    return {read::mlp_experts, order.offsets(), read::expert_hidden, read::ffn, expert_rows_of<Spec>(tape.size())};
  }
  static matrix_view<T> all_rows(T* rows, tape_type const& tape) {
    return {rows, own_rows_of<Spec>(tape.size()), read::expert_hidden};
  }

  /// The router's weights by row of the experts here; gives those by row of the permutation.
  template <bool Wanted>
  static own_values spread(context_type& ctx, [[maybe_unused]] links& through, tape_type const& tape, S* at_experts) {
    permutation_view const& order = tape.permutation();
    own_values own{at_experts, {}};
    if constexpr (!Wanted) return own;
    if constexpr (travels) {
      own.memory = buffer(own_rows_of<Spec>(tape.size()) * static_cast<std::int64_t>(sizeof(S)), ctx.memory());
      own.values = static_cast<S*>(own.memory.data());
    }
    kernels::spread_weights<S>(ctx.engine(), order, tape.routing().weights, own.values);
    if constexpr (travels) exchange_of(tape).bring_to(through, kernels::rows_of<S>{own.values, 1}, 1, at_experts);
    return own;
  }

  /// The rows that experts here read, in `room` where they come from other ranks too.
  static kernels::rows_of<T> bring(context_type& ctx, [[maybe_unused]] links& through, tape_type const& tape,
                                   kernels::rows_of<T> const& own, [[maybe_unused]] buffer& room) {
    if constexpr (travels) {
      return exchange_of(tape).bring(through, own, read::expert_hidden, room, ctx.memory());
    }
    return own;
  }

  /// How results come home: as rows, or where exchanges add rows as sums by token, with the weights of slots or with 1.
  enum class home { rows, weighted, summed };

  /// Rows of the experts here, and the same by row of the permutation: in a room where they go to other ranks too.
  template <class V, home As = home::rows> struct result {
    V* rows;
    std::int64_t width, own_rows;
    V* own = nullptr;
    buffer room{}, of_copies{}, sums{};

    void make_room(std::pmr::memory_resource& memory) {
      room = buffer(own_rows * width * static_cast<std::int64_t>(sizeof(V)), memory);
      own = static_cast<V*>(room.data());
    }
    /// Whether rows are added up, and none but those that stay need a room.
    static constexpr bool added = adds && As != home::rows;
  };

  template <class V, home As>
  static void come_home(context_type& ctx, links& through, tape_type const& tape, result<V, As>& r) {
    if constexpr (result<V, As>::added) {
      exchange_type& rows = exchange_of(tape);
      constexpr bool weighted = As == home::weighted;
      buffer const room(weighted ? rows.rows() * static_cast<std::int64_t>(sizeof(S)) : 0, ctx.memory());
      S* const weights = static_cast<S*>(room.data());
      static_cast<void>(spread<weighted>(ctx, through, tape, weights));
      r.sums = rows.template sum<V>(ctx.engine(), through, r.rows, weights, r.width, ctx.memory());
    } else {
      exchange_of(tape).give_back(through, r.rows, r.width, r.own, ctx.memory());
    }
  }

  /// Rows to experts, work(experts, rows), and results back.
  template <class Work, class... Results>
  static void visit_experts(context_type& ctx, links& through, tape_type const& tape, kernels::rows_of<T> const& own,
                            buffer& room, Work const& work, Results&... results) {
    if constexpr (!travels) {
      work(rows_of(tape), own);
      ((results.own = results.rows), ...);
    } else {
      ((!results.added || read::zero_experts > 0 ? results.make_room(ctx.memory()) : void()), ...);
      if constexpr (dispatcher::chunks > 1) return visit_in_chunks(ctx, through, tape, own, room, work, results...);
      kernels::rows_of<T> const arrived = bring(ctx, through, tape, own, room);  // then their number is known
      work(rows_of(tape), arrived);
      (come_home(ctx, through, tape, results), ...);
    }
  }

  /// to = base + Σ_j w_tj row_of(t, j), of own rows and of sums that came home.
  static void combine(typename context_type::backend::engine& engine, tape_type const& tape, T* own, buffer const& sums,
                      S const* weights, S const* base, matrix_view<T> to) {
    permutation_view order = tape.permutation();
    std::vector<std::int32_t> staying;
    if constexpr (adds) {
      S* const sum = exchange_of(tape).template own<S>(sums, read::expert_hidden);
      if (base != nullptr)
        for (std::int64_t i = 0; i < to.rows() * read::expert_hidden; ++i) sum[i] += base[i];
      base = sum;
      staying = exchange_of(tape).staying(order);
      order.positions = staying.data();
    }
    kernels::combine<T>(engine, order, all_rows(own, tape), weights, base, to);
  }

  /// visit_experts expert by expert: exchanges are in flight while others work, and end in the order in which they began.
  template <class Work, class... Results>
  static void visit_in_chunks(context_type& ctx, links& through, tape_type const& tape, kernels::rows_of<T> const& own,
                              buffer& room, Work const& work, Results&... results) {
    auto const& rows = exchange_of(tape);
    std::int64_t const width = read::expert_hidden;
    room = buffer(rows.rows() * width * static_cast<std::int64_t>(sizeof(T)), ctx.memory());
    auto* const arrived = static_cast<T*>(room.data());
    std::deque<typename context_type::communicator::request> in_flight;
    auto const part = [&](int chunk) { return slice_of(rows.experts(), chunk, dispatcher::chunks); };
    auto const come = [&](int chunk) {
      in_flight.push_back(rows.start_bring(through, own, width, arrived, part(chunk)));
    };
    auto const finish = [&] {
      through.group->finish(std::move(in_flight.front()));
      in_flight.pop_front();
    };
    auto const leave = [&]<class V, home As>(result<V, As>& r, int chunk) {
      if (chunk == 0) r.of_copies = rows.template room_of_copies<V>(r.width, ctx.memory());
      in_flight.push_back(rows.start_give_back(through, r.rows, r.width, r.own, r.of_copies, part(chunk)));
    };
    come(0);
    for (int chunk = 0; chunk < dispatcher::chunks; ++chunk) {
      if (chunk + 1 < dispatcher::chunks) come(chunk + 1);
      finish();
      kernel_list<std::int64_t> const offsets(ctx.memory(), rows.offsets(part(chunk)));
      expert_rows some = rows_of(tape);
      some.offsets = offsets.for_kernels();
      work(some, kernels::rows_of<T>{arrived, width});
      (leave(results, chunk), ...);
      for (std::size_t i = 0; chunk > 0 && i < sizeof...(Results); ++i) finish();
    }
    while (!in_flight.empty()) finish();
    (rows.add_copies(through, results.of_copies, results.width, results.own), ...);
  }
};

}  // namespace moiety
