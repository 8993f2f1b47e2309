// SPDX-License-Identifier: Apache-2.0
// libxsmm's batch-reduce kernels. Its matrices are column-major, so its left operand is our right one and its rows are
// our columns:
//
//   libxsmm           nt, nn: W cut once into blocks of [depth][columns], bf16 in pairs along the depth: the ceiling
//   libxsmm_in_place  nn, tn: W, or x, read where it lies, float
#include "../memory_block.hpp"
#include "in_place.hpp"

#include <libxsmm.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>

namespace {

using namespace bench;

constexpr std::int64_t col_block = 64, depth_block = 64, row_block = 64;

/// A kernel for blocks of up to row_block rows: out[rows][col_block] = sum over blocks of the depth.
struct kernel {
  libxsmm_smmfunction_reducebatch_strd f32 = nullptr;
  libxsmm_bsmmfunction_reducebatch_strd bf16 = nullptr;

  explicit operator bool() const { return f32 != nullptr || bf16 != nullptr; }
  void operator()(void const* left, void const* right, float* out, unsigned long long blocks) const {
    if (f32 != nullptr)
      f32(static_cast<float const*>(left), static_cast<float const*>(right), out, &blocks);
    else
      bf16(static_cast<libxsmm_bfloat16 const*>(left), static_cast<libxsmm_bfloat16 const*>(right), out, &blocks);
  }
};

/// Where blocks of the two operands lie, in elements.
struct strides {
  std::int64_t left, left_block, right, right_block, out;
  std::int64_t depth = depth_block;
};

kernel make_kernel(element type, std::int64_t rows, strides const& s, int flags) {
  auto const size = [](std::int64_t n) { return static_cast<libxsmm_blasint>(n); };
  auto const bytes = [&](std::int64_t n) { return size(n * (type == element::f32 ? 4 : 2)); };
  libxsmm_blasint const lda = size(s.left), ldb = size(s.right), ldc = size(s.out);
  float const alpha = 1, beta = 0;
  int const prefetch = LIBXSMM_GEMM_PREFETCH_NONE;
  kernel made;
  if (type == element::f32)
    made.f32 =
        libxsmm_smmdispatch_reducebatch_strd(col_block, size(rows), size(s.depth), bytes(s.left_block),
                                             bytes(s.right_block), &lda, &ldb, &ldc, &alpha, &beta, &flags, &prefetch);
  else
    made.bf16 =
        libxsmm_bsmmdispatch_reducebatch_strd(col_block, size(rows), size(s.depth), bytes(s.left_block),
                                              bytes(s.right_block), &lda, &ldb, &ldc, &alpha, &beta, &flags, &prefetch);
  return made;
}

struct plan {
  in_place sizes;
  strides s{};
  kernel whole, last;                  // for full row blocks, and for the rows that are left
  std::optional<memory_block> packed;  // weights in blocks
  std::int64_t bytes = 0;              // of an element

  explicit plan(problem const& p) : sizes(p), bytes(p.type == element::f32 ? 4 : 2) {}

  bool make(int flags) {
    std::int64_t const left = sizes.rows % row_block;
    if (sizes.rows >= row_block) whole = make_kernel(sizes.of.type, row_block, s, flags);
    if (left != 0) last = make_kernel(sizes.of.type, left, s, flags);
    return (sizes.rows < row_block || whole) && (left == 0 || last);
  }

