// SPDX-License-Identifier: Apache-2.0
#if !defined(__CUDA_ARCH_LIST__)
#define __CUDA_ARCH_LIST__ 900  // what nvcc says of itself; on the CPU, this test does
#endif
#include <moiety/kernels/cuda/sm90/grouped_gemm.cuh>

#include <moiety/core/e4m3.hpp>
#include <moiety/experts/apply.cuh>
#include <moiety/experts/fp8.cuh>
#include <moiety/kernels/cuda/portable/e4m3_gemm.cuh>

#include <moiety/cuda.cuh>

#include <experts/layer_results.hpp>
#include <kernels/cuda/portable/gemm_cases.hpp>
#include <kernels/cuda/sm90/cases.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

using namespace gemm_cases;

namespace sm90_cases {

/// Cases run on the kernels of the device while one lives. On the CPU, products must have gone to those of sm_90a.
class on_sm90a {
 public:
  explicit on_sm90a(int64 products) : products_(products), before_(launches()) { of_device = true; }
  on_sm90a(on_sm90a const&) = delete;
  on_sm90a& operator=(on_sm90a const&) = delete;
  ~on_sm90a() {
    of_device = false;
#if defined(CUDA_ON_CPU)
    CHECK(launches() == before_ + products_);
#endif
  }

 private:
  static int64 launches() {
#if defined(CUDA_ON_CPU)
    return cuda_on_cpu::launches_of("wgmma_tiles");
#else
    return 0;
#endif
  }
  int64 products_, before_;
};

template <class T, std::size_t M = 1> void nt(setting s) {
  on_sm90a const here(s.bound() == 0 ? 0 : 1);
  s.mapped = true;
  nt_case<float, T, T, M>(s).check();
}
template <class T, std::size_t M = 1> void nn(setting s) {
  on_sm90a const here(s.bound() == 0 ? 0 : 1);
  s.mapped = true;
  nn_case<float, T, T, M>(s).check();
}
template <class T> void tn(setting s) {
  for (bool const accumulate : {false, true}) {
    on_sm90a const here(1);
    s.accumulate = accumulate;
    tn_case<float, T, T>(s).check();
  }
}

template <class T> std::vector<double> widened(std::vector<T> const& values) {
  std::vector<double> wide;
  for (T const& value : values) wide.push_back(static_cast<double>(static_cast<float>(value)));
  return wide;
}

/// Everything that the three calls of experts read and write.
struct expert_case {
  using T = mo::bf16;
  using apply = mo::apply_experts<mo::gated_mlp<mo::silu>, mo::cuda>;
  static constexpr int64 hidden = 136, ffn = 200, experts = 4;
  setting s{.rows = {130, 0, 7, 20}, .n = ffn, .k = hidden, .gathered = true, .mapped = true};
  operand<T> x{s, hidden}, dy{s, hidden};
  std::vector<weights<T>> w;
  device_offsets offsets{s};
  device_values<float> row_weights{numbers(s.total())};

  expert_case() {
    for (int i = 0; i < 3; ++i) w.emplace_back(s, i < 2 ? ffn : hidden, i < 2 ? hidden : ffn);
  }
  static std::vector<float> numbers(int64 count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = random_value<float>();
    return values;
  }

  /// z, a, o, dz, scaled a, dx, parts of dw, gradients of gate, up and down.
  std::vector<std::vector<double>> run() const {
    int64 const rows = s.total();
    device_values<T> z(rows * 2 * ffn), a(rows * ffn), o(rows * hidden), dz(rows * 2 * ffn), scaled(rows * ffn),
        dx(rows * hidden);
    device_values<float> parts(rows * mo::column_blocks<float, mo::cuda>(ffn));
    std::vector<device_values<float>> gradients;
    for (int i = 0; i < 3; ++i) gradients.emplace_back(experts * ffn * hidden);
    mo::expert_operands<mo::gated_mlp<mo::silu>, T> const operands{
        .matrices = {.inputs = {as_stored(w[0]), as_stored(w[1])}, .down = as_stored(w[2])}};
    mo::expert_matrices<mo::gated_mlp<mo::silu>, float> const to{
        .inputs = {grouped_matrix<float>{gradients[0].data(), ffn * hidden, hidden},
                   grouped_matrix<float>{gradients[1].data(), ffn * hidden, hidden}},
        .down = {gradients[2].data(), ffn * hidden, ffn}};
    mo::expert_rows const of{experts, offsets.get(), hidden, ffn, rows};
    apply::forward<T>(engine(), of, x.view(), operands, z.data(), a.data(), o.data());
    apply::backward_input<T>(engine(), of, dy.view(), operands, z.data(), row_weights.data(), dz.data(), scaled.data(),
                             parts.data(), dx.data());
    apply::backward_weights<T>(engine(), of, x.view(), dy.view(), dz.data(), scaled.data(), to, false);
    std::vector<std::vector<double>> all;
    for (auto const* values : {&z, &a, &o, &dz, &scaled, &dx}) all.push_back(widened(values->host()));
    all.push_back(widened(parts.host()));
    for (auto const& values : gradients) all.push_back(widened(values.host()));
    return all;
  }

