// SPDX-License-Identifier: Apache-2.0
// One training step of a layer on any layout of thread ranks, as what does not depend on the layout: rows of all ranks,
// losses, and gradients of the logical parameters.
//
// The tokens of a micro-batch are those of rank 0, of rank 1, …; one rank with all of them has the same order. So all but
// sums that are split over ranks must have the same bits: these are gradients of dense parameters, of experts that several
// ranks hold (expert_data > 1), and whatever an expert_tensor axis adds.
#pragma once

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <span>
#include <string>
#include <vector>

namespace ranks {

namespace mo = moiety;

template <class T, class Dispatcher = mo::all_to_all, class Transport = mo::threads, class Backend = mo::host,
          class Numerics = mo::numerics::invariant, class Products = mo::grouped_products>
struct spread : mo::deployment<mo::dynamic> {
  using backend = Backend;
  using element = T;
  using transport = Transport;
  using dispatcher = Dispatcher;
  using numerics = Numerics;
  using expert_products = Products;
};

/// Tokens of each rank.
using cut = std::vector<std::int64_t>;

inline std::int64_t total(cut const& tokens) { return std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0}); }

/// What is by token of all micro-batches together; empty where a batch says nothing of it.
struct tokens_of_all {
  std::vector<std::int32_t> ids{}, experts{};
  std::vector<std::uint8_t> mask{};
  std::vector<std::int64_t> sequences{};  // offsets; a sequence lies in one micro-batch, on ranks that share sequences
};

template <class T> struct outcome {
  using S = mo::sum_t<T>;
  std::vector<T> y, dx, inferred;
  std::vector<std::int32_t> ids;
  std::vector<double> losses;
  std::vector<std::int64_t> counts, dropped;
  std::int64_t tokens = 0;
  std::map<std::string, std::vector<S>> experts, dense;
};

/// The tokens of one rank in one micro-batch, and what they are about.
class rank_tokens {
 public:
  template <class Context>
  rank_tokens(Context& ctx, cut const& tokens, std::int64_t before, tokens_of_all const& all) : all_(&all) {
    auto const rank = static_cast<std::ptrdiff_t>(ctx.stage().rank());
    std::ptrdiff_t const sharing = ctx.sequence_parts().size(), group = rank / sharing * sharing;
    auto const at = [&](std::ptrdiff_t r) { return std::accumulate(tokens.begin(), tokens.begin() + r, before); };
    first = at(rank), count = tokens[static_cast<std::size_t>(rank)];
    if (all.sequences.empty()) return;
    std::int64_t const begin = at(group), end = at(group + sharing);
    for (std::int64_t const offset : all.sequences)
      if (offset >= begin && offset <= end) sequences_.push_back(std::clamp(offset, first, first + count) - first);
  }

  mo::batch about(std::int64_t slots) const {
    auto const part = [&](auto const& values, std::int64_t each) {
      using V = std::remove_cvref_t<decltype(values[0])>;
      if (values.empty()) return std::span<V const>{};
      return std::span(values).subspan(static_cast<std::size_t>(first * each), static_cast<std::size_t>(count * each));
    };
    return {.sequences = sequences_,
            .mask = part(all_->mask, 1),
            .ids = part(all_->ids, 1),
            .experts = part(all_->experts, slots),
            .first_row = first,
            .step = 3};
  }

  /// What a batch says of tokens, in the memory of the context.
  template <class Context> mo::batch about(std::int64_t slots, Context& ctx, std::vector<mo::buffer>& memory) const {
    mo::batch of = about(slots);
    auto const place = [&]<class V>(std::span<V const>& values) {
      memory.emplace_back(static_cast<std::int64_t>(values.size_bytes()), ctx.memory());
      ctx.memory().store(memory.back().data(), values.data(), memory.back().bytes());
      values = {static_cast<V const*>(memory.back().data()), values.size()};
    };
    place(of.mask), place(of.ids), place(of.experts);
    return of;
  }

  std::int64_t first = 0, count = 0;

 private:
  tokens_of_all const* all_;
  std::vector<std::int64_t> sequences_;
};

