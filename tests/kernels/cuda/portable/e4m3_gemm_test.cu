// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/e4m3_gemm.cuh>

#include <moiety/core/errors.hpp>

#include <kernels/cuda/portable/gemm_cases.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

using namespace gemm_cases;

namespace {

using T = mo::e4m3;
template <std::size_t M> using nt_of = nt_case<float, T, T, M>;

/// Says so where not; then a test has nothing to do.
bool multiplies_e4m3() {
  bool const does = engine().compute_capability() >= 89;
  if (!does) MESSAGE("skipped: the device is of less than compute capability 8.9");
  return does;
}

/// Rows begin at multiples of 16 bytes, side by side or with more between them.
void check_both(setting const& s) {
  check_nt<float, T>(aligned<T>(s));
  check_nt<float, T>(aligned<T>(s, 16, 2));
}

/// One product of operands that `change` has changed.
template <class Change> void multiply(mo::cuda_engine& by, Change const& change) {
  setting const s = aligned<T>({.rows = {3, 2}, .n = 8, .k = 32});
  nt_of<2> const nt(s);
  device_values<float> sums(2 * s.total() * s.n);
  device_values<int> calls(s.total() * s.n);
  device_values<int64> groups(s.total() * s.n);
  auto a = nt.a.view();
  std::array w{nt.w[0].view(), nt.w[1].view()};
  change(a, w);
  grouped_gemm_nt<float>(by, s.groups(), nt.offsets.get(), s.bound(), a, w, s.n, s.k,
                         collect<float, 2>{sums.data(), calls.data(), groups.data(), s.total(), s.n});
}

}  // namespace

TEST_CASE("heights at the edges of tiles, in tall and in low tiles") {
  INFO("seed ", seed);
  if (!multiplies_e4m3()) return;
  for (int64 const rows : {1, 31, 32, 33, 127, 128, 129}) {
    check_nt<float, T>(aligned<T>({.rows = {rows}, .n = 24, .k = 72, .slack = 200}));
    check_nt<float, T>(aligned<T>({.rows = {0, rows, 0, 0, 0}, .n = 24, .k = 144}));
  }
}

TEST_CASE("widths at the edges of tiles and of chunks") {
  INFO("seed ", seed);
  if (!multiplies_e4m3()) return;
  for (int64 const n : {1, 7, 63, 64, 65, 127, 128, 129, 264})
    check_nt<float, T>(aligned<T>({.rows = {3, 20}, .n = n, .k = 80}));
}

TEST_CASE("sums that end in a chunk, with one, with a step; many steps") {
  INFO("seed ", seed);
  if (!multiplies_e4m3()) return;
  for (int64 const k : {1, 15, 16, 17, 31, 33, 127, 128, 129, 200, 257, 640})
    check_both({.rows = {35, 6}, .n = 40, .k = k, .gathered = k % 2 == 0});
  check_nt<float, T>(aligned<T>({.rows = {140}, .n = 136, .k = 1100}));
}

TEST_CASE("empty groups, one group with all, no rows, no columns, no k, null offsets") {
  INFO("seed ", seed);
  if (!multiplies_e4m3()) return;
  check_both({.rows = {0, 33, 0, 128, 1, 0}, .n = 40, .k = 72});
  check_both({.rows = {0, 0, 0, 140, 0}, .n = 40, .k = 72});
  check_both({.rows = {0, 0, 0}, .n = 16, .k = 16});
  check_both({.rows = {9, 2}, .n = 16, .k = 0});
  check_both({.rows = {9, 2}, .n = 0, .k = 16});
  check_both({.rows = {}, .n = 16, .k = 16});
  check_both({.rows = {77}, .n = 16, .k = 48, .offsets = false});
}

TEST_CASE("three and four matrices side by side") {
  INFO("seed ", seed);
  if (!multiplies_e4m3()) return;
  setting const s = aligned<T>({.rows = {20, 33}, .n = 71, .k = 150});
  nt_of<3>(s).check();
  nt_of<4>(s).check();
}