 private:
  static grouped_matrix<T> as_stored(weights<T> const& of) {
    return {const_cast<T*>(of.view().data), of.group_stride, of.row_stride};
  }
};

/// Several tiles of columns in each product.
struct wide : mo::layer_spec<mo::dims{.hidden = 264, .ffn = 200, .experts = 3}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

}  // namespace sm90_cases

using namespace sm90_cases;

TEST_CASE_TEMPLATE("nt: groups of every height, gathered or not", T, mo::bf16, mo::fp16) {
  INFO("seed ", seed);
  nt<T>({.rows = {0, 129, 0, 1, 64, 65, 0}, .n = 72, .k = 136});
  nt<T, 2>({.rows = {127, 128}, .n = 40, .k = 64, .gathered = true, .pad = 8, .shift = 8});
}

TEST_CASE_TEMPLATE("nn: groups of every height, gathered or not", T, mo::bf16, mo::fp16) {
  INFO("seed ", seed);
  nn<T>({.rows = {0, 129, 0, 1, 64, 65, 0}, .n = 72, .k = 136});
  nn<T, 2>({.rows = {127, 128}, .n = 40, .k = 72, .gathered = true, .pad = 8, .shift = 8});
}

TEST_CASE_TEMPLATE("tn: groups of every height, gathered or not", T, mo::bf16, mo::fp16) {
  INFO("seed ", seed);
  tn<T>({.rows = {0, 129, 0, 1, 64, 65, 0}, .n = 72, .k = 136});
  tn<T>({.rows = {127, 128}, .n = 136, .k = 40, .gathered = true, .pad = 8, .shift = 8});
}

TEST_CASE_TEMPLATE("widths at the edges of tiles, many steps", T, mo::bf16, mo::fp16) {
  INFO("seed ", seed);
  for (int64 const n : {8, 120, 128, 136, 256, 264}) {
    nt<T>({.rows = {3, 20}, .n = n, .k = 72});
    nn<T>({.rows = {3, 20}, .n = n, .k = 72});
    tn<T>({.rows = {3, 70}, .n = 72, .k = n});
    tn<T>({.rows = {3, 70}, .n = n, .k = 72});
  }
  for (int64 const n : {64, 72, 128, 136}) nt<T, 2>({.rows = {3, 20}, .n = n, .k = 72});
  nt<T, 2>({.rows = {40}, .n = 136, .k = 648});
  nn<T, 2>({.rows = {40}, .n = 136, .k = 392});
  tn<T>({.rows = {500}, .n = 8, .k = 136});
  // Elements that no chunk of 16 bytes ends with.
  nt<T>({.rows = {35, 6}, .n = 67, .k = 131, .gathered = true, .pad = 5});
  nn<T>({.rows = {35, 6}, .n = 67, .k = 131, .gathered = true, .pad = 5 + 64});
}

