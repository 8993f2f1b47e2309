// SPDX-License-Identifier: Apache-2.0
// A deployment at run time: the back end's engine, and one communicator for every axis of the layout.
//
//   mo::context<> ctx;                              host, float, one rank
//   mo::context<> ctx{mo::host{.threads = 2}};      options of the back end
//   auto x = ctx.matrix(tokens, hidden);            zeroed, in the deployment's number type, from the context's memory
//
// With more ranks than one a context is made by mo::run (mesh/run.hpp). Its communicators:
//
//   world()         all ranks
//   data(), tensor(), sequence_parts(), pipeline()    ranks that differ in one axis of the layout alone; sequence_parts()
//                   differ in context and tensor: they hold parts of the same sequences
//   data_context()  ranks that differ in data and context
//   stage()         the ranks of one pipeline stage: they hold the tokens of a batch, each its own
//   expert_group()  ranks that hold all experts once: they differ in expert and expert_tensor
//   expert(), expert_tensor(), expert_data()          one axis of the experts' grid
//   tied()          the ranks of the first and of the last stage, for a tensor that both hold; in between, those of a stage
//
// On mo::cuda they move rows of device memory and tell each other values of the host's, see backend/transport/device_ranks.cuh.
//
// A context outlives the layers, matrices, weights and tapes that were made with it. It is used by one thread at a time.
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/backend/host.hpp>
#include <moiety/backend/transport/self.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/mesh/agreement.hpp>
#include <moiety/mesh/grid.hpp>
#include <moiety/mesh/layout.hpp>

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// After the sentence about a back end that is missing, the host keeps the compiler quiet.
template <class Backend> consteval bool check_backend() {
  static_assert(!std::is_same_v<Backend, cuda> || complete<Backend>,
                "this deployment names mo::cuda: include <moiety/cuda.cuh>, compiled by nvcc.");
  return true;
}
template <class Deployment> struct backend_of {
  using named = typename Deployment::backend;
  static_assert(check_backend<named>());
  using type = std::conditional_t<complete<named>, named, host>;
};

template <class Element> consteval bool check_element() {
  static_assert(scalar<Element>, "'using element' in a deployment must name float, double, mo::bf16 or mo::fp16.");
  return true;
}

/// The element of a deployment; after the sentence about one that is no number type, float keeps the compiler quiet.
template <class Deployment> struct element_of {
  using named = typename Deployment::element;
  static_assert(check_element<named>());
  using type = std::conditional_t<scalar<named>, named, float>;
};
template <class Deployment> using element_t = typename element_of<Deployment>::type;

/// Whether layers of a deployment may have to speak with other ranks.
template <class Deployment> inline constexpr bool has_ranks = !Deployment::transport::single_rank;
/// And their rows lie in memory of a device.
template <class Deployment>
inline constexpr bool ranks_on_device =
    has_ranks<Deployment> && !std::is_same_v<typename backend_of<Deployment>::type, host>;

/// A layout given at run time.
template <class Deployment> void check_layout_of(layout const& given) {
  check_layout(given);
  require<config_error>(Deployment::shape.is_dynamic() || given == Deployment::shape,
                        "a run was given the layout with ", given, ", but its deployment names that with ",
                        Deployment::shape, '.');
}

/// The communicators of a context: those of the transport, or what the back end makes of them where rows lie in its memory.
template <class Backend, class Transport> struct ranks_of { using type = typename Transport::communicator; };
template <class Backend, class Transport>
requires(!Transport::single_rank && requires {
  typename Backend::template ranks<typename Transport::communicator>;
}) struct ranks_of<Backend, Transport> {
  using type = typename Backend::template ranks<typename Transport::communicator>;
};

/// The communicator of a context that is made without mo::run; after the sentence about one that cannot be, nothing is made.
template <class T> T not_made();
template <class Deployment> auto alone() {
  static_assert(!has_ranks<Deployment>, "a context of ranks that are threads or processes is made by mo::run.");
  using communicator = typename Deployment::transport::communicator;
  if constexpr (has_ranks<Deployment>)
    return not_made<communicator>();
  else
    return communicator{};
}

}  // namespace detail

