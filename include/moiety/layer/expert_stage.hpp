// SPDX-License-Identifier: Apache-2.0
// The second half of a forward, and its backward: rows to their experts, the experts' MLPs, and back to tokens.
//
//   forward            x, routing → y                          y_t = base_t + Σ_j w_tj expert_j(x_t); base may be null
//   backward_input     dy → gradients of z and of the weights, and of the rows that experts read
//   combine_input      gradients of rows → dx                  on top of what else reached x
//   backward_weights   gradients of z → those of the parameters
//
// Where the router's weights multiply what experts read (mo::on_input), rows are copies with their weights, made again in
// the weight half. Where products read rows faster that lie in order, rows of tokens are gathered first, into the buffer that
// takes the products' result later.
// How rows reach experts that are spread over ranks: layer/expert_travel.hpp.
#pragma once

#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/dispatcher/local.hpp>
#include <moiety/experts/apply.hpp>
#include <moiety/kernels/gather.hpp>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/identity_rows.hpp>
#include <moiety/kernels/input_weights.hpp>
#include <moiety/kernels/row_weights.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/expert_travel.hpp>
#include <moiety/layer/memory_plan.hpp>
#include <moiety/layer/product_room.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/layer/tape.hpp>

#include <cstdint>
#include <utility>

namespace moiety::inline MOIETY_ABI {

template <class Spec, class Deployment> class expert_stage : public expert_travel<Spec, Deployment> {
  using travel = expert_travel<Spec, Deployment>;
  using read = spec_of<Spec>;
  using T = detail::element_t<Deployment>;
  using S = sum_t<T>;
  using backend = typename context<Deployment>::backend;
  using typename travel::context_type;
  using engine_type = typename backend::engine;
  using products = typename detail::policy_of<typename Deployment::expert_products, backend, grouped_products>::type;
  using apply = typename products::template apply<typename read::experts_type, backend>;
  using dispatcher = typename Deployment::dispatcher;
  using tape_type = layer_tape<Spec, T>;
  static constexpr weight_place place = read::router_type::place;
  static constexpr bool travels = dispatcher::travels;
  static constexpr bool keeps_rows = dispatcher::keeps_rows && place != weight_place::input;
  static constexpr bool biased = pending_plan<Spec, T>::biased;
  static constexpr bool may_gather = !travels && kernels::may_want_rows_in_order<T, engine_type>;
  static constexpr gathered_rows gathers = products::gathers_first;
  static constexpr bool may_share_dy = may_gather && gathers.backward_input && gathers.backward_weights;

 public:
  using typename travel::links;
  /// Whether the weight half needs the workspace.
  static constexpr bool needs_work = place == weight_place::input || (may_gather && gathers.backward_weights);

  /// `work` is that of forward_plan.
  template <class Weights>
  static void forward(context_type& ctx, links& through, Weights const& weights, tape_type& tape, buffer const& work,
                      bool keep, S const* base, matrix_view<T> y) {
    forward_plan<Spec, T> const plan(tape.size());
    permutation_view const& order = tape.permutation();
    T* const output = detail::at<T>(work, plan.output);
    constexpr bool weighted = place == weight_place::activation;
    S* const row_weights = weighted ? detail::at<S>(work, plan.row_weights) : nullptr;
    auto const own_weights = travel::template spread<weighted>(ctx, through, tape, row_weights);
    kernels::rows_of<T> const own_inputs = inputs_of(ctx.engine(), tape, work);
    buffer arrived;
    constexpr auto as = place == weight_place::output ? travel::home::weighted : travel::home::summed;
    typename travel::template result<T, as> results{output, read::expert_hidden, own_rows_of<Spec>(tape.size())};
    travel::visit_experts(
        ctx, through, tape, in_order<gathers.forward>(ctx.engine(), tape, own_inputs, tape.expert_x(), output),
        keep && keeps_rows ? tape.x_rows : arrived,
        [&](expert_rows const& rows, kernels::rows_of<T> const& inputs) {
          apply::forward(ctx.engine(), in_room(rows, tape, work, layer_pass::forward), inputs, weights.operands(),
                         keep ? tape.pre_activation() : nullptr, detail::at<T>(work, plan.activation), output,
                         row_weights);
        },
        results);
    T* const own = results.own;
    if constexpr (read::zero_experts > 0)
      kernels::pass_rows<T>(ctx.engine(), order, read::mlp_experts, own_inputs, own_weights.values,
                            travel::all_rows(own, tape));
    S const* const by_slot = place == weight_place::output ? tape.routing().weights : nullptr;
    travel::combine(ctx.engine(), tape, own, results.sums, by_slot, base, y);
  }

  /// `work` is that of backward_plan, `pending` that of pending_plan. Returns whether `gradients`, which may be null, have got those
  /// of W_down: they do where rows of dy lie in order, as later they do not.
  template <class Weights, class Gradients>
  static bool backward_input(context_type& ctx, links& through, Weights const& weights, tape_type& tape,
                             buffer const& work, [[maybe_unused]] Gradients* gradients) {
    pending_plan<Spec, T> const kept(tape.size());
    backward_plan<Spec, T, backend> const plan(tape.size());
    permutation_view const& order = tape.permutation();
    S* const row_weights = row_weights_of(tape, work);
    constexpr bool weighted = place != weight_place::input;
    S* const parts = weighted ? detail::at<S>(work, plan.weight_parts) : nullptr;
    S* const dweights = detail::at<S>(work, plan.weights);
    T* const dx_rows = detail::at<T>(work, plan.row_inputs);
    auto const own_weights = travel::template spread<weighted>(ctx, through, tape, row_weights);
    kernels::rows_of<T> const own_dy = local::dispatch(tape.expert_dy(), order);
    kernels::rows_of<T> const read_dy =
        in_order<gathers.backward_input>(ctx.engine(), tape, own_dy, tape.expert_dy(), dx_rows);
    bool const has_down = may_share_dy && gradients != nullptr && read_dy.index == nullptr;
    auto const work_back = [&](expert_rows const& rows, kernels::rows_of<T> const& dy) {
      T* const scaled_a = detail::at<T>(tape.pending, kept.activation);
      auto const go_back = [&](auto const&... between) {
        apply::backward_input(ctx.engine(), in_room(rows, tape, work, layer_pass::backward_input), dy,
                              weights.operands(), tape.pre_activation(), row_weights,
                              detail::at<T>(tape.pending, kept.pre_activation), scaled_a, parts, dx_rows, between...);
      };
      if constexpr (may_share_dy)
        if (has_down)
          return go_back([&] {
            apply::backward_down_weights(ctx.engine(), rows, dy, scaled_a, gradients->experts(), !gradients->empty(),
                                         factors_of(tape, work));
          });
      go_back();
    };
    std::int64_t const own_rows = own_rows_of<Spec>(tape.size());
    typename travel::template result<T, travel::home::summed> of_dx{dx_rows, read::expert_hidden, own_rows};
    typename travel::template result<S> of_parts{parts, parts_of_weight(tape), own_rows};
    if constexpr (weighted)
      travel::visit_experts(ctx, through, tape, read_dy, tape.dy_rows, work_back, of_dx, of_parts);
    else
      travel::visit_experts(ctx, through, tape, read_dy, tape.dy_rows, work_back, of_dx);
    tape.dx_rows = std::move(of_dx.room), tape.dx_sums = std::move(of_dx.sums);
    T* const own_dx = of_dx.own;
    S* const own_parts = of_parts.own;
    if constexpr (read::zero_experts > 0)
      kernels::pass_rows_backward<T>(ctx.engine(), order, read::mlp_experts, own_dy,
                                     local::dispatch(tape.expert_x(), order), own_weights.values, own_parts,
                                     parts_of_weight(tape), travel::all_rows(own_dx, tape));
    if constexpr (weighted)
      kernels::gather_weight_gradients<S>(ctx.engine(), order, own_parts, parts_of_weight(tape), dweights);
    else
      kernels::input_weight_gradients<T>(ctx.engine(), order, travel::all_rows(own_dx, tape), tape.expert_x(),
                                         dweights);
    return has_down;
  }

  /// base [T × H] is what else reached x.
  static void combine_input(engine_type& engine, tape_type const& tape, buffer const& work, S const* base,
                            matrix_view<T> dx) {
    backward_plan<Spec, T, backend> const plan(tape.size());
    S* const by_slot = place == weight_place::input ? tape.routing().weights : nullptr;
    T* const rows = travels ? detail::at<T>(tape.dx_rows, 0) : detail::at<T>(work, plan.row_inputs);
    travel::combine(engine, tape, rows, tape.dx_sums, by_slot, base, dx);
  }

  /// `work` is that of forward_plan; it may be empty where it is not needed again. has_down: the gradients have those of W_down.
  template <class Gradients>
  static void backward_weights(context_type& ctx, links& through, tape_type& tape, buffer const& work,
                               Gradients& gradients, bool accumulate, [[maybe_unused]] bool has_down) {
    pending_plan<Spec, T> const kept(tape.size());
    bias_factors<S> const factors = factors_of(tape, work);
    buffer arrived;
    T* const dz = detail::at<T>(tape.pending, kept.pre_activation);
    T* const scaled_a = detail::at<T>(tape.pending, kept.activation);
    kernels::rows_of<T> const x = inputs_again(ctx, through, tape, work, arrived), dy = dy_again(tape);
    expert_rows const rows = travel::rows_of(tape);
    if constexpr (may_gather && gathers.backward_weights) {
      T* const room = detail::at<T>(work, forward_plan<Spec, T>(tape.size()).output);
      apply::backward_input_weights(ctx.engine(), rows, in_order<true>(ctx.engine(), tape, x, tape.expert_x(), room),
                                    dz, gradients.experts(), accumulate, factors);
      if (has_down) return;
      apply::backward_down_weights(ctx.engine(), rows, in_order<true>(ctx.engine(), tape, dy, tape.expert_dy(), room),
                                   scaled_a, gradients.experts(), accumulate, factors);
    } else {
      apply::backward_weights(ctx.engine(), rows, x, dy, dz, scaled_a, gradients.experts(), accumulate, factors);
    }
  }

 private:
  static expert_rows in_room(expert_rows rows, tape_type const& tape, buffer const& work, layer_pass pass) {
    rows.room = room_in<Spec, Deployment>(work, tape.size(), pass);
    return rows;
  }

  static std::int64_t parts_of_weight(tape_type const& tape) {
    return weight_parts<typename read::experts_type, S, backend>(expert_ffn_of<Spec>(tape.size()));
  }

  /// The rows that `rows` gathers of a token's rows `of`, gathered in `room` [own rows x width] if the products want that.
  template <bool Wanted>
  static kernels::rows_of<T> in_order([[maybe_unused]] engine_type& engine, [[maybe_unused]] tape_type const& tape,
                                      kernels::rows_of<T> const& rows, [[maybe_unused]] matrix_view<T const> of,
                                      [[maybe_unused]] T* room) {
    if constexpr (may_gather && Wanted)
      if (rows.index != nullptr &&
          kernels::wants_rows_in_order<T>(engine, read::mlp_experts, own_rows_of<Spec>(tape.size()))) {
        kernels::gather<T>(engine, tape.permutation(), of, travel::all_rows(room, tape));
        return {room, read::expert_hidden};
      }
    return rows;
  }

  /// What the tokens of this rank give experts.
  static kernels::rows_of<T> inputs_of(engine_type& engine, tape_type const& tape, buffer const& work) {
    permutation_view const& order = tape.permutation();
    if constexpr (place == weight_place::input) {
      T* const rows = detail::at<T>(work, forward_plan<Spec, T>(tape.size()).row_inputs);
      kernels::gather_weighted<T>(engine, order, tape.routing().weights, tape.expert_x(), travel::all_rows(rows, tape));
      return {rows, read::expert_hidden};
    } else {
      return local::dispatch(tape.expert_x(), order);
    }
  }

  /// What experts read and the gradients of what they gave, as the weight half finds them.
  static kernels::rows_of<T> inputs_again(context_type& ctx, links& through, tape_type& tape, buffer const& work,
                                          buffer& room) {
    if constexpr (keeps_rows) return travel::exchange_of(tape).template brought<T>(tape.x_rows, read::expert_hidden);
    return travel::bring(ctx, through, tape, inputs_of(ctx.engine(), tape, work), room);
  }
  static kernels::rows_of<T> dy_again(tape_type const& tape) {
    if constexpr (travels) return travel::exchange_of(tape).template brought<T>(tape.dy_rows, read::expert_hidden);
    return local::dispatch(tape.expert_dy(), tape.permutation());
  }

  /// What gradients of biases need; nothing without.
  static bias_factors<S> factors_of(tape_type const& tape, buffer const& work) {
    if (!biased) return {};
    return {row_weights_of(tape, work), detail::at<S>(tape.pending, pending_plan<Spec, T>(tape.size()).one)};
  }

  /// Where the weights of rows stand: with biases the weight half needs them too. Null where inputs have them already.
  static S* row_weights_of(tape_type const& tape, buffer const& work) {
    if (place == weight_place::input) return nullptr;
    if (biased) return detail::at<S>(tape.pending, pending_plan<Spec, T>(tape.size()).row_weights);
    return detail::at<S>(work, backward_plan<Spec, T, backend>(tape.size()).row_weights);
  }
};

}  // namespace moiety
