// SPDX-License-Identifier: Apache-2.0
// oneDNN's matmul. Primitives are made once; every expert has memory objects and a scratchpad of its own, so that
// experts may run at once.
#include "in_place.hpp"

#include <dnnl.hpp>

#include <string>
#include <unordered_map>
#include <vector>

namespace {

using namespace bench;

dnnl::engine& processor() {
  static dnnl::engine made(dnnl::engine::kind::cpu, 0);
  return made;
}

/// A matrix of rows x cols, stored as it is or transposed with the given distance between stored rows.
dnnl::memory::desc matrix(element type, std::int64_t rows, std::int64_t cols, std::int64_t stride, bool transposed) {
  using types = dnnl::memory::data_type;
  dnnl::memory::dims const strides = transposed ? dnnl::memory::dims{1, stride} : dnnl::memory::dims{stride, 1};
  return {{rows, cols}, type == element::f32 ? types::f32 : types::bf16, strides};
}

dnnl::matmul::primitive_desc describe(dnnl::memory::desc const& a, dnnl::memory::desc const& b,
                                      dnnl::memory::desc const& out) {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
#if DNNL_VERSION_MAJOR >= 3
  return {processor(), a, b, out, attributes};
#else
  return {dnnl::matmul::desc(a, b, out), attributes, processor()};
#endif
}

struct plan {
  in_place sizes;
  dnnl::matmul primitive;
  dnnl::stream stream{processor()};
  std::vector<std::unordered_map<int, dnnl::memory>> arguments;  // of each expert

  explicit plan(problem const& p) : sizes(p) {
    auto const a = matrix(p.type, sizes.rows, sizes.depth, sizes.a_stride, sizes.transposed_a);
    auto const b = matrix(p.type, sizes.depth, sizes.cols, sizes.b_stride, sizes.transposed_b);
    auto const out = matrix(element::f32, sizes.rows, sizes.cols, sizes.cols, false);
    auto const description = describe(a, b, out);
    primitive = dnnl::matmul(description);
    for (std::int64_t e = 0; e < p.experts; ++e)
      arguments.push_back({{DNNL_ARG_SRC, {a, processor(), nullptr}},
                           {DNNL_ARG_WEIGHTS, {b, processor(), nullptr}},
                           {DNNL_ARG_DST, {out, processor(), nullptr}},
                           {DNNL_ARG_SCRATCHPAD, {description.scratchpad_desc(), processor()}}});
  }
};

void* prepare(problem const& p) {
  try {
    return new plan(p);
  } catch (dnnl::error const&) {
    return nullptr;
  }
}

void run(void* made, std::int64_t expert, void const* a, void const* b, float* out) {
  auto& p = *static_cast<plan*>(made);
  auto& arguments = p.arguments[static_cast<std::size_t>(expert)];
  arguments[DNNL_ARG_SRC].set_data_handle(const_cast<void*>(a));
  arguments[DNNL_ARG_WEIGHTS].set_data_handle(const_cast<void*>(p.sizes.right(expert, b)));
  arguments[DNNL_ARG_DST].set_data_handle(out);
  p.primitive.execute(p.stream, arguments);
}

}  // namespace

extern "C" peer const* moiety_bench_peers(int* count) {
  static dnnl_version_t const& version = *dnnl_version();
  static std::string const about = "oneDNN " + std::to_string(version.major) + '.' + std::to_string(version.minor) +
                                   '.' + std::to_string(version.patch);
  static peer const found{"onednn", about.c_str(), [](product, element) { return true; },
                          prepare,  run,           [](void* made) { delete static_cast<plan*>(made); }};
  return *count = 1, &found;
}