TEST_CASE("e4m3: groups of every height, gathered or not") {
  INFO("seed ", seed);
  using T = mo::e4m3;
  nt<T>(aligned<T>({.rows = {0, 129, 0, 1, 64, 65, 0}, .n = 72, .k = 136}));
  nt<T, 2>(aligned<T>({.rows = {127, 128}, .n = 40, .k = 64, .gathered = true}, 16, 1));
  nt<T>(aligned<T>({.rows = {0, 0, 0, 140, 0}, .n = 136, .k = 72}));
  nt<T>(aligned<T>({.rows = {0, 0, 0}, .n = 136, .k = 72, .slack = 9}));
  nt<T>(aligned<T>({.rows = {77}, .n = 136, .k = 72, .offsets = false}));
  nt<T, 2>(aligned<T>({.rows = std::vector<int64>(70, 1), .n = 8, .k = 8, .gathered = true}));
}

TEST_CASE("e4m3: widths at the edges of tiles, sums at those of steps") {
  INFO("seed ", seed);
  using T = mo::e4m3;
  for (int64 const n : {1, 8, 64, 67, 127, 128, 129, 264}) {
    nt<T>(aligned<T>({.rows = {3, 20}, .n = n, .k = 80}));
    nt<T, 2>(aligned<T>({.rows = {3, 20}, .n = n, .k = 80}));
  }
  for (int64 const k : {1, 15, 16, 17, 127, 128, 129, 257, 640, 1100})
    for (bool const gathered : {false, true})
      nt<T>(aligned<T>({.rows = {35, 6}, .n = 40, .k = k, .gathered = gathered}));
  nt<T, 3>(aligned<T>({.rows = {20, 33}, .n = 71, .k = 150}));
  nt<T, 4>(aligned<T>({.rows = {20, 33}, .n = 71, .k = 150}));
}

TEST_CASE("e4m3: sums of small integers are exact, each 128 k are summed apart, and tiles come in any order") {
  INFO("seed ", seed);
  using T = mo::e4m3;
  for (bool const gathered : {false, true}) {
    on_sm90a const here(3);
    nt_case<float, T, T, 2> of(
        aligned<T>({.rows = {133, 0, 290, 5}, .n = 203, .k = 710, .gathered = gathered, .mapped = true}));
    draw_integers(of);
    auto const got = of.run();
    CHECK(difference(got, of.exact(as_it_is<T>)) == 0);
    for (int i = 0; i < 2; ++i) CHECK(same_bits(of.run(), got));
  }
  on_sm90a const here(1);
  check_steps_apart<T>();
}

TEST_CASE("e4m3: bits depend neither on other rows, nor on how rows are read, nor on the bound") {
  INFO("seed ", seed);
  using T = mo::e4m3;
  setting s = aligned<T>({.rows = {17, 0, 140, 20, 5}, .n = 136, .k = 300, .slack = 300, .mapped = true});
  nt_case<float, T, T, 2> of(s);
#if defined(CUDA_ON_CPU)
  auto const portable = of.run();  // a device's instructions differ
#endif
  on_sm90a const here(3);
  auto const before = of.run();
#if defined(CUDA_ON_CPU)
  CHECK(same_bits(before, portable));
#endif
  CHECK(same_bits(before, of.run(-s.slack)));
  check_rows_alone(of, 17, 157, before, [&] { return of.run(); });
}

TEST_CASE("e4m3: scales of blocks of rows and of matrices") {
  INFO("seed ", seed);
  using T = mo::e4m3;
  for (bool const gathered : {false, true}) {
    on_sm90a const here(3);
    setting const s = aligned<T>({.rows = {140, 0, 33, 64}, .n = 203, .k = 310, .gathered = gathered, .mapped = true});
    check_block_scales<T, 1>(s), check_block_scales<T, 2>(s), check_block_scales<T, 3>(s);
  }
}

TEST_CASE("e4m3: few rows take these kernels too; what the copy engine cannot address takes the portable ones") {
  INFO("seed ", seed);
  using T = mo::e4m3;
  mo::cuda_engine usual{mo::cuda{}};
  for (auto const& [rows, launches] : {std::pair<int64, int64>{1, 1}, {32, 1}, {33, 1}}) {
    nt_case<float, T, T, 1> const of(aligned<T>({.rows = {rows, rows}, .n = 136, .k = 72, .mapped = true}));
    on_sm90a const here(launches);
    static_cast<void>(of.run_on(usual));
  }
  on_sm90a const here(0);
  check_nt<float, T>(aligned<T>({.rows = {35, 6}, .n = 136, .k = 72}));  // matrices lie no whole number of rows apart
  check_nt<float, T>(aligned<T>({.rows = {9, 2}, .n = 16, .k = 0, .mapped = true}, 16, 1));
}

