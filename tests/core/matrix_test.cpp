// SPDX-License-Identifier: Apache-2.0
#include <moiety/core/matrix.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <memory_resource>
#include <new>
#include <type_traits>
#include <utility>

namespace mo = moiety;

namespace {

struct counting final : std::pmr::memory_resource {
  std::int64_t live = 0;
  bool full = false;
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    if (full) throw std::bad_alloc();
    live += static_cast<std::int64_t>(bytes);
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* block, std::size_t bytes, std::size_t alignment) override {
    live -= static_cast<std::int64_t>(bytes);
    std::pmr::new_delete_resource()->deallocate(block, bytes, alignment);
  }
  bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override { return this == &other; }
};

}  // namespace

static_assert(std::is_convertible_v<mo::matrix_view<float>, mo::matrix_view<float const>>);
static_assert(!std::is_convertible_v<mo::matrix_view<float const>, mo::matrix_view<float>>);
static_assert(!std::is_convertible_v<mo::matrix_view<double>, mo::matrix_view<float const>>);
static_assert(std::is_convertible_v<mo::matrix<float>&, mo::matrix_view<float const>>);
static_assert(!std::is_convertible_v<mo::matrix<float> const&, mo::matrix_view<float>>);

TEST_CASE("a matrix is zeroed, aligned and row-major") {
  mo::matrix<double> m(3, 5);
  CHECK(m.rows() == 3);
  CHECK(m.cols() == 5);
  CHECK(m.size() == 15);
  CHECK(reinterpret_cast<std::uintptr_t>(m.data()) % 64 == 0);
  for (double const v : m) CHECK(v == 0);
  m(2, 1) = 7;
  CHECK(m.data()[11] == 7);
  CHECK(m.row(2)[1] == 7);
  CHECK(mo::matrix<float>(0, 5).size() == 0);
  CHECK(mo::matrix<float>().rows() == 0);
}

TEST_CASE("views slice rows and keep strides") {
  mo::matrix<int> m(4, 3);
  for (int i = 0; i < 12; ++i) m.data()[i] = i;
  mo::matrix_view<int> const middle = m.rows(1, 2);
  CHECK(middle.rows() == 2);
  CHECK(middle(1, 2) == 8);
  middle(0, 0) = 100;
  CHECK(m(1, 0) == 100);
  mo::matrix_view<int const> const columns(m.data() + 1, 4, 2, 3);
  CHECK(columns.stride() == 3);
  CHECK(columns(3, 1) == 11);
  CHECK(columns.rows(2, 2)(1, 0) == 10);
  CHECK(std::as_const(m).rows(3, 1)(0, 0) == 9);
}

TEST_CASE("a matrix moves, and gives its memory back to where it came from") {
  counting memory;
  {
    mo::matrix<float> a(10, 10, memory);
    CHECK(memory.live == 400);
    float const* const data = a.data();
    mo::matrix<float> b = std::move(a);
    CHECK(b.data() == data);
    b = mo::matrix<float>(2, 2, memory);
    CHECK(memory.live == 16);
  }
  CHECK(memory.live == 0);
}

TEST_CASE("shapes that cannot be, and memory that is not there") {
  std::int64_t volatile negative = -1;  // not known to the compiler, which would warn of the shape itself
  CHECK_THROWS_WITH_AS(mo::matrix<float>(negative, 4), "a matrix cannot have the shape [-1 x 4].", mo::data_error);
  std::int64_t volatile huge = std::numeric_limits<std::int64_t>::max() / 2;
  CHECK_THROWS_AS(mo::matrix<float>(huge, 4), mo::data_error);
  CHECK_THROWS_AS(mo::matrix<float>(huge, 1), mo::data_error);
  counting memory;
  memory.full = true;
  CHECK_THROWS_WITH_AS(mo::matrix<float>(10, 10, memory), "out of memory: 400 bytes could not be allocated.",
                       mo::resource_error);
}
