// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/united_header.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;
using mo::tensor_shape;
using mo::tensor_slice;
using mo::tensor_type;

namespace {

char somewhere = 0;

tensor_slice box(std::string name, tensor_shape shape, tensor_shape first, tensor_shape count, bool owner = true) {
  return {.name = std::move(name),
          .type = tensor_type::f32,
          .shape = std::move(shape),
          .first = std::move(first),
          .count = std::move(count),
          .values = &somewhere,
          .owner = owner};
}

mo::safetensors_header united(std::vector<std::vector<tensor_slice>> const& of_ranks) {
  std::vector<std::string> packed;
  for (auto const& slices : of_ranks) packed.push_back(mo::detail::packed_slices(slices));
  return mo::detail::united_header(packed, {{"k", "v"}});
}

std::string complaint(std::vector<std::vector<tensor_slice>> const& of_ranks) {
  try {
    united(of_ranks);
  } catch (mo::config_error const& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("slices are unpacked as they were packed") {
  std::vector<tensor_slice> const slices{box("a\"é", {4, 5, 6}, {1, 2, 3}, {3, 2, 1}), box("", {}, {}, {}, false)};
  auto const again = mo::detail::unpacked_slices(mo::detail::packed_slices(slices));
  REQUIRE(again.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(again[i].name == slices[i].name);
    CHECK(again[i].type == slices[i].type);
    CHECK(again[i].shape == slices[i].shape);
    CHECK(again[i].first == slices[i].first);
    CHECK(again[i].count == slices[i].count);
    CHECK(again[i].owner == slices[i].owner);
  }
}

TEST_CASE("the header has the tensors of all ranks, also those of one") {
  auto const header = united({{box("a", {4, 2}, {0, 0}, {1, 2}), box("of 0", {}, {}, {})},
                              {},
                              {box("empty", {0, 3}, {0, 0}, {0, 3}), box("a", {4, 2}, {1, 0}, {3, 2})}});
  CHECK(header.tensors.size() == 3);
  CHECK(header.tensors.at("a").shape == tensor_shape{4, 2});
  CHECK(header.tensors.at("of 0").shape.empty());
  CHECK(header.tensors.at("empty").shape == tensor_shape{0, 3});
  CHECK(header.metadata == mo::text_map{{"k", "v"}});
  CHECK_THROWS_WITH_AS(mo::detail::united_header({}, {{"k", "\xff"}}), "metadata \"k\" are not UTF-8.",
                       mo::config_error);
}

TEST_CASE("ranks must agree on type and shape") {
  auto other = box("a", {4}, {2}, {2});
  other.type = tensor_type::i32;
  CHECK(complaint({{box("a", {4}, {0}, {2})}, {}, {other}}) ==
        "tensor \"a\" is of type I32 on rank 2, but F32 on rank 0.");
  CHECK(complaint({{}, {box("a", {4}, {0}, {2})}, {box("a", {2, 2}, {0, 0}, {2, 2})}}) ==
        "tensor \"a\" is of shape [2, 2] on rank 2, but [4] on rank 1.");
  CHECK(complaint({{box("a", {4}, {0}, {4})}, {box("a", {5}, {0}, {5}, false)}}) ==
        "tensor \"a\" is of shape [5] on rank 1, but [4] on rank 0.");
}

TEST_CASE("owners must have each value exactly once") {
  auto const half = [](std::int64_t first, bool owner = true) { return box("a", {2, 4}, {0, first}, {2, 2}, owner); };
  CHECK(complaint({{half(0)}, {half(2)}}) == "");
  CHECK(complaint({{half(0)}, {half(2)}, {half(0, false)}, {half(1, false)}}) == "");
  CHECK(complaint({{half(0), half(2)}}) == "");
  CHECK(
      complaint({{half(0)}, {half(1)}}) ==
      "tensor \"a\": the box of [2, 2] from [0, 0] of rank 0 and the box of [2, 2] from [0, 1] of rank 1 overlap, and "
      "both are owners.");
  CHECK(complaint({{half(0)}, {}, {half(0)}}).find("of rank 0 and the box of [2, 2] from [0, 0] of rank 2 overlap") !=
        std::string::npos);
  CHECK(complaint({{half(0), half(0)}}).find("of rank 0 overlap") != std::string::npos);
  CHECK(complaint({{half(0)}, {half(2, false)}}) == "tensor \"a\": the boxes of its owners have 16 of its 32 bytes.");
  CHECK(complaint({{half(0, false)}}) == "tensor \"a\": the boxes of its owners have 0 of its 32 bytes.");
  CHECK(complaint({{box("s", {}, {}, {})}, {box("s", {}, {}, {})}}).starts_with("tensor \"s\": the box of [] from []"));
  CHECK(complaint({{box("s", {}, {}, {})}, {box("s", {}, {}, {}, false)}}) == "");
  // Empty boxes meet nothing, wherever they lie.
  CHECK(complaint({{half(0)}, {box("a", {2, 4}, {1, 1}, {0, 3})}, {half(2)}}) == "");
}

TEST_CASE("overlaps are found among many boxes, whatever axis divides them") {
  for (std::size_t const axis : {0u, 1u, 2u}) {
    std::vector<std::vector<tensor_slice>> of_ranks;
    for (std::int64_t r = 0; r < 16; ++r) {
      tensor_shape shape{4, 4, 4}, first{0, 0, 0}, count{4, 4, 4};
      shape[axis] = 32;
      first[axis] = (r * 7 % 16) * 2;
      count[axis] = 2;
      of_ranks.push_back({box("a", shape, first, count)});
    }
    CHECK(complaint(of_ranks) == "");
    of_ranks[5][0].first[axis] -= 1;
    CHECK(complaint(of_ranks).find(" of rank 5 overlap, and both are owners.") != std::string::npos);
  }
}
