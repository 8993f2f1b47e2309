// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/tensor_type.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace mo = moiety;

TEST_CASE_TEMPLATE("a type has the bytes of its values", T, double, float, mo::fp16, mo::bf16, std::int64_t,
                   std::uint64_t, std::int32_t, std::uint8_t) {
  constexpr mo::tensor_type type = mo::type_of_values<T>;
  CHECK(mo::bytes_of_type(type) == static_cast<std::int64_t>(sizeof(T)));
  std::string const bits = std::to_string(8 * sizeof(T));
  CHECK(mo::name_of_type(type).ends_with(bits));
}

TEST_CASE("types are spelt as the format has them") {
  CHECK(mo::name_of_type(mo::type_of_values<double>) == "F64");
  CHECK(mo::name_of_type(mo::type_of_values<float>) == "F32");
  CHECK(mo::name_of_type(mo::type_of_values<mo::fp16>) == "F16");
  CHECK(mo::name_of_type(mo::type_of_values<mo::bf16>) == "BF16");
  CHECK(mo::name_of_type(mo::type_of_values<std::int64_t>) == "I64");
  CHECK(mo::name_of_type(mo::type_of_values<std::uint64_t>) == "U64");
  CHECK(mo::name_of_type(mo::type_of_values<std::int32_t>) == "I32");
  CHECK(mo::name_of_type(mo::type_of_values<std::uint8_t>) == "U8");
}

TEST_CASE("bytes of shapes, up to what 63 bits hold") {
  using shape = mo::tensor_shape;
  constexpr std::int64_t largest = std::numeric_limits<std::int64_t>::max();
  auto const bytes = [](shape const& of, mo::tensor_type type) { return mo::detail::bytes_of_shape(of, type); };
  CHECK(bytes({}, mo::tensor_type::f64) == 8);
  CHECK(bytes({3, 0, 5}, mo::tensor_type::f32) == 0);
  CHECK(bytes({3, 5}, mo::tensor_type::bf16) == 30);
  CHECK(bytes({largest}, mo::tensor_type::u8) == largest);
  CHECK(bytes({largest / 2 + 1}, mo::tensor_type::f16) == -1);
  CHECK(bytes({1 << 30, 1 << 30, 8}, mo::tensor_type::u8) == -1);
  CHECK(mo::detail::list_of({}) == "[]");
  CHECK(mo::detail::list_of(shape{2, 0, 7}) == "[2, 0, 7]");
}