/// The whole tensor of a parameter of experts, from the slices of all ranks, those of replicas added.
template <class Context, class S> std::vector<S> joined(Context& ctx, mo::parameter const& p, std::span<S> values) {
  ctx.expert_data().all_reduce(values);
  std::vector<S> whole(static_cast<std::size_t>(
      std::accumulate(p.shape.begin(), p.shape.end(), std::int64_t{1}, std::multiplies<std::int64_t>())));
  auto from = values.begin();
  p.for_each_piece([&](std::int64_t begin, std::int64_t count) {
    std::copy_n(from, count, whole.begin() + begin);
    from += count;
  });
  ctx.expert_group().all_reduce(std::span<S>(whole));
  return whole;
}

template <class Context, class V> std::vector<V> on_host(Context& ctx, V const* values, std::int64_t count) {
  std::vector<V> copy(static_cast<std::size_t>(count));
  ctx.memory().load(copy.data(), values, count * static_cast<std::int64_t>(sizeof(V)));
  return copy;
}

template <class Backend> Backend of_one_thread() {
  Backend options{};
  if constexpr (requires { options.threads; }) options.threads = 1;
  return options;
}

/// A micro-batch whose input half is yet to come.
template <class Spec, class Deployment> struct micro_batch {
  rank_tokens tokens;
  std::vector<mo::buffer> said;
  typename Deployment::backend::template matrix<typename Deployment::element> x, y, dy, dx;
  typename mo::moe_layer<Spec, Deployment>::tape_type tape;
};

template <class Spec, class T, class Dispatcher = mo::all_to_all, class Transport = mo::threads,
          class Backend = mo::host, class Numerics = mo::numerics::invariant, class Products = mo::grouped_products>
outcome<T> step_on(mo::layout const& shape, std::vector<cut> const& micro_batches,
                   mo::layer_options<Spec> const& options, tokens_of_all const& about = {},
                   Backend const& on = of_one_thread<Backend>(), mo::run_options const& waits = {}) {
  using deployment = spread<T, Dispatcher, Transport, Backend, Numerics, Products>;
  using S = mo::sum_t<T>;
  using read = mo::spec_of<Spec>;
  return mo::run<deployment>(
      [&](mo::context<deployment>& ctx) {
        mo::moe_layer<Spec, deployment> layer{ctx, options};
        auto weights = layer.make_weights(mo::seed{17});
        if constexpr (read::router_type::has_selection_bias) {
          for (std::int64_t e = 0; e < read::experts; ++e) {
            float const bias = static_cast<float>(e * 7 % 5) * 0.05f;
            ctx.memory().store(weights.selection_bias() + e, &bias, sizeof(bias));
          }
        }
        std::vector<micro_batch<Spec, deployment>> all;
        outcome<T> result;
        mo::loss_ledger<Spec> ledger{ctx, 1};
        auto const append = [](auto& to, auto const& from) { to.insert(to.end(), from.begin(), from.end()); };
        std::int64_t before = 0;
        for (cut const& tokens : micro_batches) {
          rank_tokens const mine(ctx, tokens, before, about);
          before += total(tokens);
          auto const matrix = [&] { return ctx.matrix(mine.count, read::hidden); };
          auto x = matrix(), y = matrix(), dy = matrix(), dx = matrix();
          mo::fill_normal(ctx, x, mo::seed{1}, mo::first_row{mine.first});
          mo::fill_normal(ctx, dy, mo::seed{2}, mo::first_row{mine.first});
          std::vector<mo::buffer> said;
          mo::batch const batch = mine.about(read::slots, ctx, said);
          layer.infer(weights, x, y, batch);
          append(result.inferred, mo::all_gather(ctx.stage(), y));
          auto tape = layer.forward(weights, x, y, batch);
          append(result.y, mo::all_gather(ctx.stage(), y));
          append(result.ids, ctx.stage().template all_gather_v<std::int32_t>(
                                 on_host(ctx, tape.routing().ids, mine.count * read::slots)));
          ledger.record(0, tape);
          all.push_back(
              {mine, std::move(said), std::move(x), std::move(y), std::move(dy), std::move(dx), std::move(tape)});
        }
        auto gradients = layer.make_gradients();
        for (auto& m : all) layer.backward_input(weights, m.tape, m.dy, m.dx);
        for (auto& m : all) layer.backward_weights(m.tape, gradients);
        for (auto& m : all) append(result.dx, mo::all_gather(ctx.stage(), m.dx));
        mo::loss_report<Spec> const report = ledger.reduce();
        typename read::losses_type{}.for_each([&]<class Loss>(Loss const&) {
          result.losses.push_back(report.template value<Loss>());
          result.losses.push_back(report.template weighted<Loss>());
        });
        result.counts = report.counts(), result.dropped = report.dropped(), result.tokens = report.tokens();
        gradients.for_each([&](mo::parameter const& p, std::span<S> there) {
          std::vector<S> values = on_host(ctx, there.data(), std::ssize(there));
          if (p.of_experts) {
            result.experts[p.name] = joined(ctx, p, std::span<S>(values));
          } else {
            ctx.stage().all_reduce(std::span<S>(values));
            result.dense[p.name] = std::move(values);
          }
        });
        return result;
      },
      waits, shape, on);
}