template <class Deployment> class context {
 public:
  using deployment = Deployment;
  using backend = typename detail::backend_of<Deployment>::type;
  using engine_type = typename backend::engine;
  using element = detail::element_t<Deployment>;
  using sum = sum_t<element>;
  using communicator = typename detail::ranks_of<backend, typename Deployment::transport>::type;

  static_assert(Deployment::shape.world() <= 1 || detail::has_ranks<Deployment>,
                "this deployment has more than one rank, and its transport mo::self has one.");

  context() : context(backend{}) {}
  explicit context(backend const& options) : context(options, {}, detail::alone<Deployment>()) {}

  /// A collective of all ranks of `world`. Where there can be several, it throws config_error on each of them unless they give
  /// the same layout, which has their number and is that of the deployment if it names one.
  context(backend const& options, layout const& shape, typename Deployment::transport::communicator world)
      : engine_(std::make_unique<engine_type>(options)), shape_(shape), world_(of_back_end(std::move(world))) {}

  engine_type& engine() { return *engine_; }
  auto& memory() { return engine_->memory(); }
  layout const& shape() const { return shape_; }
  void synchronize() { engine_->synchronize(); }

  communicator& world() { return world_; }
  communicator& stage() { return stage_; }
  communicator& data() { return data_; }
  communicator& tensor() { return tensor_; }
  communicator& sequence_parts() { return sequence_parts_; }
  communicator& data_context() { return data_context_; }
  communicator& pipeline() { return pipeline_; }
  communicator& expert_group() { return expert_group_; }
  communicator& expert() { return expert_; }
  communicator& expert_tensor() { return expert_tensor_; }
  communicator& expert_data() { return expert_data_; }
  communicator& tied() { return tied_; }

  typename backend::template matrix<element> matrix(std::int64_t rows, std::int64_t cols) {
    return typename backend::template matrix<element>(rows, cols, engine_->memory());
  }

 private:
  communicator of_back_end(typename Deployment::transport::communicator world) {
    if constexpr (std::is_same_v<communicator, decltype(world)>)
      return with_one_layout(std::move(world));
    else
      return with_one_layout({*engine_, std::move(world)});
  }
  communicator with_one_layout(communicator world) {
    if constexpr (detail::has_ranks<Deployment>) {
      agree(world, [&] {
        detail::check_layout_of<Deployment>(shape_);
        check_world(shape_, world.size());
      });
      configuration all;
      all.add("the layout", shape_);
      all.check(world, "a run");
    }
    return world;
  }
  communicator part(axis_set along, char const* name) {
    group_place const mine = group_of(shape_, along, world_.rank());
    return world_.split(mine.colour, mine.position, name);
  }
  communicator ends_of_pipeline() {
    int const stage = world_.rank() / shape_.stage(), last = shape_.pipeline - 1;
    return world_.split(stage == last ? 0 : stage, world_.rank(), "tied");
  }

  std::unique_ptr<engine_type> engine_;
  layout shape_;
  communicator world_;
  communicator stage_ = part(axes::stage, "stage");
  communicator data_ = part(axis::data, "data");
  communicator tensor_ = part(axis::tensor, "tensor");
  communicator sequence_parts_ = part(axes::sequence, "context");
  communicator pipeline_ = part(axis::pipeline, "pipeline");
  communicator expert_group_ = part(axes::expert_group, "expert");
  communicator expert_ = part(axis::expert, "expert");
  communicator expert_tensor_ = part(axis::expert_tensor, "expert_tensor");
  communicator expert_data_ = part(axis::expert_data, "expert_data");
  communicator data_context_ = part(axis::data | axis::context, "data_context");
  communicator tied_ = ends_of_pipeline();
};

}  // namespace moiety