TEST_CASE("sums of small integers are exact") {
  INFO("seed ", seed);
  if (!multiplies_e4m3()) return;
  for (int64 const slack : {0, 1000})
    for (bool const gathered : {false, true}) {
      nt_of<2> nt(aligned<T>({.rows = {17, 0, 140, 5}, .n = 75, .k = 710, .gathered = gathered, .slack = slack}));
      draw_integers(nt);
      CHECK(difference(nt.run(), nt.exact(as_it_is<T>)) == 0);
    }
}

TEST_CASE("scales of blocks of rows and of matrices") {
  INFO("seed ", seed);
  if (!multiplies_e4m3()) return;
  for (int64 const rows : {20, 140})
    for (bool const gathered : {false, true}) {
      setting const s = aligned<T>({.rows = {rows, 0, 33}, .n = 203, .k = 310, .gathered = gathered});
      check_block_scales<T, 1>(s), check_block_scales<T, 2>(s), check_block_scales<T, 3>(s);
    }
  check_block_scales<T, 2>(aligned<T>({.rows = {5, 6}, .n = 1, .k = 128}));
}

TEST_CASE("each 128 k are summed apart, and added in float") {
  if (multiplies_e4m3()) check_steps_apart<T>();
}

TEST_CASE("bits depend neither on the tile's height nor on rows of other groups") {
  INFO("seed ", seed);
  if (!multiplies_e4m3()) return;
  for (bool const gathered : {false, true}) {
    setting const s = aligned<T>({.rows = {17, 0, 40, 20, 5}, .n = 72, .k = 300, .gathered = gathered});
    nt_of<2> nt(s);
    auto const low = nt.run();
    CHECK(same_bits(low, nt.run(1000)));
    check_rows_alone(
        nt, 17, 57, low, [&] { return nt.run(); }, [&] { return nt.run(1000); });
  }
}

TEST_CASE("operands that do not begin at multiples of 16 bytes are refused") {
  if (!multiplies_e4m3()) return;
  auto const refused = [](auto const& change) {
    CHECK_THROWS_WITH_AS(multiply(engine(), change),
                         "products of e4m3 need rows and matrices that begin at multiples of 16 bytes.",
                         mo::config_error);
  };
  CHECK_NOTHROW(multiply(engine(), [](auto&, auto&) {}));
  refused([](auto& a, auto&) { a.data += 8; });
  refused([](auto& a, auto&) { a.stride += 8; });
  refused([](auto&, auto& w) { w[1].data += 8; });
  refused([](auto&, auto& w) { w[1].row_stride -= 8; });
  refused([](auto&, auto& w) { w[0].group_stride += 8; });
}

#if defined(CUDA_ON_CPU)
TEST_CASE("devices and programs without the instruction are refused") {
  auto const as_it_is = [](auto&, auto&) {};
  cuda_on_cpu::knobs.compute_major = 8, cuda_on_cpu::knobs.compute_minor = 6;
  mo::cuda_engine older{mo::cuda{}};
  CHECK_THROWS_WITH_AS(multiply(older, as_it_is),
                       "CUDA device 0 has compute capability 8.6, and products of e4m3 need 8.9 or newer.",
                       mo::config_error);
  cuda_on_cpu::knobs.compute_minor = 9, cuda_on_cpu::knobs.kernel_capability = 80;
  mo::cuda_engine newer{mo::cuda{}};
  CHECK_THROWS_WITH_AS(
      multiply(newer, as_it_is),
      "this device runs code for 8.0, and products of e4m3 need the program compiled for 8.9 or newer.",
      mo::config_error);
  cuda_on_cpu::knobs.kernel_capability = 89;
  CHECK_NOTHROW(multiply(newer, as_it_is));
  cuda_on_cpu::reset();
}
#endif