template <class Spec, class Products> void check_layer() {
  using deployment = layer_results::by<mo::cuda, mo::bf16, Products>;
#if defined(CUDA_ON_CPU)
  auto const before = cuda_on_cpu::launches_of("wgmma_tiles");
#endif
  auto const got = layer_results::run<Spec, deployment>(seed);
  auto const portable = layer_results::run<Spec, deployment>(seed, mo::cuda{.portable = true});
#if defined(CUDA_ON_CPU)
  CHECK(cuda_on_cpu::launches_of("wgmma_tiles") - before >= 4 * 2);  // forward twice, and what infer and backward have
  CHECK(got == portable);
#else
  layer_results::check(portable, got, 0.01, -1, 0.05);
#endif
}

TEST_CASE_TEMPLATE("e4m3: whole layers, whose epilogues round, differentiate and sum rows", Products, mo::fp8_products,
                   mo::fp8_block_products) {
  INFO("seed ", seed);
  check_layer<layer_results::gated, Products>();
  check_layer<sm90_cases::wide, Products>();
}

TEST_CASE("three and four matrices side by side, or in one sum") {
  INFO("seed ", seed);
  setting const s{.rows = {20, 33}, .n = 72, .k = 72};
  nt<mo::bf16, 3>(s);
  nt<mo::fp16, 4>(s);
  nn<mo::bf16, 3>(s);
  nt<mo::bf16, 3>({.rows = {5}, .n = 24, .k = 72});
}

TEST_CASE_TEMPLATE("empty groups, one group with all, no rows, null offsets", T, mo::bf16, mo::fp16) {
  INFO("seed ", seed);
  for (setting const& s : {setting{.rows = {0, 0, 0, 140, 0}, .n = 136, .k = 72},
                           setting{.rows = {0, 0, 0}, .n = 136, .k = 72, .slack = 9},
                           setting{.rows = {77}, .n = 136, .k = 72, .offsets = false},
                           setting{.rows = std::vector<int64>(70, 1), .n = 8, .k = 8, .gathered = true}}) {
    nt<T>(s);
    nn<T, 2>(s);
    tn<T>(s);
  }
}

TEST_CASE_TEMPLATE("sums of rows have one order, whatever the tile", T, mo::bf16, mo::fp16) {
  INFO("seed ", seed);
  for (int64 const n : {8, 128, 136, 392}) {
    on_sm90a const here(3);
    check_row_sums<float, T>({.rows = {17, 0, 40, 3, 130}, .n = n, .k = 72, .mapped = true});
  }
}

TEST_CASE("bits depend neither on other rows, nor on how rows are read, nor on the bound") {
  INFO("seed ", seed);
  for (bool const gathered : {false, true}) {
    on_sm90a const here(7);
    setting const s{
        .rows = {17, 0, 140, 20, 5}, .n = 136, .k = 200, .gathered = gathered, .slack = 300, .mapped = true};
    nt_case<float, mo::bf16, mo::bf16, 2> nt(s);
    nn_case<float, mo::fp16, mo::fp16, 2> const nn(s);
    tn_case<float, mo::bf16, mo::bf16> const tn(s);
    auto const before = nt.run();
    CHECK(same_bits(before, nt.run(-s.slack)));
    CHECK(same_bits(nn.run(), nn.run(-s.slack)));
    CHECK(same_bits(tn.run(), tn.run(-s.slack)));
    check_rows_alone(nt, 17, 157, before, [&] { return nt.run(); });
  }
}

TEST_CASE("more tiles than blocks, in any order of threads, come out the same every time") {
  INFO("seed ", seed);
  setting const s{.rows = {133, 0, 290, 5}, .n = 264, .k = 72, .gathered = true, .accumulate = true, .mapped = true};
  nt_case<float, mo::bf16, mo::bf16, 2> const nt(s);
  nn_case<float, mo::bf16, mo::bf16, 2> const nn(s);
  tn_case<float, mo::bf16, mo::bf16> const tn(s);
  on_sm90a const here(9);
  auto const first = nt.run(), second = nn.run(), third = tn.run();
  for (int i = 0; i < 2; ++i) {
    CHECK(same_bits(nt.run(), first));
    CHECK(same_bits(nn.run(), second));
    CHECK(same_bits(tn.run(), third));
  }
}