/// The distance of a from b, of the norm of b.
template <class V> double distance(std::vector<V> const& a, std::vector<V> const& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    double const d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    error += d * d, norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
}

template <class T> bool same_bits(std::vector<T> const& a, std::vector<T> const& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// What sums of n terms in another order may differ by, of their norm: 4 ε √n. It holds for the norm of many sums unless
/// nearly all of them cancel.
template <class T> double bound(std::int64_t n) {
  double const epsilon = sizeof(T) == 2 ? 0x1p-8 : sizeof(T) == 4 ? 0x1p-23 : 0x1p-52;
  return 4 * epsilon * std::sqrt(static_cast<double>(n));
}

/// Gradients, of which those of experts have the same bits where each expert has one replica.
template <class T> void check_gradients(outcome<T> const& many, outcome<T> const& one, bool one_sum, double tolerance) {
  REQUIRE(many.experts.size() == one.experts.size());
  for (auto const& named : one.experts) {  // INFO takes no structured binding
    auto const& name = named.first;
    auto const& values = named.second;
    INFO(name);
    if (one_sum) CHECK(same_bits(many.experts.at(name), values));
    CHECK(distance(many.experts.at(name), values) < tolerance);
  }
  REQUIRE(many.dense.size() == one.dense.size());
  for (auto const& named : one.dense) {  // INFO takes no structured binding
    auto const& name = named.first;
    auto const& values = named.second;
    INFO(name);
    CHECK(distance(many.dense.at(name), values) < tolerance);
  }
}

/// What is a function of logits alone.
template <class T> void check_routing(outcome<T> const& many, outcome<T> const& one) {
  CHECK(same_bits(many.ids, one.ids));
  CHECK(same_bits(many.losses, one.losses));
  CHECK(many.counts == one.counts);
  CHECK(many.dropped == one.dropped);
  CHECK(many.tokens == one.tokens);
}

/// Checks an outcome against that of one rank.
template <class T> void check_same(outcome<T> const& many, outcome<T> const& one, mo::layout const& shape) {
  check_routing(many, one);
  bool const whole_experts = shape.expert_tensor == 1;
  double const sums = bound<mo::sum_t<T>>(one.tokens + 1), parts = bound<T>(64);
  if (whole_experts) {
    CHECK(same_bits(many.y, one.y));
    CHECK(same_bits(many.inferred, one.inferred));
    CHECK(same_bits(many.dx, one.dx));
  } else {
    CHECK(distance(many.y, one.y) < parts);
    CHECK(distance(many.inferred, one.inferred) < parts);
    CHECK(distance(many.dx, one.dx) < parts);
  }
  check_gradients(many, one, whole_experts && shape.expert_data() == 1, whole_experts ? sums : parts);
}

/// Checks an outcome whose rows are summed by rank, in the sum type and rounded once; gradients of weights are not.
template <class T> void check_close(outcome<T> const& many, outcome<T> const& one, mo::layout const& shape) {
  check_routing(many, one);
  bool const whole_experts = shape.expert_tensor == 1;
  double const once = whole_experts && sizeof(T) == 2 ? 0x1p-11 : bound<T>(64);
  CHECK(distance(many.y, one.y) < once);
  CHECK(distance(many.inferred, one.inferred) < once);
  CHECK(distance(many.dx, one.dx) < once);
  check_gradients(many, one, whole_experts && shape.expert_data() == 1,
                  whole_experts ? bound<mo::sum_t<T>>(one.tokens + 1) : bound<T>(64));
}

/// Tokens of 64 for each of 1, 2, 3 or 4 ranks: even, uneven with a rank that has none, or all on one.
enum class share { even, uneven, one_rank };
inline cut tokens_of(int ranks, share how) {
  cut four = how == share::even ? cut{16, 16, 16, 16} : how == share::uneven ? cut{17, 0, 40, 7} : cut{0, 0, 64, 0};
  if (ranks == 4) return four;
  if (ranks == 3) return {four[0], four[1], four[2] + four[3]};
  if (ranks == 2) return {four[0] + four[1], four[2] + four[3]};
  return {64};
}

/// A spec on layouts, each with even and uneven tokens, against one rank.
template <class Spec, class T, class Dispatcher = mo::all_to_all>
void check_layouts(std::vector<mo::layout> const& shapes, mo::layer_options<Spec> const& options,
                   tokens_of_all const& about = {}) {
  auto const one = step_on<Spec, T>({}, {{64}}, options, about);
  CHECK(std::any_of(one.y.begin(), one.y.end(), [](T v) { return static_cast<double>(v) != 0; }));
  for (mo::layout const& shape : shapes)
    for (share const how : {share::even, share::uneven, share::one_rank}) {
      INFO(mo::detail::sentence(shape), " ", static_cast<int>(how));
      check_same(step_on<Spec, T, Dispatcher>(shape, {tokens_of(shape.stage(), how)}, options, about), one, shape);
    }
}

/// Layouts of up to 4 ranks: experts on 1, 2 and 4 of them, by every axis that tokens can be split over.
inline std::vector<mo::layout> const few_layouts{{.data = 4},
                                                 {.data = 4, .expert = 4},
                                                 {.data = 2, .tensor = 2, .expert = 2},
                                                 {.tensor = 2, .context = 2, .expert = 4}};
inline std::vector<mo::layout> const all_layouts{
    {.data = 1},
    {.data = 2},
    {.tensor = 2},
    {.context = 2},
    {.data = 2, .expert = 2},
    {.tensor = 2, .expert = 2},
    {.context = 2, .expert = 2},
    {.data = 4},
    {.data = 4, .expert = 2},
    {.data = 4, .expert = 4},
    {.data = 2, .tensor = 2},
    {.data = 2, .tensor = 2, .expert = 2},
    {.data = 2, .tensor = 2, .expert = 4},
    {.data = 2, .context = 2, .expert = 4},
    {.tensor = 2, .context = 2, .expert = 2},
    {.tensor = 2, .context = 2, .expert = 4},
    {.data = 2, .tensor = 2, .expert = 4, .order = {mo::axis::data, mo::axis::tensor, mo::axis::context}}};
inline std::vector<mo::layout> const split_layouts{{.data = 2, .expert_tensor = 2},
                                                   {.tensor = 2, .expert_tensor = 2},
                                                   {.data = 4, .expert_tensor = 2},
                                                   {.data = 4, .expert_tensor = 4},
                                                   {.data = 4, .expert = 2, .expert_tensor = 2},
                                                   {.data = 2, .context = 2, .expert = 2, .expert_tensor = 2}};

/// Options with coefficients for the losses that small specs list.
template <class Spec> mo::layer_options<Spec> trained() {
  mo::layer_options<Spec> options{.loss_scale = 2};
  float coefficient = 0.05f;
  auto const set = [&]<class... Losses>(mo::losses<Losses...>) {
    return mo::losses<Losses...>{Losses{.coefficient = coefficient += 0.01f}...};
  };
  options.losses = set(typename mo::spec_of<Spec>::losses_type{});
  return options;
}

/// 64 tokens, 20 wide, with 8 experts.
inline constexpr mo::dims size{.hidden = 20, .ffn = 12, .experts = 8};
template <class Router, class... Losses> struct small : mo::layer_spec<size> {
  using router = Router;
  using losses = mo::losses<mo::load_balance<mo::over::global_batch>, mo::load_balance<>, mo::router_z, Losses...>;
};
using softmax_2 = mo::router<mo::softmax, mo::top_k<2>>;

}  // namespace ranks
