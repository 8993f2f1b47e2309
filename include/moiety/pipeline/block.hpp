// SPDX-License-Identifier: Apache-2.0
// A layer of a model, as stacks take it (pipeline/block_stack.hpp): mo::moe_layer, and types of yours, as a dense MLP, attention
// with experts behind it, an embedding, a head.
//
//   using element, weights_type, gradients_type, tape_type
//   block.input_width(), block.output_width()              columns of x and of y; x of an embedding has 0, it reads about.ids
//   block.make_weights(key, prefix)                        prefix: what stands before the names of parameters in the model, but
//                                                          not of those that are tied
//   block.make_gradients()
//   auto tape = block.forward(weights, x, y, about);       x, y [T × width]; y is overwritten
//   block.infer(weights, x, y, about);                     nothing kept
//   block.backward_input(weights, tape, dy, dx);           dx is overwritten
//   block.backward_weights(tape, gradients);               gradients are added to, or overwritten after a reset
//   weights.for_each(f), gradients.for_each(f)             f(parameter, values), see layer/parameters.hpp
//   gradients.reset()
//
// A block is a function of explicit state, and what it was made of is movable. A tape may refer to x, dy, weights and whatever
// `about` refers to: all live unmodified until backward_weights has returned. A block with losses also names their spec:
//
//   using spec = mine;
//   block.record(tape)                                     → layer_record<mine>, once for each forward
//
// and one that keeps its weights in a packed layout too has block.pack(weights).
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/random.hpp>
#include <moiety/layer/parameters.hpp>
#include <moiety/layer/record.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

namespace detail {

struct any_parameter {
  template <class V> void operator()(parameter const&, std::span<V>) const {}
};

template <class B>
concept block_names_spec = requires {
  typename B::spec;
};

}  // namespace detail

template <class B>
concept model_block = requires(B const& block, typename B::weights_type& weights, typename B::weights_type const& read,
                               typename B::gradients_type& gradients, typename B::tape_type& tape,
                               matrix_view<typename B::element const> in, matrix_view<typename B::element> out,
                               batch const& about, seed key, std::string_view prefix) {
  { block.input_width() } -> std::convertible_to<std::int64_t>;
  { block.output_width() } -> std::convertible_to<std::int64_t>;
  { block.make_weights(key, prefix) } -> std::same_as<typename B::weights_type>;
  { block.make_gradients() } -> std::same_as<typename B::gradients_type>;
  { block.forward(read, in, out, about) } -> std::same_as<typename B::tape_type>;
  block.infer(read, in, out, about);
  block.backward_input(read, tape, in, out);
  block.backward_weights(tape, gradients);
  weights.for_each(detail::any_parameter{});
  read.for_each(detail::any_parameter{});
  gradients.for_each(detail::any_parameter{});
  gradients.reset();
};

template <class B>
concept block_with_losses = model_block<B> && detail::block_names_spec<B> &&
    requires(B const& block, typename B::tape_type const& tape) {
  { block.record(tape) } -> std::same_as<layer_record<typename B::spec>>;
};

namespace detail {

template <class... Specs> struct spec_list { static constexpr std::size_t count = sizeof...(Specs); };

template <class Block, class... Specs> constexpr auto with_spec_of(spec_list<Specs...> list) {
  if constexpr (!block_with_losses<Block>)
    return list;
  else if constexpr ((std::same_as<Specs, typename Block::spec> || ...))
    return list;
  else
    return spec_list<Specs..., typename Block::spec>{};
}

/// The specs of blocks with losses, each once, in the order of the blocks.
template <class List, class... Blocks> struct add_specs { using type = List; };
template <class List, class First, class... Rest>
struct add_specs<List, First, Rest...> : add_specs<decltype(with_spec_of<First>(List{})), Rest...> {};
template <class... Blocks> using specs_of = typename add_specs<spec_list<>, Blocks...>::type;

}  // namespace detail

}  // namespace moiety