TEST_CASE("rows behind a group's last do not reach its sums") {
  INFO("seed ", seed);
  on_sm90a const here(2);
  tn_case<float, mo::bf16, mo::bf16> tn({.rows = {70, 3, 100}, .n = 136, .k = 264, .slack = 80, .mapped = true});
  auto const before = tn.run();
  for (int64 r = 70; r < 73; ++r) {
    for (int64 i = 0; i < tn.s.n; ++i) tn.a(r, i) = poison<mo::bf16>();
    for (int64 j = 0; j < tn.s.k; ++j) tn.b(r, j) = poison<mo::bf16>();
  }
  tn.a.upload(), tn.b.upload();
  auto const after = tn.run();
  bool same = true;
  tn.for_outputs(
      [&](int64 g, int64, int64, int64 place) { same = same && (g == 1 || at(after, place) == at(before, place)); });
  CHECK(same);
}

TEST_CASE("few rows of a group take the portable kernels") {
  INFO("seed ", seed);
  mo::cuda_engine usual{mo::cuda{}};
  for (auto const& [rows, launches] : {std::pair<int64, int64>{32, 0}, {33, 1}}) {
    setting const s{.rows = {rows, rows}, .n = 136, .k = 72, .mapped = true};
    nt_case<float, mo::bf16, mo::bf16, 1> const nt(s);
    on_sm90a const here(launches);
    static_cast<void>(nt.run_on(usual));
  }
}

#if !defined(CUDA_ON_CPU)
TEST_CASE("the sums of the device's matrix instructions have the bits of the portable kernels") {
  if (!testing::on_sm90()) return;
  setting const s{.rows = {133, 0, 290, 5}, .n = 264, .k = 712, .mapped = true};
  nt_case<float, mo::bf16, mo::bf16, 2> const nt(s);
  nn_case<float, mo::fp16, mo::fp16, 2> const nn(s);
  tn_case<float, mo::bf16, mo::bf16> const tn(s);
  auto const first = nt.run(), second = nn.run(), third = tn.run();
  on_sm90a const here(3);
  CHECK(same_bits(nt.run(), first));
  CHECK(same_bits(nn.run(), second));
  CHECK(same_bits(tn.run(), third));
}
#endif

TEST_CASE("what the copy engine cannot address goes to the portable kernels") {
  INFO("seed ", seed);
  on_sm90a const here(0);
  check_all<float, mo::bf16>({.rows = {35, 6}, .n = 136, .k = 71, .mapped = true});           // rows begin anywhere
  check_nt<float, mo::bf16>({.rows = {35, 6}, .n = 136, .k = 72});                            // matrices lie anywhere
  check_all<float, mo::bf16>({.rows = {130}, .n = 40, .k = 72, .shift = 1, .mapped = true});  // and so does the first
  check_nt<float, mo::bf16>({.rows = {9, 2}, .n = 16, .k = 0, .mapped = true});               // nothing to address
  check_nn<float, mo::bf16>({.rows = {9, 2}, .n = 16, .k = 0, .pad = 8, .mapped = true});
}

#if defined(CUDA_ON_CPU)
TEST_CASE("a device that has other code of the kernels gets the portable ones") {
  INFO("seed ", seed);
  cuda_on_cpu::knobs.kernel_threads = 1;
  {
    on_sm90a const here(0);
    check_all<float, mo::bf16>({.rows = {35, 6}, .n = 136, .k = 72, .mapped = true});
  }
  cuda_on_cpu::knobs.kernel_threads = 1024;
}
#endif

TEST_CASE("experts of a layer are multiplied here, to what the portable kernels make of them") {
  INFO("seed ", seed);
  expert_case const one;
  auto const expected = one.run();
  on_sm90a const here(7);
  auto const got = one.run();
  for (std::size_t i = 0; i < got.size(); ++i) {
    INFO("output ", i);
#if defined(CUDA_ON_CPU)
    CHECK(same_bits(got[i], expected[i]));
#else
    CHECK(difference(got[i], expected[i]) < 3e-3);
#endif
  }
}