  /// out = rows of `right` times columns of `left`; column_step and row_step lead to the next block of each.
  void multiply(char const* left, std::int64_t column_step, char const* right, std::int64_t row_step,
                float* out) const {
    auto const blocks = static_cast<unsigned long long>(sizes.depth / s.depth);
    for (std::int64_t c = 0; c < sizes.cols; c += col_block)
      for (std::int64_t r = 0; r < sizes.rows; r += row_block)
        (sizes.rows - r < row_block ? last : whole)(left + c * column_step * bytes, right + r * row_step * bytes,
                                                    out + r * sizes.cols + c, blocks);
  }
};

/// Blocks of W as op(b) [depth x cols]: [column block][depth block][depth / pair][column][pair].
template <class T> void pack(in_place const& sizes, std::int64_t pair, T const* w, T* to) {
  for (std::int64_t c = 0; c < sizes.cols; c += col_block)
    for (std::int64_t d = 0; d < sizes.depth; d += pair)
      for (std::int64_t j = c; j < c + col_block; ++j)
        for (std::int64_t i = d; i < d + pair; ++i)
          *to++ = sizes.transposed_b ? w[j * sizes.b_stride + i] : w[i * sizes.b_stride + j];
}

bool fits(in_place const& sizes) { return sizes.cols % col_block == 0 && sizes.depth % depth_block == 0; }

void* prepare_packed(problem const& p) {
  auto made = std::make_unique<plan>(p);
  in_place const& sizes = made->sizes;
  if (!fits(sizes)) return nullptr;
  made->s = {col_block, col_block * depth_block, sizes.depth, depth_block, sizes.cols};
  if (!made->make(p.type == element::f32 ? LIBXSMM_GEMM_FLAG_NONE : LIBXSMM_GEMM_FLAG_VNNI_A)) return nullptr;
  made->packed.emplace(static_cast<std::size_t>(p.experts * p.n * p.k * made->bytes));
  for (std::int64_t e = 0; e < p.experts; ++e) {
    char* const to = made->packed->as<char>() + e * p.n * p.k * made->bytes;
    if (p.type == element::f32)
      pack(sizes, 1, static_cast<float const*>(p.weights_of(e)), reinterpret_cast<float*>(to));
    else
      pack(sizes, 2, static_cast<std::uint16_t const*>(p.weights_of(e)), reinterpret_cast<std::uint16_t*>(to));
  }
  return made.release();
}

void run_packed(void* made, std::int64_t expert, void const* a, void const*, float* out) {
  auto const& p = *static_cast<plan const*>(made);
  p.multiply(p.packed->as<char>() + expert * p.sizes.cols * p.sizes.depth * p.bytes, p.sizes.depth,
             static_cast<char const*>(a), p.sizes.depth, out);
}

void* prepare_unpacked(problem const& p) {
  auto made = std::make_unique<plan>(p);
  in_place const& sizes = made->sizes;
  bool const tn = p.kind == product::tn;
  if (sizes.cols % col_block != 0) return nullptr;
  std::int64_t const depth = std::min(depth_block, sizes.depth);
  if (sizes.depth % depth != 0) return nullptr;
  if (tn)  // a [depth x rows] is what libxsmm calls a transposed right operand
    made->s = {sizes.b_stride, depth * sizes.b_stride, sizes.a_stride, depth * sizes.a_stride, sizes.cols, depth};
  else
    made->s = {sizes.b_stride, depth * sizes.b_stride, sizes.a_stride, depth, sizes.cols, depth};
  return made->make(tn ? LIBXSMM_GEMM_FLAG_TRANS_B : LIBXSMM_GEMM_FLAG_NONE) ? made.release() : nullptr;
}

void run_unpacked(void* made, std::int64_t expert, void const* a, void const* b, float* out) {
  auto const& p = *static_cast<plan const*>(made);
  p.multiply(static_cast<char const*>(p.sizes.right(expert, b)), 1, static_cast<char const*>(a),
             p.sizes.transposed_a ? 1 : p.sizes.a_stride, out);
}

void release(void* made) { delete static_cast<plan*>(made); }

}  // namespace

extern "C" peer const* moiety_bench_peers(int* count) {
  libxsmm_init();
  static std::string const about = std::string("libxsmm ") + LIBXSMM_VERSION + ", " + libxsmm_get_target_arch();
  static std::array<peer, 2> const found{
      peer{"libxsmm", about.c_str(), [](product kind, element) { return kind != product::tn; }, prepare_packed,
           run_packed, release},
      peer{"libxsmm_in_place", about.c_str(),
           [](product kind, element type) { return kind != product::nt && type == element::f32; }, prepare_unpacked,
           run_unpacked, release}};
  return *count = static_cast<int>(found.size()), found.data();
}
